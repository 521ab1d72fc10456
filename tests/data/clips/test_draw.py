"""Drawing clips: cut from videos, made from stills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import AugmentationConfig, ClipConfig, MotionConfig
from src.data.clips import ClipBatch
from src.data.clips.draw import sample_frames
from src.data.records import RLE, ArrayFrame, VideoRecord
from tests.data.clips.videos import (
    NO_AUGMENTATION,
    SIDE,
    STILL,
    block,
    counted,
    draw,
    flip_only,
    moving,
    record,
    same,
    sparse,
)
from tests.errors import refuses


class TestStills:
    def test_layout(self):
        clip = draw(record([[block(2, 2, 8, 8)], [block(20, 20, 6, 6)]]), frames=4, motion=MotionConfig(), size=16)
        assert (clip.frames_THWC.shape, clip.frames_THWC.dtype) == ((4, 16, 16, 3), np.uint8)
        assert (clip.masks_TOHW.shape, clip.masks_TOHW.dtype) == ((4, 2, 16, 16), bool)
        assert clip.name == "video"

    def test_one_frame_is_the_picture(self):
        video = record([[block(2, 2, 8, 8)]])
        clip = draw(video, frames=1, motion=MotionConfig())
        assert np.array_equal(clip.frames_THWC[0], video.frames[0].read())
        assert np.array_equal(clip.masks_TOHW[0, 0], block(2, 2, 8, 8))

    def test_its_picture_is_read_once(self):
        video, reads = counted(record([[block(2, 2, 8, 8)]]))
        draw(video, frames=5, augmentation=AugmentationConfig())
        assert reads == ["0"]

    def test_it_moves(self):
        clip = draw(record([[block(8, 8, 10, 10)]]), frames=4, motion=MotionConfig())
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
    def test_a_video_that_is_long_enough_is_cut_and_not_simulated(self):
        video = moving(6)
        pictures = [frame.read() for frame in video.frames]
        starts = set()
        for seed in range(20):
            clip = draw(video, seed, frames=3, motion=MotionConfig())
            start = next(t for t in range(6) if np.array_equal(pictures[t], clip.frames_THWC[0]))
            starts.add(start)
            for t in range(3):
                assert np.array_equal(clip.frames_THWC[t], pictures[start + t])
                expected = {mask.tobytes() for mask in video.masks(start + t).values()}
                assert {mask.tobytes() for mask in clip.masks_TOHW[t]} == expected
        assert starts == {0, 1, 2, 3}

    def test_a_row_of_masks_is_one_object_on_every_frame(self):
        video = moving(4)
        clip = draw(video, frames=4)
        tracks = [np.stack([s.decode() for s in o.segmentations]) for o in video.objects]
        for row in range(2):
            assert any(np.array_equal(clip.masks_TOHW[:, row], track) for track in tracks)

    def test_a_flip_mirrors_all_of_it(self):
        video = moving(3)
        plain, flipped = draw(video, frames=3), draw(video, frames=3, augmentation=flip_only(1.0))
        plain_again = draw(video, frames=3, augmentation=flip_only(0.0))
        assert same(plain, plain_again)
        assert np.array_equal(flipped.frames_THWC, plain.frames_THWC[:, :, ::-1])
        assert np.array_equal(flipped.masks_TOHW, plain.masks_TOHW[..., ::-1])

    def test_a_video_that_is_too_short_is_played_to_and_fro(self):
        video = moving(3)
        pictures = [frame.read() for frame in video.frames]
        paths = set()
        for seed in range(20):
            clip = draw(video, seed, frames=6)
            path = tuple(next(t for t in range(3) if np.array_equal(pictures[t], f)) for f in clip.frames_THWC)
            for t, masks_OHW in zip(path, clip.masks_TOHW, strict=True):
                assert {mask.tobytes() for mask in masks_OHW} == {mask.tobytes() for mask in video.masks(t).values()}
            assert clip.annotated_T.all()
            paths.add(path)
        assert paths == {(0, 1, 2, 1, 0, 1), (1, 2, 1, 0, 1, 2), (2, 1, 0, 1, 2, 1)}

    def test_only_the_frames_drawn_are_read_and_each_once(self):
        video, reads = counted(moving(9))
        draw(video, frames=3, augmentation=AugmentationConfig())
        assert len(reads) == len(set(reads)) == 3
        video, reads = counted(moving(2))
        draw(video, frames=6)
        assert sorted(reads) == ["0", "1"]

    def test_a_frame_of_another_size_is_named(self):
        video = moving(2)
        odd = ArrayFrame(np.zeros((20, 30, 3), np.uint8), "00001.jpg")
        with refuses("data.frame-size", "00001.jpg", "30×20", "32×32"):
            draw(replace(video, frames=[video.frames[0], odd]), frames=2)

    def test_it_is_scaled_to_the_models_size(self):
        clip = draw(moving(3), frames=3, size=16)
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
        clip = draw(late, frames=3)
        for frame, t in zip(clip.frames_THWC, (3, 2, 1), strict=True):
            assert np.array_equal(frame, late.frames[t].read())
        assert clip.masks_TOHW.any(axis=(1, 2, 3)).tolist() == [True, False, False]

    def test_an_object_may_vanish_and_come_back(self):
        mask = block(2, 2, 6, 6)
        clip = draw(record([[mask, None, mask], [None, mask, mask]]), frames=3)
        assert clip.masks_TOHW.any(axis=(2, 3)).tolist() == [[True, False], [False, True], [True, True]]

    def test_objects_too_thin_for_the_models_size_still_show_on_the_first_frame(self):
        thin = block(5, 0, 1, 32)
        for augmentation in (None, AugmentationConfig()):
            clip = draw(record([[thin] * 3]), size=8, frames=3, augmentation=augmentation)
            assert clip.masks_TOHW[0].any(axis=(1, 2)).all()

    def test_void_areas_are_background(self):
        video = moving(3)
        void = {t: RLE.encode(block(0, 0, 32, 32)) for t in range(3)}
        assert same(draw(video, frames=3), draw(replace(video, void=void), frames=3))


class TestPath:
    @staticmethod
    def paths(video: VideoRecord, count: int = 60, **config) -> set[tuple[int, ...]]:
        clip = ClipConfig(**config)
        return {tuple(sample_frames(video, clip, np.random.default_rng(seed)).tolist()) for seed in range(count)}

    @staticmethod
    def seen(frames: int, *, at: set[int] | None = None) -> VideoRecord:
        mask = block(2, 2, 6, 6)
        return record([[mask if at is None or t in at else None for t in range(frames)]])

    def test_steps_are_drawn_and_fit_the_video(self):
        paths = self.paths(self.seen(7), frames=3, max_stride=9)
        assert {path[1] - path[0] for path in paths} == {1, 2, 3}
        assert all(path[2] - path[1] == path[1] - path[0] for path in paths)
        assert {path[0] for path in paths if path[1] - path[0] == 3} == {0}
        assert {path[1] - path[0] for path in self.paths(self.seen(7), frames=3)} == {1}

    def test_backwards_is_a_chance(self):
        video = self.seen(4)
        assert self.paths(video, frames=4, reverse=0.0) == {(0, 1, 2, 3)}
        assert self.paths(video, frames=4, reverse=1.0) == {(3, 2, 1, 0)}
        assert self.paths(video, frames=4, reverse=0.5) == {(0, 1, 2, 3), (3, 2, 1, 0)}

    def test_it_begins_where_there_is_something_to_prompt(self):
        assert {path[0] for path in self.paths(self.seen(9, at={2, 6}), frames=3)} == {2, 6}

    def test_it_begins_on_an_annotated_frame_and_reaches_another(self):
        video = sparse(self.seen(13), 0, 4, 8, 12)
        assert self.paths(video, frames=5) == {(0, 1, 2, 3, 4), (4, 5, 6, 7, 8), (8, 9, 10, 11, 12)}
        assert self.paths(video, frames=3) == {(0, 2, 4), (4, 6, 8), (8, 10, 12)}, "steps grow to reach one"
        assert self.paths(video, frames=2) == {(0, 4), (4, 8), (8, 12)}

    def test_it_begins_where_another_one_follows(self):
        assert {path[0] for path in self.paths(sparse(self.seen(20), 0, 10, 12), frames=4)} == {10}
        assert {path[0] for path in self.paths(sparse(self.seen(20), 0, 10, 12), frames=4, reverse=1.0)} == {12}

    def test_nothing_to_prompt_is_an_error(self):
        with refuses("data.no-object", "video"):
            self.paths(sparse(self.seen(5), *()), frames=2)
        with refuses("data.no-object", "video"):
            self.paths(self.seen(5, at=set()), frames=2)

    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))),
        st.integers(1, 8),
        st.integers(1, 5),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.integers(0, 99),
    )
    def test_any_video_gives_a_path_that_can_teach(self, labels, frames, max_stride, reverse, seed):
        length, annotated = labels
        video = sparse(self.seen(length), *annotated)
        config = ClipConfig(frames=frames, max_stride=max_stride, reverse=reverse)
        path = sample_frames(video, config, np.random.default_rng(seed))
        assert len(path) == frames
        assert path.min() >= 0
        assert path.max() < length
        assert path[0] in annotated
        if frames > 1 and len(annotated) > 1:
            assert (set(path.tolist()) & annotated) - {path[0]}


class TestSparse:
    def test_frames_that_nobody_annotated_are_told(self):
        video = sparse(moving(9), 0, 2, 4, 6, 8)
        clip = draw(video, frames=5)
        assert clip.annotated_T.tolist() == [True, False, True, False, True]
        assert clip.masks_TOHW[1::2].any() == np.False_
        assert clip.masks_TOHW[::2].any(axis=(2, 3)).all()

    def test_a_single_annotated_frame_is_a_still(self):
        video, reads = counted(sparse(moving(9), 3))
        clip = draw(video, frames=4)
        assert reads == ["3"]
        assert clip.annotated_T.all()
        assert all(np.array_equal(frame, video.frames[3].read()) for frame in clip.frames_THWC)


class TestAugmentation:
    @pytest.mark.parametrize("frames", [1, 3], ids=["still", "video"])
    def test_masks_move_with_the_pixels(self, frames):
        """Objects are white on black, so that what is white shows where their masks should be."""
        masks = [[block(4 + t, 6, 10, 8) for t in range(frames)], [block(20, 18 + t, 6, 7) for t in range(frames)]]
        pictures = [
            255 * np.repeat((a | b)[..., None], 3, axis=2).astype(np.uint8) for a, b in zip(*masks, strict=True)
        ]
        video = replace(record(masks), frames=[ArrayFrame(picture) for picture in pictures])
        geometry = {"degrees": 25.0, "shear": 20.0, "scale": 0.2, "flip": 0.5}
        augmentation = NO_AUGMENTATION.model_copy(update=geometry)
        for seed in range(6):
            motion = MotionConfig(brightness=0, contrast=0, occlusion=0) if frames == 1 else STILL
            clip = draw(video, seed, frames=3, motion=motion, augmentation=augmentation)
            for frame, masks_OHW in zip(clip.frames_THWC, clip.masks_TOHW, strict=True):
                white = frame[..., 2] > 160  # brighter than the plain colour beyond the edges
                either = masks_OHW.any(axis=0)
                assert (white & either).sum() / (white | either).sum() > 0.8
            assert clip.masks_TOHW[0].any(axis=(1, 2)).all()

    def test_it_is_one_draw_for_the_whole_clip(self):
        """A video that stands still goes on standing still, but for the light of its frames."""
        video = record([[block(4, 4, 12, 12)] * 4])
        video = replace(video, frames=[video.frames[0]] * 4)
        steady = AugmentationConfig(frame_brightness=0, frame_contrast=0, frame_saturation=0)
        clip = draw(video, frames=4, augmentation=steady)
        assert all(np.array_equal(frame, clip.frames_THWC[0]) for frame in clip.frames_THWC)
        assert all(np.array_equal(mask, clip.masks_TOHW[0]) for mask in clip.masks_TOHW)
        flickering = draw(video, frames=4, augmentation=AugmentationConfig())
        assert not any(np.array_equal(frame, flickering.frames_THWC[0]) for frame in flickering.frames_THWC[1:])
        assert np.array_equal(flickering.masks_TOHW, clip.masks_TOHW)

    def test_draws_differ(self):
        video = record([[block(4, 4, 12, 12)] * 4])
        clips = [draw(video, seed, frames=4, augmentation=AugmentationConfig()) for seed in (0, 0, 1)]
        assert same(clips[0], clips[1])
        assert not same(clips[0], clips[2])


def test_void_areas_move_with_the_picture():
    void = RLE.encode(block(20, 20, 8, 8))
    still = replace(record([[block(4, 4, 8, 8)]]), void={0: void})
    clip = draw(still, frames=3, augmentation=flip_only(1.0))
    assert same(clip, draw(replace(still, void={}), frames=3, augmentation=flip_only(1.0)))
    np.testing.assert_array_equal(clip.void_THW, np.stack([block(20, 20, 8, 8)[:, ::-1]] * 3))


def test_void_areas_of_a_video_are_those_of_its_frames():
    video = moving(3)
    clip = draw(replace(video, void={1: RLE.encode(block(20, 20, 8, 8))}), frames=3)
    assert clip.void_THW.any(axis=(1, 2)).tolist() == [False, True, False]
    assert same(clip, draw(video, frames=3)) and draw(video, frames=3).void_THW is None
    batch = ClipBatch.collate([draw(video, frames=3), clip])
    assert batch.void_TBHW.any(-1).any(-1).tolist() == [[False, False], [False, True], [False, False]]
    assert [other.void_THW.any() for other in batch.clips()] == [False, True]


class TestObjectsThatAppearLater:
    """One object from the first frame on, one from the second, one on the last alone."""

    A, B, C = block(2, 2, 6, 6), block(20, 20, 6, 6), block(20, 2, 6, 6)
    VIDEO = record([[A, A, A, A], [None, B, B, B], [None, None, None, C]])

    def drawn(self, seed: int, **config):
        """A clip that begins with the video."""
        video = sparse(self.VIDEO, 0, 1, 2, 3)
        return next(c for s in range(seed, 99) if not (c := draw(video, s, frames=4, **config)).masks_TOHW[0, 1:].any())

    def test_they_are_drawn_with_the_frame_that_shows_them_first(self):
        clip = self.drawn(0, max_objects=3)
        assert clip.start_O.tolist() == [0, 1]
        assert clip.masks_TOHW.any(axis=(2, 3)).tolist() == [[True, False], [True, True], [True, True], [True, True]]
        np.testing.assert_array_equal(clip.masks_TOHW[1, 1], self.B)

    def test_one_object_is_on_the_first_frame_however_few_are_drawn(self):
        for seed in range(8):
            clip = draw(self.VIDEO, seed, frames=4, max_objects=1)
            assert clip.start_O is None and clip.masks_TOHW[0, 0].any()

    def test_without_them_clips_are_as_ever(self):
        alone = record([[self.A] * 4])
        assert draw(alone, frames=4).start_O is None
        assert ClipBatch.collate([draw(alone, frames=4)]).start_O is None

    def test_a_thin_one_shows_on_a_pixel_where_it_is_prompted(self):
        thin = record([[self.A] * 4, [None, *[block(20, 20, 1, 1)] * 3]])
        clip = next(c for s in range(99) if (c := draw(thin, s, size=8, frames=4)).start_O is not None)
        assert clip.masks_TOHW[1, 1].any()

    def test_a_batch_has_each_from_its_first_frame_on(self):
        clips = [draw(record([[self.A] * 4]), frames=4), self.drawn(0, max_objects=3)]
        batch = ClipBatch.collate(clips)
        first = batch.prompted_first()
        assert first.video_of_object.tolist() == [0, 1] and first.start_O is None
        assert torch.equal(first.masks_TOHW, batch.masks_TOHW[:, :2])
        ((clip, start, later),) = batch.prompted_later()
        assert (clip, start, later.video_of_object.tolist()) == (1, 1, [0])
        assert torch.equal(later.masks_TOHW[:, 0], batch.masks_TOHW[1:, 2]) and later.masks_TOHW[0].any()
        assert torch.equal(later.frames_BTHWC[0], batch.frames_BTHWC[1, 1:])
        assert later.seeds[0] not in batch.seeds
        assert [None if c.start_O is None else c.start_O.tolist() for c in batch.clips()] == [[0], [0, 1]]
