"""Clips are cut from videos and made from stills; every draw depends on (seed, epoch, clip) alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from src.config import ClipConfig, DatasetConfig, DomainConfig, SplitConfig
from src.core.errors import UserError
from src.data.clips import BatchSampler, ClipBatch, ClipDataset, EpochSampler, collate
from src.data.clips.dataset import split_by_weight
from src.data.records import DataSet, VideoRecord
from src.data.synthetic import CELLS, make_videos
from tests.data.clips.videos import Unreadable, block, record, same


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
