"""Batches of clips."""

from __future__ import annotations

import numpy as np

from src.core.errors import UserError
from src.data.clips import ClipBatch, collate
from tests.data.clips.videos import SIDE, block, draw, moving, record, sparse


class TestBatch:
    def test_objects_know_their_clip(self):
        clips = [draw(record([[block(i, 2, 6, 6)] for i in range(n)]), frames=2, max_objects=9) for n in (2, 1, 3)]
        batch = ClipBatch.collate(clips)
        assert batch.video_of_object.tolist() == [0, 0, 1, 2, 2, 2]
        assert batch.frames_BTHWC.shape == (3, 2, SIDE, SIDE, 3)
        assert batch.masks_TOHW.shape == (2, 6, SIDE, SIDE)
        assert np.array_equal(batch.masks_TOHW[:, 3:], clips[2].masks_TOHW)

    def test_objects_know_which_frames_of_their_clip_are_annotated(self):
        whole = moving(3)
        clips = [draw(video, frames=3, max_objects=9) for video in (whole, sparse(whole, 0, 2))]
        assert ClipBatch.collate(clips).annotated_TO.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]

    def test_the_first_error_stands_for_the_batch(self):
        clip = draw(record([[block(2, 2, 6, 6)]]))
        first, second = UserError("first"), UserError("second")
        assert collate([clip, first, second]) is first
