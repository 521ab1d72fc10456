"""Files of tracked objects: YouTube-VIS' own and what tools write, sound and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.data.formats.ytvis import YtvisSource
from src.data.records import RLE, Issue, VideoRecord
from tests.errors import refuses
from tests.sources import open_ytvis

HEIGHT, WIDTH = 6, 8
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
SQUARE_MASK[1:3, 1:4] = True


def compressed(mask: np.ndarray = SQUARE_MASK) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": RLE.encode(mask).rle["counts"].decode()}


UNCOMPRESSED = {"size": [HEIGHT, WIDTH], "counts": [7, 2, 4, 2, 4, 2, 27]}


def frames(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / file)


def tracks(*annotations: dict[str, Any], videos: Any = None, **more: Any) -> dict[str, Any]:
    """YouTube-VIS' flavour: by default one video of three frames."""
    names = ["dog/0.png", "dog/5.png", "dog/10.png"]
    listed = [{"id": 1, "file_names": names, "height": HEIGHT, "width": WIDTH}] if videos is None else videos
    return {"videos": listed, "annotations": list(annotations), "categories": [{"id": 3, "name": "dog"}], **more}


def track(number: int, *segmentations: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "video_id": 1, "category_id": 3, "segmentations": list(segmentations), "iscrowd": 0, **more}


def image(number: int, file: str, frame: Any = None, video: Any = 1) -> dict[str, Any]:
    return {"id": number, "file_name": file, "height": HEIGHT, "width": WIDTH, "frame_id": frame, "video_id": video}


def piece(number: int, image_id: int, track_id: Any, segmentation: Any = SQUARE, **more: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image_id, "category_id": 3, "segmentation": segmentation, **more}
    return entry if track_id is None else {**entry, "track_id": track_id}


def images(*annotations: dict[str, Any], listed: Any = None, **more: Any) -> dict[str, Any]:
    """The flavour of labelling tools: by default one video of two frames."""
    entries = [image(11, "dog/0.png", 0), image(12, "dog/1.png", 1)] if listed is None else listed
    return {"images": entries, "annotations": list(annotations), "categories": [{"id": 3, "name": "dog"}], **more}


@pytest.fixture
def open_file(tmp_path):
    frames(tmp_path, "dog/0.png", "dog/1.png", "dog/5.png", "dog/10.png", "cat/0.png")

    def open_content(content: Any, **options: Any) -> YtvisSource:
        (tmp_path / "a.json").write_text(json.dumps(content))
        return open_ytvis(tmp_path, tmp_path / "a.json", **options)

    return open_content


def read(source: YtvisSource) -> tuple[VideoRecord | None, list[Issue]]:
    record, issues = source.read(0)
    return record, source.issues + issues


class TestTracks:
    def test_segmentations_of_all_kinds_on_the_frames_they_are_for(self, open_file):
        source = open_file(tracks(track(70, SQUARE, None, compressed()), track(71, None, UNCOMPRESSED, [])))
        record, issues = read(source)
        assert issues == []
        assert (record.video_id, record.height, record.width) == ("dog", HEIGHT, WIDTH)
        assert [f.stem for f in record.frames] == ["0", "5", "10"]
        assert record.annotated is None
        assert [(o.object_id, o.original_id, o.category) for o in record.objects] == [(1, 70, "dog"), (2, 71, "dog")]
        assert [list(record.masks(t)) for t in range(3)] == [[1], [2], [1]]
        for t in range(3):
            assert all(np.array_equal(mask, SQUARE_MASK) for mask in record.masks(t).values())

    def test_names_of_videos(self, open_file):
        videos = [
            {"id": 1, "file_names": ["dog/0.png"]},
            {"id": 2, "file_names": ["dog/1.png"]},
            {"id": 3, "file_names": ["dog/0.png", "cat\\0.png"]},
            {"id": 4, "file_names": ["cat/0.png"], "name": "puss"},
        ]
        source = open_file(tracks(videos=videos))
        assert [video.name for video in source.videos] == ["dog", "dog_2", "3", "puss"]
        assert len(open_file(tracks(videos=videos), videos=["puss", "3"])) == 2
        with refuses("data.no-such-video", "'pus'", "puss"):
            open_file(tracks(videos=videos), videos=["pus"])

    def test_objects_never_seen_and_crowds_are_left_out(self, open_file):
        crowd = track(3, SQUARE, None, None, iscrowd=1)
        nothing = compressed(np.zeros((HEIGHT, WIDTH), bool))
        source = open_file(tracks(track(1, SQUARE, None, None), track(2, nothing, None, None), crowd))
        record, issues = read(source)
        assert [o.object_id for o in record.objects] == [1]
        assert {(f.severity, f.problem) for f in issues} == {
            ("repaired", "crowd annotations"), ("repaired", "objects that are never seen"),
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("annotation", "message"),
        [
            (track(9, SQUARE), "annotation 9: has 1 segmentations, its video has 3 frames"),
            (track(9, "x" * 500, None, None, segmentations="x"), "annotation 9: has no list of segmentations"),
            (track(9, None, [[1, 2, 3]], None), "annotation 9, frame 1: polygon 1 has an odd number"),
            (track(9, None, None, {"size": [8, 6], "counts": [48]}), "annotation 9, frame 2: the RLE's size is [8, 6]"),
            (7, "annotation at [1]: is not an object"),
        ],
    )
    def test_damage_is_told_by_annotation_and_frame(self, open_file, annotation, message):
        record, issues = read(open_file(tracks(track(1, SQUARE, SQUARE, None), annotation)))
        assert [o.object_id for o in record.objects] == [1], "the sound one stays"
        errors = [str(f) for f in issues if f.severity == "error"]
        assert len(errors) == 1
        assert f"a.json: {message}" in errors[0]

    @pytest.mark.parametrize("lost", [True, False], ids=["after a missing frame", "all frames there"])
    def test_a_damaged_segmentation_leaves_its_frame_unlabelled(self, open_file, lost):
        names = ["dog/lost.png" if lost else "dog/1.png", "dog/0.png", "dog/5.png", "dog/10.png"]
        video = {"id": 1, "file_names": names, "height": HEIGHT, "width": WIDTH}
        hurt, sound = track(1, None, SQUARE, [[1, 2, 3]], None), track(2, None, SQUARE, SQUARE, SQUARE)
        record, _ = read(open_file(tracks(hurt, sound, videos=[video])))
        assert [record.frames[t].stem for t in sorted(record.annotated)] == (["0", "10"] if lost else ["1", "0", "10"])
        assert [list(record.masks(t)) for t in range(len(record))][-3:] == [[1, 2], [], [2]]

    @pytest.mark.parametrize(
        ("video", "message"),
        [
            ({"id": 2, "file_names": ["../x.png"]}, "video 2: file_names must be a list of paths within"),
            ({"id": 2, "file_names": []}, "video 2: file_names must be"),
            ({"file_names": ["a.png"]}, "has no id"),
            ({"id": 1, "file_names": ["a.png"]}, "two videos have this id"),
        ],
    )
    def test_damaged_videos(self, open_file, video, message):
        sound = {"id": 1, "file_names": ["dog/0.png"]}
        source = open_file(tracks(track(1, SQUARE), videos=[sound, video]))
        assert len(source) == 1
        assert message in str(source.issues[0])

    def test_frames_of_another_size_than_the_file_says(self, open_file):
        video = {"id": 1, "file_names": ["dog/0.png"], "height": 600, "width": 800}
        record, issues = read(open_file(tracks(track(1, SQUARE), videos=[video])))
        assert record is None
        assert "its frames are 8×6 pixels, the JSON says 800×600" in str(issues[0])

    def test_a_missing_frame_is_left_out_with_its_labels(self, open_file):
        video = {"id": 1, "file_names": ["dog/0.png", "dog/lost.png", "dog/10.png"]}
        record, (issue,) = read(open_file(tracks(track(1, None, SQUARE, SQUARE), videos=[video])))
        assert [f.stem for f in record.frames] == ["0", "10"]
        assert [list(record.masks(t)) for t in range(2)] == [[], [1]]
        assert "lost.png: no such file" in str(issue)


class TestImages:
    def test_tracks_keep_their_numbers(self, open_file):
        content = images(piece(1, 11, 4), piece(2, 12, 4), piece(3, 12, 2, UNCOMPRESSED))
        record, issues = read(open_file(content))
        assert issues == []
        assert [(o.object_id, o.original_id, o.category) for o in record.objects] == [
            (2, None, "dog"),
            (4, None, "dog"),
        ]
        assert [list(record.masks(t)) for t in range(2)] == [[4], [2, 4]]

    @pytest.mark.parametrize("ids", [[0, 1], ["left", "right"]])
    def test_other_ids_are_numbered(self, open_file, ids):
        record, _ = read(open_file(images(piece(1, 11, ids[1]), piece(2, 12, ids[0]))))
        assert [(o.object_id, o.original_id) for o in record.objects] == [(1, ids[0]), (2, ids[1])]

    @pytest.mark.parametrize(
        "more", [{"instance_id": 5}, {"attributes": {"track_id": 5, "occluded": False}}, {"track_id": "5"}]
    )
    def test_where_tools_put_the_track(self, open_file, more):
        record, issues = read(open_file(images({**piece(1, 11, None), **more}, piece(2, 12, 5))))
        assert issues == []
        assert [o.object_id for o in record.objects] == [5]

    def test_frames_are_ordered_by_frame_id_else_by_name(self, open_file):
        listed = [image(1, "dog/10.png", 0), image(2, "dog/0.png", 1), image(3, "dog/5.png", 2)]
        record, _ = read(open_file(images(piece(1, 1, 1), piece(2, 3, 1), listed=listed)))
        assert [f.stem for f in record.frames] == ["10", "0", "5"]
        assert [list(record.masks(t)) for t in range(3)] == [[1], [], [1]]
        unnumbered = [{**entry, "frame_id": None} for entry in listed]
        record, _ = read(open_file(images(piece(1, 1, 1), piece(2, 3, 1), listed=unnumbered)))
        assert [f.stem for f in record.frames] == ["0", "5", "10"]

    def test_videos_by_id_with_their_names_or_by_folder(self, open_file):
        listed = [image(1, "dog/0.png", 0, 7), image(2, "cat/0.png", 0, 8)]
        named = [{"id": 7, "name": "the dog"}, {"id": 8}]
        source = open_file(images(piece(1, 1, 1), listed=listed, videos=named))
        assert [video.name for video in source.videos] == ["the dog", "cat"]
        by_folder = [{**entry, "video_id": None} for entry in listed]
        source = open_file(images(piece(1, 1, 1), listed=by_folder))
        assert [video.name for video in source.videos] == ["dog", "cat"]

    def test_parts_of_an_object_on_one_image_are_one_mask(self, open_file):
        other = [[5, 4, 7, 4, 7, 6, 5, 6]]
        record, _ = read(open_file(images(piece(1, 11, 1), piece(2, 11, 1, other), piece(3, 12, 1))))
        assert record.masks(0)[1].sum() == 6 + 4

    def test_images_without_annotations_are_frames_without_objects(self, open_file):
        listed = [image(1, "dog/0.png", 0), image(2, "dog/1.png", 1), image(3, "dog/5.png", 2)]
        record, (issue,) = read(open_file(images(piece(1, 1, 1), listed=listed)))
        assert record.is_annotated(2)
        assert (issue.severity, issue.problem) == (
            "note", "videos with annotations on less than half of their frames",
        )  # fmt: skip

    @pytest.mark.parametrize("annotation", [piece(9, 12, None), piece(9, 12, 1, "x")], ids=["no track", "no mask"])
    def test_a_damaged_annotation_leaves_its_frame_unlabelled(self, open_file, annotation):
        record, issues = read(open_file(images(piece(1, 11, 1), piece(2, 12, 2), piece(3, 11, 2), annotation)))
        assert [f.severity for f in issues] == ["error"]
        assert record.annotated == {0}
        assert [list(record.masks(t)) for t in range(2)] == [[1, 2], []]

    def test_an_id_of_two_images_is_left_out_with_its_annotations(self, open_file):
        listed = [image(1, "dog/0.png", 0), image(2, "dog/1.png", 1), image(2, "cat/0.png", 0, 2)]
        other = image(3, "cat/0.png", 1, 2)
        source = open_file(images(piece(1, 1, 1), piece(2, 2, 1), piece(3, 3, 5), listed=[*listed, other]))
        dog, cat = (source.read(index)[0] for index in range(2))
        assert [[f.stem for f in record.frames] for record in (dog, cat)] == [["0"], ["0"]]
        assert [[o.object_id for o in record.objects] for record in (dog, cat)] == [[1], [5]]
        assert [(f.severity, f.entry, f.problem) for f in source.issues] == [
            ("error", "image 2", "two files have this id: dog/1.png and cat/0.png"),
            ("repaired", "annotation 2", "annotations of unknown images"),
        ]

    def test_an_image_listed_twice_is_one_frame(self, open_file):
        listed = [image(1, "dog/0.png", 0), image(1, "dog/0.png", 0), image(2, "dog/1.png", 1)]
        record, (issue,) = read(open_file(images(piece(1, 1, 1), piece(2, 2, 1), listed=listed)))
        assert [f.stem for f in record.frames] == ["0", "1"]
        assert (issue.severity, issue.problem) == ("repaired", "images listed more than once")

    def test_crowds_are_objects_where_there_is_nothing_else(self, open_file):
        record, issues = read(open_file(images(piece(1, 11, 1, iscrowd=1), piece(2, 12, 1, iscrowd=1))))
        assert (len(record.objects), issues) == (1, [])

    @pytest.mark.parametrize(
        ("annotation", "severity", "message"),
        [
            (piece(9, 11, None), "error", "annotation 9: has no track_id or instance_id"),
            (piece(9, 99, 1), "repaired", "annotation 9: annotations of unknown images"),
            (piece(9, 11, 8, []), "repaired", "annotation 9: annotations without segmentation"),
            (piece(9, 11, 8, "x"), "error", "annotation 9 (dog/0.png): the segmentation is of type str"),
        ],
    )
    def test_damage_is_told_by_annotation(self, open_file, annotation, severity, message):
        record, (issue, *_) = read(open_file(images(piece(1, 11, 1), piece(2, 12, 1), annotation)))
        assert [o.object_id for o in record.objects] == [1]
        assert issue.severity == severity
        assert message in str(issue)


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        ([], "data.not-annotations", "list"),
        ({"annotations": []}, "ytvis.not-ytvis", "'file_names'"),
        (tracks(annotations=None), "ytvis.not-ytvis", "'annotations'"),
        (images(images=3), "ytvis.not-ytvis", "'images'"),
        (images(listed=[{"id": 1, "file_name": "/etc/x.png"}]), "ytvis.no-videos", "file_name"),
    ],
)
def test_other_files_are_refused(open_file, content, code, fact):
    with refuses(code, fact):
        open_file(content)


def test_a_part_that_encloses_nothing_is_left_out(open_file):
    square = [[1, 1, 4, 1, 4, 4, 1, 4]]
    record, issues = read(open_file(tracks(track(1, square, [[2, 2], *square], None))))
    np.testing.assert_array_equal(record.masks(0)[1], record.masks(1)[1])
    assert [(i.severity, i.problem) for i in issues] == [("repaired", "parts of polygons with fewer than 3 points")]
