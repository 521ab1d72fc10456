"""Clips are cut from videos and made from stills; every draw depends on (seed, epoch, clip) alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from src.config import AugmentationConfig, ClipConfig, DatasetConfig, DomainConfig, MotionConfig, SplitConfig
from src.core.errors import UserError
from src.data.clips import (
    BatchSampler,
    Clip,
    ClipBatch,
    ClipDataset,
    EpochSampler,
    collate,
    evaluation_video,
    sample_clip,
)
from src.data.clips.dataset import split_by_weight
from src.data.clips.draw import sample_frames
from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.synthetic import CELLS, SOURCE, make_videos
from tests.errors import refuses

STILL = MotionConfig(degrees=0, translate=0, scale=0, shear=0, brightness=0, contrast=0, elastic=0, occlusion=0)
NO_AUGMENTATION = AugmentationConfig(**dict.fromkeys(AugmentationConfig.model_fields, 0))
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


@dataclass(frozen=True)
class Counted:
    """A frame that notes when it is read."""

    pixels: np.ndarray
    name: str
    reads: list[str]

    def read(self) -> np.ndarray:
        self.reads.append(self.name)
        return self.pixels


def counted(video: VideoRecord) -> tuple[VideoRecord, list[str]]:
    """The video with frames that note in the list when they are read."""
    reads: list[str] = []
    return replace(video, frames=[Counted(f.read(), str(t), reads) for t, f in enumerate(video.frames)]), reads


def sparse(video: VideoRecord, *annotated: int) -> VideoRecord:
    """The video as if only some of its frames had been annotated."""
    objects = [
        replace(o, segmentations=[s if t in annotated else None for t, s in enumerate(o.segmentations)])
        for o in video.objects
    ]
    return replace(video, objects=objects, annotated=frozenset(annotated))


class Unreadable:
    name = "bad.png"

    def read(self) -> np.ndarray:
        raise UserError("bad.png: not an image")


def draw(
    video: VideoRecord,
    seed: int = 0,
    size: int = SIDE,
    least: float = 0,
    augmentation: AugmentationConfig | None = None,
    **config,
) -> Clip:
    config.setdefault("motion", STILL)
    return sample_clip(video, ClipConfig(**config), size, least, np.random.default_rng(seed), augmentation)


def same(a: Clip, b: Clip) -> bool:
    return np.array_equal(a.frames_THWC, b.frames_THWC) and np.array_equal(a.masks_TOHW, b.masks_TOHW)


def flip_only(chance: float) -> AugmentationConfig:
    return NO_AUGMENTATION.model_copy(update={"flip": chance})


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
    @staticmethod
    def moving(frames: int) -> VideoRecord:
        return record([[block(2 + t, 4, 6, 6) for t in range(frames)], [block(2, 20, 5, 5 + t) for t in range(frames)]])

    def test_a_video_that_is_long_enough_is_cut_and_not_simulated(self):
        video = self.moving(6)
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
        video = self.moving(4)
        clip = draw(video, frames=4)
        tracks = [np.stack([s.decode() for s in o.segmentations]) for o in video.objects]
        for row in range(2):
            assert any(np.array_equal(clip.masks_TOHW[:, row], track) for track in tracks)

    def test_a_flip_mirrors_all_of_it(self):
        video = self.moving(3)
        plain, flipped = draw(video, frames=3), draw(video, frames=3, augmentation=flip_only(1.0))
        plain_again = draw(video, frames=3, augmentation=flip_only(0.0))
        assert same(plain, plain_again)
        assert np.array_equal(flipped.frames_THWC, plain.frames_THWC[:, :, ::-1])
        assert np.array_equal(flipped.masks_TOHW, plain.masks_TOHW[..., ::-1])

    def test_a_video_that_is_too_short_is_played_to_and_fro(self):
        video = self.moving(3)
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
        video, reads = counted(self.moving(9))
        draw(video, frames=3, augmentation=AugmentationConfig())
        assert len(reads) == len(set(reads)) == 3
        video, reads = counted(self.moving(2))
        draw(video, frames=6)
        assert sorted(reads) == ["0", "1"]

    def test_a_frame_of_another_size_is_named(self):
        video = self.moving(2)
        odd = ArrayFrame(np.zeros((20, 30, 3), np.uint8), "00001.jpg")
        with refuses("data.frame-size", "00001.jpg", "30×20", "32×32"):
            draw(replace(video, frames=[video.frames[0], odd]), frames=2)

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
        clip = draw(late, frames=3)
        for frame, t in zip(clip.frames_THWC, (3, 2, 1), strict=True):
            assert np.array_equal(frame, late.frames[t].read())
        assert clip.masks_TOHW.any(axis=(1, 2, 3)).tolist() == [True, False, False]

    def test_an_object_may_vanish_and_come_back(self):
        mask = block(2, 2, 6, 6)
        clip = draw(record([[mask, None, mask], [None, mask, mask]]), frames=3)
        assert clip.masks_TOHW.any(axis=(2, 3)).tolist() == [[True], [False], [True]]

    def test_objects_too_thin_for_the_models_size_still_show_on_the_first_frame(self):
        thin = block(5, 0, 1, 32)
        for augmentation in (None, AugmentationConfig()):
            clip = draw(record([[thin] * 3]), size=8, frames=3, augmentation=augmentation)
            assert clip.masks_TOHW[0].any(axis=(1, 2)).all()

    def test_void_areas_are_background(self):
        video = self.moving(3)
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
        video = sparse(TestVideos.moving(9), 0, 2, 4, 6, 8)
        clip = draw(video, frames=5)
        assert clip.annotated_T.tolist() == [True, False, True, False, True]
        assert clip.masks_TOHW[1::2].any() == np.False_
        assert clip.masks_TOHW[::2].any(axis=(2, 3)).all()

    def test_a_single_annotated_frame_is_a_still(self):
        video, reads = counted(sparse(TestVideos.moving(9), 3))
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


def dataset_config(*weights: float) -> DatasetConfig:
    """A data set for each weight, none of which is read from files."""
    split = SplitConfig(img_folder="nowhere")
    domains = [DomainConfig(name=f"set {i}", weight=weight, train=split) for i, weight in enumerate(weights)]
    return DatasetConfig(domains=domains, clip=ClipConfig(frames=3, max_objects=2))


class TestDataset:
    def dataset(self, seed: int = 0, length: int = 6) -> ClipDataset:
        return ClipDataset([make_videos(CELLS, 3, 0, frames=1, side=48)], dataset_config(1.0), length, 32, seed)

    def test_a_clip_is_the_same_whenever_it_is_drawn(self):
        one, two = self.dataset(), self.dataset()
        _ = two[0, 5], two[3, 1]  # other draws in between change nothing
        for key in ((0, 0), (0, 5), (7, 2)):
            assert same(one[key], two[key])

    def test_clips_epochs_and_seeds_differ(self):
        clips = [self.dataset()[0, 0], self.dataset()[0, 3], self.dataset()[1, 0]]
        assert clips[0].name == clips[1].name == clips[2].name
        assert not any(same(clips[i], clips[j]) for i in range(3) for j in range(i))
        assert any(not same(self.dataset()[0, i], self.dataset(seed=1)[0, i]) for i in range(3))

    def test_every_video_gives_its_clips(self):
        dataset = self.dataset()
        assert len(dataset) == 6
        names = [dataset[0, i].name for i in range(6)]
        assert sorted(names) == sorted(v.video_id for v in dataset.sets[0].videos for _ in range(2))

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
            assert torch.equal(alone.annotated_TO, parallel.annotated_TO)
            assert torch.equal(alone.video_of_object, parallel.video_of_object)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_file_that_cannot_be_read_comes_out_of_the_loader_as_its_own_error(self, workers):
        good = make_videos(CELLS, 1, 0, frames=1, side=48).videos[0]
        bad = VideoRecord("bad", 48, 48, [Unreadable()], good.objects)
        dataset = ClipDataset([DataSet("x", [good, bad])], dataset_config(1.0), 2, 32, 0)
        loader = DataLoader(dataset, 2, sampler=EpochSampler(2, 0), collate_fn=collate, num_workers=workers)
        (found,) = list(loader)
        assert isinstance(found, UserError)
        assert str(found) == "bad.png: not an image"


class TestViews:
    """Clips that come again: five stills, in two views."""

    VIDEOS, VIEWS = 5, 2

    def dataset(self, length: int, views: int | None = VIEWS) -> ClipDataset:
        videos = make_videos(CELLS, self.VIDEOS, 0, frames=1, side=32)
        return ClipDataset([videos], DatasetConfig(clip=ClipConfig(frames=3)), length, 16, 0, views)

    @pytest.mark.parametrize("length", [3, 5, 8])
    def test_each_video_has_its_views_and_no_more(self, length):
        """Whether an epoch shows a part of the videos, each once, or some of them twice."""
        dataset = self.dataset(length)
        draws = dataset.count_samples(self.VIEWS)
        assert draws == self.VIEWS * max(length, self.VIDEOS)
        places = [divmod(place, length) for place in range(3 * draws)]
        keys = [dataset.sample_key(*place) for place in places]
        assert len(set(keys)) == draws
        assert keys[draws:] == keys[:-draws]
        assert {dataset.source(*address)[1].video_id for address in keys} == {
            video.video_id for video in dataset.sets[0].videos
        }

    def test_a_clip_that_comes_again_is_the_same(self):
        dataset, anew = self.dataset(5), self.dataset(5, views=None)
        assert same(dataset[2, 3], dataset[0, 3])
        assert not same(dataset[1, 3], dataset[0, 3])
        assert not same(anew[2, 3], anew[0, 3])
        assert same(anew[1, 3], dataset[1, 3]), "the first round is drawn as without views"
        assert (dataset[2, 3].key, anew[2, 3].key) == ((0, 3), (2, 3))

    def test_without_pixels_no_frame_is_read_and_masks_are_the_same(self):
        dataset = self.dataset(5)
        clips = [dataset[0, index] for index in range(5)]
        for video in dataset.sets[0].videos:
            video.frames[0] = Unreadable()
        bare = [dataset[0, index, False] for index in range(5)]
        for clip, other in zip(clips, bare, strict=True):
            assert other.frames_THWC.shape == (*clip.frames_THWC.shape[:3], 0)
            assert np.array_equal(other.masks_TOHW, clip.masks_TOHW)
            assert (other.name, other.key) == (clip.name, clip.key)

    def test_pixels_can_be_drawn_after_all(self):
        dataset = self.dataset(5)
        whole, bare = (ClipBatch.collate([dataset[1, i, pixels] for i in (4, 2)]) for pixels in (True, False))
        assert whole.has_pixels
        assert not bare.has_pixels
        assert torch.equal(dataset.with_pixels(bare).frames_BTHWC, whole.frames_BTHWC)
        assert dataset.with_pixels(whole) is whole

    def test_pixels_are_asked_for_where_a_clip_of_the_batch_is_unknown(self):
        order = list(EpochSampler(6, 0))
        sampler = BatchSampler(EpochSampler(6, 0), 2, is_cached=lambda epoch, index: index != order[3][1])
        assert list(sampler) == [[(*key, False) for key in order[:2]], order[2:4], [(*key, False) for key in order[4:]]]


class TestSets:
    """Three sets of 5, 2 and 40 videos; a clip's name begins with that of its set."""

    @staticmethod
    def dataset(length: int = 40, weights: tuple[float, ...] = (1.0, 2.0, 1.0)) -> ClipDataset:
        still = record([[block(4, 4, 12, 12)]])
        sets = [
            DataSet(name, [replace(still, video_id=f"v{i}") for i in range(count)])
            for name, count in (("few", 5), ("two", 2), ("many", 40))
        ]
        return ClipDataset(sets, dataset_config(*weights), length, 16, 0)

    def names(self, dataset: ClipDataset, epoch: int) -> list[str]:
        return [
            f"{data.name}/{video.video_id}" for data, video in (dataset.source(epoch, i) for i in range(len(dataset)))
        ]

    def test_each_gets_its_share(self):
        dataset = self.dataset()
        assert dataset.shares == [10, 20, 10]
        for epoch in range(2):
            sets = [name.split("/")[0] for name in self.names(dataset, epoch)]
            assert [sets.count(name) for name in ("few", "two", "many")] == [10, 20, 10]

    def test_clips_are_named_by_their_set(self):
        dataset = self.dataset()
        clips = [dataset[1, i].name for i in (0, 15, 39)]
        assert clips == [self.names(dataset, 1)[i] for i in (0, 15, 39)]
        assert [name.split("/")[0] for name in clips] == ["few", "two", "many"]

    def test_a_small_share_shows_other_videos_in_every_epoch(self):
        dataset = self.dataset()
        epochs = [self.names(dataset, epoch)[30:] for epoch in range(4)]
        assert len({name for names in epochs for name in names}) == 40

    def test_a_large_share_shows_all_videos_as_often_and_draws_them_afresh(self):
        dataset = self.dataset()
        names = self.names(dataset, 0)
        assert {names[10:30].count(f"two/v{i}") for i in range(2)} == {10}
        again = [dataset[0, i] for i in range(10, 30) if names[i] == "two/v0"]
        assert not same(again[0], again[1])

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
    def test_shares_are_whole_and_as_near_as_can_be(self, count, weights):
        shares = split_by_weight(count, weights)
        exact = [count * weight / sum(weights) for weight in weights]
        assert min(shares) >= 1
        assert sum(shares) == count or sum(shares) <= sum(max(1, part) for part in exact) + 1e-6
        assert all(abs(share - part) < 1 + 1e-9 for share, part in zip(shares, exact, strict=True))


class TestBatch:
    def test_objects_know_their_clip(self):
        clips = [draw(record([[block(i, 2, 6, 6)] for i in range(n)]), frames=2, max_objects=9) for n in (2, 1, 3)]
        batch = ClipBatch.collate(clips)
        assert batch.video_of_object.tolist() == [0, 0, 1, 2, 2, 2]
        assert batch.frames_BTHWC.shape == (3, 2, SIDE, SIDE, 3)
        assert batch.masks_TOHW.shape == (2, 6, SIDE, SIDE)
        assert np.array_equal(batch.masks_TOHW[:, 3:], clips[2].masks_TOHW)

    def test_objects_know_which_frames_of_their_clip_are_annotated(self):
        whole = TestVideos.moving(3)
        clips = [draw(video, frames=3, max_objects=9) for video in (whole, sparse(whole, 0, 2))]
        assert ClipBatch.collate(clips).annotated_TO.tolist() == [[True] * 4, [True, True, False, False], [True] * 4]

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

    def test_its_first_frame_is_the_still(self):
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
