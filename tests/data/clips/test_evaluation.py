"""What videos and stills are evaluated as."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from src.config import MotionConfig
from src.data.clips import evaluation_video
from src.data.records import RLE, VideoRecord
from src.data.synthetic import CELLS, SOURCE, make_videos
from tests.data.clips.videos import block, record


class TestEvaluationVideo:
    MOTION = MotionConfig(occlusion=0)

    def make(
        self, video: VideoRecord, index: int = 0, frames: int = 4, objects: int = 5, side: int = 1024
    ) -> VideoRecord:
        return evaluation_video(video, index, frames, objects, side, self.MOTION)

    def test_a_video_is_evaluated_as_it_is(self):
        video = make_videos(SOURCE, 1, 0, frames=3, side=48).videos[0]
        assert self.make(video) is video

    def test_a_still_becomes_the_same_clip_every_time(self):
        still = make_videos(CELLS, 1, 0, frames=1, side=48).videos[0]
        one, two = self.make(still), self.make(still)
        assert len(one) == 4
        for t in range(4):
            assert np.array_equal(one.frames[t].read(), two.frames[t].read())
            masks, again = one.masks(t), two.masks(t)
            assert masks.keys() == again.keys()
            assert all(np.array_equal(masks[i], again[i]) for i in masks)
        assert not np.array_equal(one.frames[3].read(), self.make(still, index=1).frames[3].read())

    def test_void_areas_move_along_and_change_nothing_else(self):
        still = make_videos(CELLS, 1, 0, frames=1, side=48).videos[0]
        void = replace(still, void={0: RLE.encode(block(30, 30, 16, 16, 48))})
        clip, without = self.make(void), self.make(still)
        assert clip.void[0].decode().sum() == 16 * 16 and len(clip.void) == 4 and without.void == {}
        assert clip.void[3].decode().any() and (clip.void[3].decode() != clip.void[0].decode()).any()
        assert all(np.array_equal(clip.masks(t)[i], mask) for t in range(4) for i, mask in without.masks(t).items())

    def test_its_first_frame_is_the_still(self):
        still = make_videos(CELLS, 1, 0, frames=1, side=48).videos[0]
        clip = self.make(still, objects=99)
        assert np.array_equal(clip.frames[0].read(), still.frames[0].read())
        true = still.masks(0)
        assert clip.masks(0).keys() == true.keys()
        assert all(np.array_equal(mask, true[i]) for i, mask in clip.masks(0).items())

    def test_a_still_without_objects_is_evaluated_as_it_is(self):
        still = replace(make_videos(CELLS, 1, 0, frames=1, side=48).videos[0], objects=[])
        assert self.make(still) == still

    def test_the_largest_objects_are_kept_largest_first(self):
        still = record([[block(0, 0, 3, 3)], [block(10, 0, 9, 9)], [block(0, 20, 5, 5)], [block(20, 20, 5, 5)]])
        clip = self.make(still, objects=3)
        assert [o.object_id for o in clip.objects] == [2, 3, 4]
        assert [o.category for o in clip.objects] == ["kind 2", "kind 3", "kind 4"]

    def test_large_stills_are_scaled_down(self):
        clip = self.make(record([[block(8, 8, 16, 16, 64)]], side=64), side=32)
        assert (clip.height, clip.width) == (32, 32)
        assert clip.frames[0].read().shape == (32, 32, 3)
        assert np.array_equal(clip.masks(0)[1], block(4, 4, 8, 8, 32))

    def test_an_object_too_small_to_see_after_scaling_is_left_out(self):
        clip = self.make(record([[block(0, 0, 16, 16, 64)], [block(40, 40, 1, 1, 64)]], side=64), side=16)
        assert [o.object_id for o in clip.objects] == [1]

    def test_an_object_that_leaves_is_absent_there(self):
        away = MotionConfig(translate=1, degrees=0, scale=0, shear=0, elastic=0, occlusion=0)
        still = record([[block(0, 0, 4, 4)]])
        tracks = [evaluation_video(still, i, 6, 5, 99, away).objects[0].segmentations for i in range(6)]
        assert all(track[0] is not None for track in tracks)
        assert any(track[-1] is None for track in tracks)
