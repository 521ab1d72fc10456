"""The contact sheet shows the clips the trainer will see, in its order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from src.config import ClipConfig, DatasetConfig
from src.core.errors import UserError
from src.data.clips import ClipDataset, EpochSampler
from src.data.clips.preview import CAPTION, contact_sheet
from src.data.drawing import draw_masks
from src.data.records import DataSet, VideoRecord
from src.data.synthetic import SOURCE, make_videos
from tests.errors import refuses

SIDE = 64


def dataset(data: DataSet, length: int = 4) -> ClipDataset:
    return ClipDataset([data], DatasetConfig(clip=ClipConfig(frames=3)), length, SIDE, seed=0)


@pytest.fixture(scope="module")
def videos() -> DataSet:
    return make_videos(SOURCE, 3, 0, frames=5, side=SIDE)


def test_it_is_the_clips_with_their_masks_drawn_in(videos):
    clips = dataset(videos)
    sheet = contact_sheet(clips, 2, epoch=1)
    assert (sheet.shape, sheet.dtype) == ((2 * (CAPTION + SIDE), 3 * SIDE, 3), np.uint8)
    sampler = EpochSampler(len(clips), clips.seed)
    sampler.epoch = 1
    for row, key in zip(range(2), sampler, strict=False):
        clip = clips[key]
        top = row * (CAPTION + SIDE) + CAPTION
        for t in range(3):
            drawn = draw_masks(clip.frames_THWC[t], dict(enumerate(clip.masks_TOHW[t])))
            assert np.array_equal(sheet[top : top + SIDE, t * SIDE : (t + 1) * SIDE], drawn)
        assert sheet[top - CAPTION : top].any(), "the clip's name"


def test_frames_without_annotation_say_so(videos):
    (video,) = videos.videos[:1]
    blind = [replace(o, segmentations=[*o.segmentations[:1], None, *o.segmentations[2:]]) for o in video.objects]
    gap: VideoRecord = replace(video, objects=blind, annotated=frozenset({0, 2, 3, 4}))
    clips = dataset(DataSet("gap", [gap]), 12)
    keys = [key for key in EpochSampler(12, 0) if not clips[key].annotated_T[1]]
    assert keys, "some clip begins with the first frame"
    order = list(EpochSampler(12, 0))
    sheet = contact_sheet(clips, 12)
    top = order.index(keys[0]) * (CAPTION + SIDE) + CAPTION
    cell = sheet[top : top + SIDE, SIDE : 2 * SIDE]
    differs = (cell != clips[keys[0]].frames_THWC[1]).any(axis=-1)
    assert differs[: SIDE // 2].any(), "the words"
    assert not differs[SIDE // 2 :].any(), "nothing is drawn in"


def test_large_frames_are_scaled_down_and_no_more_rows_than_clips(videos):
    assert contact_sheet(dataset(videos, 2), 9, largest=32).shape == (2 * (CAPTION + 32), 3 * 32, 3)


def test_a_frame_that_cannot_be_read_is_told(videos):
    class Unreadable:
        name = "bad.png"

        def read(self) -> np.ndarray:
            raise UserError("bad.png: not an image", "image.unknown-type")

    bad = replace(videos.videos[0], frames=[Unreadable()] * 5)
    with refuses("image.unknown-type", "bad.png"):
        contact_sheet(dataset(DataSet("bad", [bad])), 1)
