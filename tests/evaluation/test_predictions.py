"""Saved masks, scored again from the files as the official tools do, give the numbers of the evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import MotionConfig
from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.synthetic import CELLS, SOURCE, make_video, make_videos
from src.data.writers import write_palette_png
from src.evaluation.domains import Domain
from src.evaluation.predictions import object_folders, refuse_overlap, write_masks
from src.evaluation.results import DomainResult
from src.tasks.tracking.evaluation import evaluate_domain
from tests.errors import refuses
from tests.evaluation import reference
from tests.sources import open_davis


@pytest.fixture(scope="module")
def videos() -> DataSet:
    """Objects that are there from the start, that go, that come late, numbered within the first frame's and above."""
    first, second = (make_video(SOURCE, seed, 7, 48) for seed in (4, 11))
    a, b = first.objects[:2]
    later = [None, None, *b.segmentations[2:]]
    gone = [*a.segmentations[:3], None, None, None, None]
    return DataSet(
        "videos",
        [
            VideoRecord("one", 48, 48, first.frames, [ObjectTrack(2, a.segmentations), ObjectTrack(1, later)]),
            VideoRecord("two", 48, 48, second.frames, second.objects),
            VideoRecord("three", 48, 48, first.frames, [ObjectTrack(1, gone), ObjectTrack(5, later)]),
        ],
    )


def evaluated(model, data: DataSet, protocol: str, folder: Path) -> DomainResult:
    domain = Domain("d", data, 5, 3, 48, MotionConfig(), protocol)
    return evaluate_domain(model, domain, "box", masks=folder)


def write_truth(folder: Path, data: DataSet, per_object: bool) -> None:
    """True masks as DAVIS (one object per pixel) or SA-V has them; annotated frames only."""
    for video in data.videos:
        for t, source in enumerate(video.frames):
            if not video.is_annotated(t):
                continue
            ids_HW, masks = np.zeros((video.height, video.width), int), video.masks(t)
            for obj in video.objects:
                mask_HW = masks.get(obj.object_id, np.zeros_like(ids_HW, bool))
                ids_HW[mask_HW] = obj.object_id
                if per_object:
                    place = folder / video.video_id / str(obj.object_id)
                    write_palette_png(place / f"{source.stem}.png", mask_HW.astype(int))
            if not per_object:
                write_palette_png(folder / video.video_id / f"{source.stem}.png", ids_HW)


def test_davis_files_score_as_the_evaluation_says(model, videos, tmp_path):
    result = evaluated(model, videos, "davis", tmp_path / "predicted")
    write_truth(tmp_path / "true", videos, per_object=False)
    expected = reference.davis(tmp_path / "true", tmp_path / "predicted")
    assert {name: result.scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < expected["J"] < 1
    assert result.not_scored == 1, "object 5 of the third video comes later than DAVIS counts"


@pytest.mark.parametrize("protocol", ["davis", "sav", "after_prompt"])
def test_a_video_without_objects_changes_no_score(model, videos, protocol, tmp_path):
    second = videos.videos[1]
    alone = DataSet("two", [second])
    still = replace(second, video_id="still", frames=second.frames[:1], objects=[])
    both = DataSet("both", [replace(second, video_id="empty", objects=[]), second, still])
    result = evaluated(model, both, protocol, tmp_path / "both")
    assert result.scores == evaluated(model, alone, protocol, tmp_path / "alone").scores
    assert [video.video_id for video in result.videos] == ["two"]


@pytest.mark.parametrize("every", [1, 2])
def test_sav_files_score_as_the_evaluation_says(model, videos, every, tmp_path):
    frames = frozenset(range(0, 7, every))
    data = DataSet("sav", [replace(video, annotated=frames) for video in videos.videos])
    result = evaluated(model, data, "sav", tmp_path / "base" / "sav")
    write_truth(tmp_path / "true", data, per_object=True)
    for truth in (tmp_path / "true", tmp_path / "truth" / "sav"):  # the data's own, and what is saved beside
        expected = reference.sav(truth, tmp_path / "base" / "sav")
        assert {name: result.scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0 < expected["J"] < 1


def test_files_have_the_frames_names_sizes_and_a_palette(model, videos, tmp_path):
    evaluated(model, videos, "davis", tmp_path)
    image = Image.open(tmp_path / "one" / "00003.png")
    assert (image.mode, image.size) == ("P", (48, 48))
    assert {path.name for path in (tmp_path / "one").iterdir()} == {f"{t:05d}.png" for t in range(7)}
    late = [np.asarray(Image.open(path)).max() for path in (tmp_path / "three").iterdir()]
    assert max(late) <= 1, "DAVIS' tool stops at object 5, which it does not count"


def test_stills_and_objects_that_overlap_have_a_folder_each(model, tmp_path):
    stills = make_videos(CELLS, 2, 0, frames=1, side=64)
    result = evaluated(model, stills, "after_prompt", tmp_path)
    for video in result.videos:
        for object_id, masks in video.predicted.items():
            for t, mask in enumerate(masks):
                written = Image.open(tmp_path / video.video_id / str(object_id) / f"{t:05d}.png")
                assert np.array_equal(np.asarray(written) > 0, mask.decode())


def record(*masks: np.ndarray, ids: tuple[int, ...]) -> VideoRecord:
    objects = [ObjectTrack(i, [RLE.encode(mask)]) for i, mask in zip(ids, masks, strict=True)]
    return VideoRecord("v", 4, 4, [ArrayFrame(np.zeros((4, 4, 3), np.uint8), stem="f_07")], objects)


LEFT, MIDDLE = np.tile([1, 1, 0, 0], (4, 1)).astype(bool), np.tile([0, 1, 1, 0], (4, 1)).astype(bool)


@pytest.mark.parametrize(("number", "exclusive"), [(300, True), (3, False)])
def test_numbers_without_room_in_a_palette_have_a_folder_each(number, exclusive, tmp_path):
    video = record(LEFT, ~LEFT, ids=(1, number))
    write_masks(tmp_path, video, {1: [RLE.encode(LEFT)], number: [RLE.encode(~LEFT)]}, exclusive)
    for object_id, mask in ((1, LEFT), (number, ~LEFT)):
        written = Image.open(tmp_path / "v" / str(object_id) / "f_07.png")
        assert np.array_equal(np.asarray(written), mask)


@pytest.mark.parametrize("folders", [("000", "001"), ("1", "3"), ("0", "2"), ("cell", "007")])
def test_folders_of_objects_are_called_as_in_the_data(folders, tmp_path):
    for t in range(4):
        write_palette_png(tmp_path / "JPEGImages" / "v" / f"{t:05d}.png", np.zeros((4, 4), int))
        for folder, mask in zip(folders, (LEFT, MIDDLE), strict=True):
            write_palette_png(tmp_path / "Annotations" / "v" / folder / f"{t:05d}.png", mask.astype(int))
    video, issues = open_davis(tmp_path).read(0)
    assert issues == []
    predicted = {o.object_id: [RLE.encode(s.decode()) for s in o.segmentations] for o in video.objects}
    write_masks(tmp_path / "predicted", video, predicted, exclusive=False)
    assert sorted(path.name for path in (tmp_path / "predicted" / "v").iterdir()) == sorted(folders)
    scores = reference.sav(tmp_path / "Annotations", tmp_path / "predicted")
    assert scores["J"] == scores["F"] == 1


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (("left", "#ff0000"), ["left", "#ff0000"]),
        ((70, None), ["70", "2"]),
        ((2, None), ["1", "2"]),
        (("../a", "b"), ["1", "2"]),
        (("a/b", "b"), ["1", "2"]),
        (("a\\b", "b"), ["1", "2"]),
        (("..", "b"), ["1", "2"]),
        (("", "b"), ["1", "2"]),
        (("A", "a"), ["1", "2"]),
        ((7, 7), ["1", "2"]),
    ],
)
def test_ids_that_will_not_do_as_folders_are_replaced_by_numbers(ids, expected):
    video = record(LEFT, MIDDLE, ids=(1, 2))
    objects = [replace(obj, original_id=own) for obj, own in zip(video.objects, ids, strict=True)]
    assert list(object_folders(replace(video, objects=objects)).values()) == expected


@pytest.mark.parametrize("exclusive", [True, False])
def test_frames_whose_names_repeat_have_a_file_each(exclusive, tmp_path):
    frames = [ArrayFrame(np.zeros((4, 4, 3), np.uint8), stem="same")] * 2
    video = replace(record(LEFT, ids=(1,)), frames=frames, objects=[ObjectTrack(1, [RLE.encode(LEFT)] * 2)])
    write_masks(tmp_path, video, {1: [RLE.encode(LEFT), RLE.encode(~LEFT)]}, exclusive)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["00000.png", "00001.png"]


@pytest.mark.parametrize("name", ["../v", "/tmp/v"])
def test_no_video_is_written_outside_the_folder(name, tmp_path):
    video = replace(record(LEFT, ids=(1,)), video_id=name)
    with refuses("files.outside", repr(name)):
        write_masks(tmp_path / "masks", video, {1: [RLE.encode(LEFT)]}, False)
    assert not list(tmp_path.iterdir())


def test_davis_cannot_score_true_masks_that_overlap():
    refuse_overlap(record(LEFT, ~LEFT, ids=(1, 2)))
    refuse_overlap(record(LEFT, ids=(1,)))
    refuse_overlap(replace(record(LEFT, ids=(1,)), objects=[ObjectTrack(1, [None])]))
    refuse_overlap(replace(record(LEFT, MIDDLE, ids=(1, 2)), annotated=frozenset()))
    with refuses("evaluation.overlapping-masks"):
        refuse_overlap(record(LEFT, MIDDLE, ids=(1, 2)))
