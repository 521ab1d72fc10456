"""Folders of frames and masks in all the layouts people have, and what is wrong in them told by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.records import Issue, VideoRecord
from src.data.writers import write_palette_png
from tests.errors import refuses
from tests.sources import open_davis

HEIGHT, WIDTH = 6, 8
IDS = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
IDS[1:3, 1:4], IDS[4:, 5:7] = 1, 2


def frame(path: Path, height: int = HEIGHT, width: int = WIDTH, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (width, height), "red").save(path, exif=exif)


def make(frames: Path, masks: Path | None, stems=("00000", "00001"), labelled=None, suffix: str = ".jpg") -> None:
    """A video with two objects on each of its labelled frames (None: all)."""
    for stem in stems:
        frame(frames / f"{stem}{suffix}")
    for stem in stems if labelled is None else labelled:
        if masks is not None:
            write_palette_png(masks / f"{stem}.png", IDS)


def read(source, index: int = 0) -> tuple[VideoRecord | None, list[Issue]]:
    return source.read(index)


def only(source) -> VideoRecord:
    assert len(source) == 1
    record, issues = source.read(0)
    assert issues == []
    assert record is not None
    return record


class TestLayouts:
    @pytest.mark.parametrize(
        ("frames", "masks", "img_folder", "ann_folder", "names"),
        [
            ("JPEGImages/{}", "Annotations/{}", "", None, ["a", "b"]),
            ("JPEGImages/{}", "Annotations/{}", "JPEGImages", None, ["a", "b"]),
            ("JPEGImages/{}", "Annotations/{}", "JPEGImages", "Annotations", ["a", "b"]),
            ("JPEGImages/{}", "Annotations/{}", "", "Annotations", ["a", "b"]),
            ("JPEGImages/{}", "Annotations/{}", "", "", ["a", "b"]),
            ("JPEGImages/{}", "Annotations/{}", "JPEGImages/a", None, ["a"]),
            ("JPEGImages/{}", "Annotations/{}", "JPEGImages/a", "Annotations/a", ["a"]),
            ("JPEGImages/480p/{}", "Annotations/480p/{}", "", None, ["a", "b"]),
            ("JPEGImages/480p/{}", "Annotations/480p/{}", "JPEGImages/480p", None, ["a", "b"]),
            ("JPEGImages/480p/{}", "Annotations/480p/{}", "JPEGImages/480p/a", None, ["a"]),
            ("JPEGImages/480p/{}", "Annotations/480p/{}", "JPEGImages", "Annotations", ["a", "b"]),
            ("JPEGImages/Full-Resolution/{}", "Annotations/Full-Resolution/{}", "", None, ["a", "b"]),
            ("JPEGImages/480p/{}", "Annotations/{}", "JPEGImages/480p", None, ["a", "b"]),
            ("JPEGImages_24fps/{}", "Annotations_6fps/{}", "", None, ["a", "b"]),
            ("JPEGImages_24fps/{}", "Annotations_6fps/{}", "JPEGImages_24fps", "Annotations_6fps", ["a", "b"]),
            ("{}/JPEGImages", "{}/Annotations", "", None, ["a", "b"]),
            ("{}/JPEGImages", "{}/Annotations", "a", None, ["a"]),
            ("{}/JPEGImages", "{}/Annotations", "a/JPEGImages", None, ["a"]),
            ("{}/JPEGImages", "{}/Annotations", "a/JPEGImages", "a/Annotations", ["a"]),
            ("site/{}/JPEGImages", "site/{}/Annotations", "", None, ["site/a", "site/b"]),
            ("img/patient1/{}", "annot/patient1/{}", "img", "annot", ["patient1/a", "patient1/b"]),
            ("img/patient1/{}", "annot/patient1/{}", "img", None, ["patient1/a", "patient1/b"]),
            ("img/patient1/{}", "annot/patient1/{}", "", None, ["patient1/a", "patient1/b"]),
            ("images/{}", "masks/{}", "images/a", None, ["a"]),
            ("some/{}", "other/{}", "some", "other", ["a", "b"]),
        ],
    )
    def test_videos_are_found(self, tmp_path, frames, masks, img_folder, ann_folder, names):
        for name in "ab":
            make(tmp_path / frames.format(name), tmp_path / masks.format(name))
        source = open_davis(tmp_path / img_folder, None if ann_folder is None else tmp_path / ann_folder)
        assert [video.name for video in source.videos] == names
        for index, name in enumerate(names):
            record, issues = read(source, index)
            assert issues == []
            assert (record.video_id, record.height, record.width, len(record)) == (name, HEIGHT, WIDTH, 2)
            assert record.annotated is None
            assert {i: m.sum() for i, m in record.masks(1).items()} == {1: 6, 2: 4}

    def test_480p_is_taken_of_several_resolutions_unless_another_is_named(self, tmp_path):
        for level, height in (("480p", 6), ("Full-Resolution", 12)):
            frame(tmp_path / "JPEGImages" / level / "a" / "0.jpg", height, 8)
            write_palette_png(tmp_path / "Annotations" / level / "a" / "0.png", np.ones((height, 8), np.uint8))
        assert only(open_davis(tmp_path)).height == 6
        assert only(open_davis(tmp_path / "JPEGImages")).height == 6
        assert only(open_davis(tmp_path / "JPEGImages/Full-Resolution")).height == 12

    def test_wanted_videos(self, tmp_path):
        for name in ("bear", "boat", "bus"):
            make(tmp_path / "JPEGImages" / name, tmp_path / "Annotations" / name)
        assert [v.name for v in open_davis(tmp_path, videos=["bus", "bear"]).videos] == ["bear", "bus"]
        with refuses("data.no-such-video", "'baot', nor 1 more", "boat"):
            open_davis(tmp_path, videos=["baot", "x"])

    @pytest.mark.parametrize("ann_folder", [None, "nowhere"])
    def test_what_is_missing_is_told(self, tmp_path, ann_folder):
        make(tmp_path / "frames" / "a", None)
        with refuses("data.missing-annotations" if ann_folder else "davis.no-videos"):
            open_davis(tmp_path / "frames", ann_folder)
        with refuses("data.missing-folder"):
            open_davis(tmp_path / "nowhere")


class TestFrames:
    def test_stems_order_and_gaps(self, tmp_path):
        stems = [f"frame_{number}" for number in (2, 7, 10, 100)]
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a", stems, suffix=".png")
        assert [f.stem for f in only(open_davis(tmp_path)).frames] == stems

    def test_only_frames_with_a_mask_are_annotated(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a", "012345", labelled="14")
        record = only(open_davis(tmp_path))
        assert record.annotated == {1, 4}
        assert [sum(s is not None for s in o.segmentations) for o in record.objects] == [2, 2]
        assert record.masks(0) == {}

    def test_an_object_may_come_late_vanish_and_come_back(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a", "0123")
        for stem in "02":
            write_palette_png(tmp_path / f"Annotations/a/{stem}.png", np.where(IDS == 2, 0, IDS))
        record = only(open_davis(tmp_path))
        assert [s is not None for s in record.objects[1].segmentations] == [False, True, False, True]
        assert record.annotated is None

    def test_a_damaged_frame_is_left_out_with_its_labels(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a", "0123")
        (tmp_path / "JPEGImages/a/1.jpg").write_bytes(b"no image")
        frame(tmp_path / "JPEGImages/a/2.jpg", HEIGHT, WIDTH + 1)
        record, issues = read(open_davis(tmp_path))
        assert [f.stem for f in record.frames] == ["0", "3"]
        assert all(len(o.segmentations) == 2 for o in record.objects)
        assert record.annotated is None
        assert [f.severity for f in issues] == ["error", "error"]
        assert "1.jpg: not an image" in str(issues[0])
        assert "2.jpg: the frame is 9×6 pixels, those before it 8×6" in str(issues[1])

    def test_a_folder_that_has_gone_is_told(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a")
        source = open_davis(tmp_path)
        (tmp_path / "JPEGImages/a").rename(tmp_path / "gone")
        record, (issue,) = read(source)
        assert record is None
        assert issue.severity == "error"

    @pytest.mark.parametrize(("labelled", "orient"), [((HEIGHT, WIDTH), False), ((WIDTH, HEIGHT), True)])
    def test_masks_tell_whether_frames_are_to_be_turned(self, tmp_path, labelled, orient):
        frame(tmp_path / "JPEGImages/a/0.jpg", orientation=6)
        write_palette_png(tmp_path / "Annotations/a/0.png", np.ones(labelled, np.uint8))
        record, issues = read(open_davis(tmp_path))
        assert (record.height, record.width) == labelled == record.frames[0].read().shape[:2]
        assert [f.severity for f in issues] == ([] if orient else ["repaired"])


class TestMasks:
    def test_folders_of_objects(self, tmp_path):
        """SA-V's validation set: masks overlap, ids start with 000; where an object has no mask it is away."""
        make(tmp_path / "JPEGImages_24fps/a", None, [f"{n:05d}" for n in range(6)])
        masks = tmp_path / "Annotations_6fps/a"
        write_palette_png(masks / "000/00000.png", np.ones_like(IDS))
        write_palette_png(masks / "000/00004.png", np.ones_like(IDS))
        write_palette_png(masks / "001/00000.png", (IDS == 2) * 255)
        record = only(open_davis(tmp_path))
        assert record.annotated == {0, 4}
        assert [(o.object_id, o.original_id) for o in record.objects] == [(1, "000"), (2, "001")]
        assert {i: m.sum() for i, m in record.masks(0).items()} == {1: 48, 2: 4}
        assert list(record.masks(4)) == [1]
        assert record.void == {}

    def test_numbers_are_the_files_own(self, tmp_path):
        make(tmp_path / "JPEGImages/a", None)
        write_palette_png(tmp_path / "Annotations/a/00000.png", IDS.astype(int) * 2001)
        record = only(open_davis(tmp_path))
        assert [(o.object_id, o.original_id) for o in record.objects] == [(2001, None), (4002, None)]

    def test_void_is_kept_apart(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a")
        write_palette_png(tmp_path / "Annotations/a/00001.png", np.where(IDS == 2, 255, IDS))
        record = only(open_davis(tmp_path))
        assert [o.object_id for o in record.objects] == [1, 2]
        assert list(record.masks(1)) == [1]
        assert np.array_equal(record.void[1].decode(), IDS == 2)

    def test_a_damaged_or_mis_sized_mask_leaves_its_frame_unlabelled(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a", "0123")
        (tmp_path / "Annotations/a/1.png").write_bytes(b"")
        write_palette_png(tmp_path / "Annotations/a/2.png", np.ones((3, 4), np.uint8))
        record, issues = read(open_davis(tmp_path))
        assert record.annotated == {0, 3}
        assert len(record) == 4
        assert [f.severity for f in issues] == ["error", "error"]
        assert "1.png: the file is empty" in str(issues[0])
        assert "2.png: the mask is 4×3 pixels, the frames are 8×6" in str(issues[1])

    def test_masks_without_a_frame(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a")
        write_palette_png(tmp_path / "Annotations/a/00009.png", IDS)
        record, (issue,) = read(open_davis(tmp_path))
        assert len(record) == 2
        assert (issue.severity, issue.entry) == ("repaired", "00009")

    def test_no_mask_belongs_to_a_frame(self, tmp_path):
        make(tmp_path / "JPEGImages/a", None, ["frame1"])
        write_palette_png(tmp_path / "Annotations/a/mask1.png", IDS)
        record, (issue,) = read(open_davis(tmp_path))
        assert record is None
        assert issue.severity == "error"
        assert "masks such as mask1, frames such as frame1" in str(issue)

    @pytest.mark.parametrize("empty", [True, False])
    def test_a_video_without_masks_or_objects_is_left_out(self, tmp_path, empty):
        make(tmp_path / "JPEGImages/a", None)
        make(tmp_path / "JPEGImages/b", tmp_path / "Annotations/b")
        if empty:
            write_palette_png(tmp_path / "Annotations/a/00000.png", IDS * 0)
        record, (issue,) = read(open_davis(tmp_path), 0)
        assert record is None
        assert issue.severity == "repaired"

    def test_the_largest_objects_are_kept(self, tmp_path):
        make(tmp_path / "JPEGImages/a", tmp_path / "Annotations/a")
        record, (issue,) = read(open_davis(tmp_path, max_objects=1))
        assert [o.object_id for o in record.objects] == [1]
        assert issue.problem == "objects beyond the 1 largest of their video"


class TestRealData:
    def test_puma(self, shared_data):
        source = open_davis(shared_data("vid_puma"))
        assert [video.name for video in source.videos] == ["caps", "chair"]
        caps, issues = source.read(0)
        assert issues == []
        assert (len(caps), caps.height, caps.width) == (87, 853, 480)
        assert caps.annotated == {0, 14, 33, 43, 66}
        assert [s is not None for s in caps.objects[1].segmentations].index(True) == 33
        chair, issues = source.read(1)
        assert issues == []
        assert (len(chair), chair.annotated, len(chair.objects)) == (60, None, 1)
        assert chair.frames[12].read().shape == (480, 720, 3)

    def test_vocal_folds(self, shared_data):
        folder = shared_data("vid_vocalfolds")
        record = only(open_davis(folder / "img", folder / "annot", videos=["patient1/seq1"]))
        assert (len(record), [o.object_id for o in record.objects]) == (32, [1, 2, 3, 4, 5])
        assert [f.stem for f in record.frames][:3] == ["0001", "0003", "0004"]
        with Image.open(folder / "annot/patient1/seq1/0004.png") as image:
            ids = np.array(image)
        assert all(np.array_equal(mask, ids == i) for i, mask in record.masks(2).items())
