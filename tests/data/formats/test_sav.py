"""SA-V's videos with masklets: which frames they are for, and what is missing or damaged told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data.checks.validate import check
from src.data.decode.video_writer import VideoWriter
from src.data.formats.sav import STEP
from src.data.records import RLE, Issue
from tests.errors import refuses
from tests.sources import open_sav

HEIGHT, WIDTH, FRAMES = 32, 48, 10


def rle(left: int | None) -> dict[str, Any]:
    """A square at this column, or an empty mask."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if left is not None:
        mask[8:16, left : left + 8] = True
    return {"size": [HEIGHT, WIDTH], "counts": RLE.encode(mask).rle["counts"].decode()}


def masklets(**more: Any) -> dict[str, Any]:
    """Two overlapping objects, the second of which is away first."""
    return {
        "video_id": "sav_000001", "video_frame_count": float(FRAMES), "video_height": float(HEIGHT),
        "video_width": float(WIDTH), "masklet_id": [0, 1], "masklet_first_appeared_frame": [0.0, 1.0],
        "masklet": [[rle(0), rle(None)], [rle(4), rle(8)], [rle(8), rle(12)]], **more,
    }  # fmt: skip


def write(folder: Path, name: str = "sav_000001", kind: str = "manual", video: bool = True, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_{kind}.json").write_text(json.dumps(masklets(**more)))
    if video:
        with VideoWriter(folder / f"{name}.mp4") as writer:
            for t in range(FRAMES):
                picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
                picture[8:16, t : t + 8] = 200
                writer.write(picture)


def test_masks_lie_on_every_fourth_frame(tmp_path):
    write(tmp_path)
    source = open_sav(tmp_path)
    record, issues = source.read(0)
    assert issues == source.issues == []
    assert (record.video_id, len(record), record.height, record.width) == ("sav_000001", FRAMES, HEIGHT, WIDTH)
    assert record.annotated == {0, 4, 8}
    assert [(o.object_id, o.original_id) for o in record.objects] == [(1, 0), (2, 1)]
    assert [list(record.masks(t)) for t in (0, 4, 8)] == [[1], [1, 2], [1, 2]]
    assert (record.masks(4)[1] & record.masks(4)[2]).any(), "they may overlap"
    for t in record.annotated:
        bright = record.frames[t].read().mean(axis=2) > 100
        assert (bright & record.masks(t)[1]).sum() > 0.9 * record.masks(t)[1].sum(), "the frame is the one labelled"


def test_people_s_masklets_are_read_before_the_machine_s(tmp_path):
    write(tmp_path / "sav_000", "sav_000001", "manual")
    write(tmp_path / "sav_000", "sav_000001", "auto", masklet_id=[7, 8])
    write(tmp_path / "sav_001", "sav_000002", "auto", masklet_id=[7, 8])
    source = open_sav(tmp_path)
    assert [video.name for video in source.videos] == ["sav_000001", "sav_000002"]
    found = [[o.object_id for o in source.read(index)[0].objects] for index in range(2)]
    assert found == [[1, 2], [7, 8]]
    assert [video.name for video in open_sav(tmp_path, videos=["sav_000002"]).videos] == ["sav_000002"]


def test_videos_of_one_name_in_several_folders_are_called_by_their_paths(tmp_path):
    for folder, name in (("a", "clip"), ("b", "clip"), ("b", "other")):
        write(tmp_path / folder, name)
    source = open_sav(tmp_path)
    assert [video.name for video in source.videos] == ["a/clip", "b/clip", "other"]
    assert [source.read(index)[0].video_id for index in range(3)] == ["a/clip", "b/clip", "other"]
    assert [video.video.parent.name for video in open_sav(tmp_path, videos=["b/clip"]).videos] == ["b"]
    write(tmp_path, "other")
    assert len(open_sav(tmp_path)) == 4
    assert open_sav(tmp_path).issues == []


def test_masklets_may_lie_elsewhere(tmp_path):
    write(tmp_path / "videos")
    (tmp_path / "json").mkdir()
    (tmp_path / "videos" / "sav_000001_manual.json").rename(tmp_path / "json" / "sav_000001_manual.json")
    for place in (tmp_path / "json", tmp_path / "json" / "sav_000001_manual.json"):
        assert open_sav(tmp_path / "videos", place).read(0)[0] is not None
    with refuses("sav.no-masklets", "_manual.json"):
        open_sav(tmp_path / "videos")
    with refuses("data.missing-annotations"):
        open_sav(tmp_path / "videos", tmp_path / "none")


def test_a_video_without_masklets_is_left_out_and_told(tmp_path):
    write(tmp_path)
    (tmp_path / "sav_000009.mp4").write_bytes(b"")
    source = open_sav(tmp_path)
    assert len(source) == 1
    assert [(f.severity, f.entry) for f in source.issues] == [("repaired", "sav_000009.mp4")]


def test_masklets_without_a_video_name_the_file_to_get(tmp_path):
    write(tmp_path, video=False)
    record, (issue,) = open_sav(tmp_path).read(0)
    assert record is None
    assert issue.severity == "error"
    assert issue.file == str(tmp_path / "sav_000001.mp4")
    assert f"there is no video for {tmp_path / 'sav_000001_manual.json'}" in str(issue)


@pytest.mark.parametrize("before", [None, 2], ids=["no video", "too short a video"])
def test_a_video_that_is_put_right_is_checked_again(tmp_path, before):
    write(tmp_path / "all")
    (tmp_path / "json").mkdir()
    (tmp_path / "all" / "sav_000001_manual.json").rename(tmp_path / "json" / "sav_000001_manual.json")
    (tmp_path / "videos").mkdir()
    video = tmp_path / "videos" / "sav_000001.mp4"
    if before is not None:
        with VideoWriter(video) as writer:
            for _ in range(before):
                writer.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))

    def errors() -> list[Issue]:
        source = open_sav(tmp_path / "videos", tmp_path / "json")
        return check(source, workers=0, cache=tmp_path / "cache.json").errors

    assert len(errors()) == 1
    (tmp_path / "all" / "sav_000001.mp4").replace(video)
    assert errors() == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"video_width": 100.0}, "the video is 48×32 pixels, {json} says 100×32"),
        ({"masklet": [[rle(0)]] * 4}, "the video has 10 frames, 4 annotated ones in {json} go up to 12"),
        ({"masklet": None}, "no masklets"),
    ],
)
def test_what_does_not_fit_the_video_is_refused(tmp_path, more, message):
    write(tmp_path, **more)
    record, (issue,) = open_sav(tmp_path).read(0)
    assert record is None
    assert issue.severity == "error"
    assert message.format(json=tmp_path / "sav_000001_manual.json") in str(issue)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([rle(0)], "annotated frame 1: not a list of 2 masks"),
        (["x", rle(0)], "annotated frame 1, object 0: the segmentation is of type str"),
        ([rle(0), {"size": [1, 1], "counts": [1]}], "annotated frame 1, object 1: the RLE's size is [1, 1]"),
    ],
)
def test_a_damaged_mask_leaves_its_frame_unlabelled(tmp_path, masks, message):
    write(tmp_path, masklet=[[rle(0), rle(2)], masks, [rle(8), []]])
    record, (issue,) = open_sav(tmp_path).read(0)
    assert record.annotated == {0, 2 * STEP}
    assert list(record.masks(2 * STEP)) == [1], "an empty entry is an object that is away"
    assert message in str(issue)


def test_a_video_or_json_that_cannot_be_read_is_told(tmp_path):
    write(tmp_path)
    (tmp_path / "sav_000001.mp4").write_bytes(b"no video" * 9)
    record, (issue,) = open_sav(tmp_path).read(0)
    assert record is None
    assert "sav_000001.mp4: cannot be read as a video" in str(issue)
    (tmp_path / "sav_000001_manual.json").write_text("{")
    assert "not valid JSON" in str(open_sav(tmp_path).read(0)[1][0])


def test_an_object_that_is_never_seen_is_left_out(tmp_path):
    write(tmp_path, masklet=[[rle(0), rle(None)]])
    record, (issue,) = open_sav(tmp_path).read(0)
    assert [o.object_id for o in record.objects] == [1]
    assert (issue.severity, issue.entry) == ("repaired", "object 1")


def test_real_videos(shared_data):
    source = open_sav(shared_data("sav"))
    by_name = {video.name: source.read(index) for index, video in enumerate(source.videos)}
    record, issues = by_name["sav_900001"]
    assert issues == []
    assert (len(record), record.height, record.width) == (40, 480, 854)
    assert record.annotated == frozenset(range(0, 40, 4))
    assert record.frames[36].read().shape == (480, 854, 3)
    record, (issue,) = by_name["sav_000001"]
    assert record is None
    assert "sav_000001.mp4" in str(issue)
