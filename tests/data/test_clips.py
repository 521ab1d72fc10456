"""Clips are cut from videos and made from stills; every draw depends on (seed, epoch, clip) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from src.config import ClipConfig, MotionConfig
from src.data.clips import Clip, ClipBatch, ClipDataset, EpochSampler, collate, draw_clip, evaluation_video
from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.synthetic import CELLS, SOURCE, make_videos
from src.errors import UserError

STILL = MotionConfig(degrees=0, translate=0, scale=0, shear=0, brightness=0, contrast=0, elastic=0, occlusion=0, flip=0)
SIDE = 32


def block(x0: int, y0: int, width: int, height: int, side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y0 : y0 + height, x0 : x0 + width] = True
    return mask


def record(masks: list[list[np.ndarray | None]], side: int = SIDE, name: str = "video") -> VideoRecord:
    """A video of noise with the objects' masks, object by object."""
    rng = np.random.default_rng(0)
    frames = [ArrayFrame(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), f"{t}") for t in range(len(masks[0]))]
    objects = [
        ObjectTrack(i, [None if mask is None else RLE.encode(mask) for mask in track], f"kind {i}")
        for i, track in enumerate(masks, 1)
    ]
    return VideoRecord(name, side, side, list(frames), objects)


class Unreadable:
    name = "bad.png"

    def read(self) -> np.ndarray:
        raise UserError("bad.png: not an image")


def draw(video: VideoRecord, seed: int = 0, size: int = SIDE, least: float = 0, **config) -> Clip:
    config.setdefault("motion", STILL)
    return draw_clip(video, ClipConfig(**config), size, least, np.random.default_rng(seed))


def same(a: Clip, b: Clip) -> bool:
    return np.array_equal(a.frames_THWC, b.frames_THWC) and np.array_equal(a.masks_TOHW, b.masks_TOHW)


class TestStills:
    def test_layout(self):
        clip = draw(record([[block(2, 2, 8, 8)], [block(20, 20, 6, 6)]]), frames=4, motion=MotionConfig(), size=16)
        assert (clip.frames_THWC.shape, clip.frames_THWC.dtype) == ((4, 16, 16, 3), np.uint8)
        assert (clip.masks_TOHW.shape, clip.masks_TOHW.dtype) == ((4, 2, 16, 16), bool)
        assert clip.name == "video"

    def test_one_frame_is_the_picture(self):
        video = record([[block(2, 2, 8, 8)]])
        clip = draw(video, frames=1, motion=MotionConfig(flip=0))
        assert np.array_equal(clip.frames_THWC[0], video.frames[0].read())
        assert np.array_equal(clip.masks_TOHW[0, 0], block(2, 2, 8, 8))

    def test_it_moves(self):
        clip = draw(record([[block(8, 8, 10, 10)]]), frames=4, motion=MotionConfig(flip=0))
        assert not np.array_equal(clip.masks_TOHW[0], clip.masks_TOHW[-1])

    def test_different_draws_differ(self):
        video = record([[block(8, 8, 10, 10)]])
        assert same(draw(video, 1, motion=MotionConfig()), draw(video, 1, motion=MotionConfig()))
        assert not same(draw(video, 1, motion=MotionConfig()), draw(video, 2, motion=MotionConfig()))

    def test_no_more_than_max_objects_and_every_one_gets_its_turn(self):
        masks = [block(4 * i, 4 * i, 4, 4) for i in range(6)]
        video = record([[mask] for mask in masks])
        seen = set()
        for seed in range(30):
            clip = draw(video, seed, max_objects=2)
            assert clip.masks_TOHW.shape[1] == 2
            found = [next(i for i, mask in enumerate(masks) if np.array_equal(mask, row)) for row in clip.masks_TOHW[0]]
            assert found[0] != found[1]
            seen.update(found)
        assert seen == set(range(6))
        assert draw(video, max_objects=9).masks_TOHW.shape[1] == 6

    @pytest.mark.parametrize(("least", "drawn"), [(0, 2), (2.0, 2), (2.01, 1), (5.0, 1), (5.01, 2)])
    def test_small_objects_are_drawn_only_where_there_is_no_other(self, least, drawn):
        """Blocks of 4 and 10 pixels a side are 2 and 5 at half the size."""
        video = record([[block(0, 0, 4, 4)], [block(10, 10, 10, 10)]])
        clip = draw(video, size=SIDE // 2, least=least, frames=1)
        assert clip.masks_TOHW.shape[1] == drawn
        if drawn == 1:
            assert clip.masks_TOHW[0, 0].sum() == 25


class TestVideos:
    @staticmethod
    def moving(frames: int) -> VideoRecord:
        return record([[block(2 + t, 4, 6, 6) for t in range(frames)], [block(2, 20, 5, 5 + t) for t in range(frames)]])

    def test_a_video_that_is_long_enough_is_cut_and_not_simulated(self):
        video = self.moving(6)
        pictures = [frame.read() for frame in video.frames]
        starts = set()
        for seed in range(20):
            clip = draw(video, seed, frames=3, motion=MotionConfig(flip=0))
            start = next(t for t in range(6) if np.array_equal(pictures[t], clip.frames_THWC[0]))
            starts.add(start)
            for t in range(3):
                assert np.array_equal(clip.frames_THWC[t], pictures[start + t])
                expected = {mask.tobytes() for mask in video.masks(start + t).values()}
                assert {mask.tobytes() for mask in clip.masks_TOHW[t]} == expected
        assert starts == {0, 1, 2, 3}

    def test_a_row_of_masks_is_one_object_on_every_frame(self):
        video = self.moving(4)
        clip = draw(video, frames=4)
        tracks = [np.stack([s.decode() for s in o.segmentations]) for o in video.objects]
        for row in range(2):
            assert any(np.array_equal(clip.masks_TOHW[:, row], track) for track in tracks)

    def test_a_flip_mirrors_all_of_it(self):
        video = self.moving(3)
        plain, flipped = draw(video, frames=3), draw(video, frames=3, motion=MotionConfig(flip=1))
        assert np.array_equal(flipped.frames_THWC, plain.frames_THWC[:, :, ::-1])
        assert np.array_equal(flipped.masks_TOHW, plain.masks_TOHW[..., ::-1])

    def test_a_video_that_is_too_short_is_simulated_from_one_frame(self):
        video = self.moving(3)
        clip = draw(video, frames=5)
        assert clip.frames_THWC.shape[0] == 5
        assert all(np.array_equal(frame, video.frames[0].read()) for frame in clip.frames_THWC)

    def test_it_is_scaled_to_the_models_size(self):
        clip = draw(self.moving(3), frames=3, size=16)
        assert clip.frames_THWC.shape == (3, 16, 16, 3)
        assert clip.masks_TOHW[0].any(axis=(1, 2)).all()

    def test_objects_are_drawn_that_appear_on_the_first_frame(self):
        here, there = block(2, 2, 6, 6), block(20, 20, 6, 6)
        video = record([[here] * 4, [None, None, there, there]])
        for seed in range(12):
            clip = draw(video, seed, frames=2)
            assert clip.masks_TOHW[0].any(axis=(1, 2)).all()
        assert {draw(video, seed, frames=2).masks_TOHW.shape[1] for seed in range(12)} == {1, 2}

    def test_an_object_may_leave_after_the_first_frame(self):
        clip = draw(record([[block(2, 2, 6, 6), None, None]]), frames=3)
        assert clip.masks_TOHW.any(axis=(2, 3)).tolist() == [[True], [False], [False]]

    def test_a_start_without_objects_is_moved_to_one_with_some(self):
        video = record([[None, None, None, block(2, 2, 6, 6), block(3, 2, 6, 6)]])
        for seed in range(10):
            clip = draw(video, seed, frames=2)
            assert np.array_equal(clip.frames_THWC[0], video.frames[3].read())
            assert np.array_equal(clip.masks_TOHW[1, 0], block(3, 2, 6, 6))
        late = record([[None, None, None, block(2, 2, 6, 6)]])
        assert draw(late, frames=3).masks_TOHW.any(axis=(1, 2, 3)).all(), "simulated from the last frame"


class TestDataset:
    CONFIG = ClipConfig(frames=3, max_objects=2)

    def dataset(self, seed: int = 0, clips_per_video: int = 2) -> ClipDataset:
        return ClipDataset(make_videos(CELLS, 3, 0, frames=1, side=48), self.CONFIG, 32, seed, clips_per_video)

    def test_a_clip_is_the_same_whenever_it_is_drawn(self):
        one, two = self.dataset(), self.dataset()
        _ = two[0, 5], two[3, 1]  # other draws in between change nothing
        for key in ((0, 0), (0, 5), (7, 2)):
            assert same(one[key], two[key])

    def test_clips_epochs_and_seeds_differ(self):
        clips = [self.dataset()[0, 0], self.dataset()[0, 1], self.dataset()[1, 0], self.dataset(seed=1)[0, 0]]
        assert clips[0].name == clips[1].name
        assert not any(same(clips[i], clips[j]) for i in range(4) for j in range(i))

    def test_every_video_gives_its_clips(self):
        dataset = self.dataset()
        assert len(dataset) == 6
        assert [dataset[0, i].name for i in range(6)] == [v.video_id for v in dataset.data.videos for _ in range(2)]

    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    def test_any_number_of_loader_processes_gives_the_same_batches(self, workers):
        def batches(num_workers: int) -> list[ClipBatch]:
            sampler = EpochSampler(6, seed=0)
            sampler.epoch = 2
            return list(DataLoader(self.dataset(), 4, sampler=sampler, collate_fn=collate, num_workers=num_workers))

        for alone, parallel in zip(batches(0), batches(workers), strict=True):
            assert alone.names == parallel.names
            assert torch.equal(alone.frames_BTHWC, parallel.frames_BTHWC)
            assert torch.equal(alone.masks_TOHW, parallel.masks_TOHW)
            assert torch.equal(alone.video_of_object, parallel.video_of_object)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_file_that_cannot_be_read_comes_out_of_the_loader_as_its_own_error(self, workers):
        good = make_videos(CELLS, 1, 0, frames=1, side=48).videos[0]
        bad = VideoRecord("bad", 48, 48, [Unreadable()], good.objects)
        dataset = ClipDataset(DataSet("x", [good, bad]), self.CONFIG, 32, 0)
        loader = DataLoader(dataset, 2, sampler=EpochSampler(2, 0), collate_fn=collate, num_workers=workers)
        (found,) = list(loader)
        assert isinstance(found, UserError)
        assert str(found) == "bad.png: not an image"


class TestBatch:
    def test_objects_know_their_clip(self):
        clips = [draw(record([[block(i, 2, 6, 6)] for i in range(n)]), frames=2, max_objects=9) for n in (2, 1, 3)]
        batch = ClipBatch.collate(clips)
        assert batch.video_of_object.tolist() == [0, 0, 1, 2, 2, 2]
        assert batch.frames_BTHWC.shape == (3, 2, SIDE, SIDE, 3)
        assert batch.masks_TOHW.shape == (2, 6, SIDE, SIDE)
        assert np.array_equal(batch.masks_TOHW[:, 3:], clips[2].masks_TOHW)

    def test_the_first_error_stands_for_the_batch(self):
        clip = draw(record([[block(2, 2, 6, 6)]]))
        first, second = UserError("first"), UserError("second")
        assert collate([clip, first, second]) is first


class TestSampler:
    def test_every_clip_once_in_an_order_of_the_epoch(self):
        sampler = EpochSampler(20, seed=3)
        orders = []
        for epoch in (0, 1, 0):
            sampler.epoch = epoch
            drawn = list(sampler)
            assert {e for e, _ in drawn} == {epoch}
            orders.append([i for _, i in drawn])
        assert sorted(orders[0]) == list(range(20))
        assert orders[0] == orders[2] != orders[1]
        assert [i for _, i in EpochSampler(20, seed=4)] != orders[0]

    def test_it_begins_after_the_clips_that_were_done(self):
        sampler = EpochSampler(10, seed=0)
        whole = list(sampler)
        sampler.skip = 4
        assert list(sampler) == whole[4:]
        assert len(sampler) == 6

    def test_nothing_is_left_after_all_of_them(self):
        sampler = EpochSampler(10, seed=0)
        sampler.skip = 10
        assert list(sampler) == []
        assert len(sampler) == 0


class TestEvaluationVideo:
    MOTION = MotionConfig(occlusion=0, flip=1)

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

    def test_its_first_frame_is_the_still_and_not_mirrored(self):
        still = make_videos(CELLS, 1, 0, frames=1, side=48).videos[0]
        clip = self.make(still, objects=99)
        assert np.array_equal(clip.frames[0].read(), still.frames[0].read())
        true = still.masks(0)
        assert clip.masks(0).keys() == true.keys()
        assert all(np.array_equal(mask, true[i]) for i, mask in clip.masks(0).items())

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
