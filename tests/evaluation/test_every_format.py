"""Ten videos in every format: the trainer gets the same batches, and evaluation gives the same scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.config import ClipConfig, DatasetConfig, ModelConfig, MotionConfig, NamedSplit
from src.data.checks.report import data_set
from src.data.checks.validate import check
from src.data.clips import ClipDataset, collate
from src.data.records import DataSet
from src.data.synthetic import CELLS, SOURCE, make_videos
from src.data.writers import write_coco, write_davis
from src.evaluation.domains import Domain
from src.models.sam2.build import build_model
from src.tasks.tracking.evaluation import evaluate_domain
from tests.sources import open_place
from tests.writers import write_folder, write_sav, write_tracked_coco, write_ytvis

FRAMES, SIDE = 6, 64


@pytest.fixture(scope="module")
def videos() -> DataSet:
    """Ten videos of two worlds, objects numbered without gaps; from the second on, one is away for some frames."""
    made = [*make_videos(SOURCE, 5, 0, FRAMES, SIDE).videos, *make_videos(CELLS, 5, 0, FRAMES, SIDE).videos]
    videos = []
    for index, video in enumerate(made):
        numbered = [replace(obj, object_id=number) for number, obj in enumerate(video.objects[:4], start=1)]
        if len(numbered) > 1:
            last = numbered[-1]
            seen = [None if t in (2, 3) else s for t, s in enumerate(last.segmentations)]
            numbered[-1] = replace(last, segmentations=seen)
        videos.append(replace(video, video_id=f"video{index}", objects=numbered))
    return DataSet("ten", videos)


def every_fourth(data: DataSet) -> DataSet:
    """The same, labelled on every fourth frame only, as SA-V is."""
    labelled = frozenset(range(0, FRAMES, 4))
    videos = []
    for video in data.videos:
        objects = [
            replace(obj, segmentations=[s if t in labelled else None for t, s in enumerate(obj.segmentations)])
            for obj in video.objects
        ]
        videos.append(replace(video, objects=objects, annotated=labelled))
    return DataSet(data.name, videos)


def stills(data: DataSet) -> DataSet:
    videos = []
    for video in data.videos:
        objects = [replace(obj, segmentations=obj.segmentations[:1]) for obj in video.objects]
        videos.append(replace(video, frames=video.frames[:1], objects=objects))
    return DataSet(data.name, videos)


def per_object(folder, data):
    write_davis(folder, data, per_object=True)


def lossless_sav(folder, data):
    write_sav(folder, data, lossless=True)


def lossless_coco(folder, data):
    write_coco(folder, data, quality=None)


def batches(data: DataSet) -> list:
    clips = ClipDataset([data], DatasetConfig(clip=ClipConfig(frames=4, max_objects=2)), len(data), SIDE, seed=3)
    return [collate([clips[epoch, index] for index in range(len(data))]) for epoch in range(2)]


def scores(data: DataSet) -> dict[str, float]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(image_size=SIDE))
    domain = Domain("ten", DataSet("ten", data.videos[3:7]), 4, 3, 1024, MotionConfig(), "after_prompt")
    return evaluate_domain(model, domain, "box").scores


@pytest.mark.parametrize(
    ("write", "as_written"),
    [
        (write_davis, None), (per_object, None), (write_ytvis, None), (write_tracked_coco, None),
        (lossless_sav, every_fourth), (lossless_coco, stills), (write_folder, stills),
    ],
    ids=["davis", "davis, a folder per object", "ytvis", "tracked coco", "sav", "coco", "folder"],
)  # fmt: skip
def test_batches_and_scores_are_the_same(write, as_written, videos, tmp_path):
    write(tmp_path, videos)
    source = open_place(NamedSplit(name="ten", img_folder=str(tmp_path)))
    read = data_set(source, check(source, workers=0))
    expected = as_written(videos) if as_written else videos
    for got, true in zip(batches(read), batches(expected), strict=True):
        assert torch.equal(got.frames_BTHWC, true.frames_BTHWC)
        assert torch.equal(got.masks_TOHW, true.masks_TOHW)
        assert torch.equal(got.annotated_TO, true.annotated_TO)
        assert torch.equal(got.video_of_object, true.video_of_object)
    assert scores(read) == scores(expected)


def test_the_objects_are_seen_to_leave_and_come_back(videos):
    away = [t for t, s in enumerate(videos.videos[-1].objects[-1].segmentations) if s is None]
    assert away == [2, 3]
    assert any((~batch.masks_TOHW.flatten(2).any(-1)).any() for batch in batches(videos))
    assert np.isfinite(list(scores(videos).values())).all()
