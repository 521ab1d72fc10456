"""The training clips of a run, each drawn from its key alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from ...config import DatasetConfig
from ...core.errors import UserError
from ..records import DataSet, VideoRecord
from .draw import sample_clip
from .types import Clip, ClipBatch, SampleKey


class VideoOrder:
    """Which video each training item is drawn from, and the key of its draw.

    The items of an epoch are shared among data sets. A set's items go round its videos in an order drawn once, and
    every epoch begins where the one before ended. So a small share shows other videos in every epoch, and a large one
    shows videos several times, each time drawn again. No video comes twice more often than another.

    Args:
        sets: the videos and stills, set by set.
        weights: of the sets; a set's share is its weight / sum of weights, and never less than one item.
        length: items per epoch.
        seed: random seed.
        views: number of ways in which each item is drawn, which repeat in turn. An epoch repeats the draws of the one
            ``views`` epochs before. Where a set has more videos than items in an epoch, the same holds for rounds of
            all its videos. None: draws never repeat.
    """

    def __init__(
        self, sets: Sequence[DataSet], weights: Sequence[float], length: int, seed: int, views: int | None = None
    ) -> None:
        self.sets, self.seed, self.views = sets, seed, views
        self.shares = split_by_weight(length, weights)
        self._ends = np.cumsum(self.shares)
        generators = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))) for i in range(len(sets))]
        self._orders = [rng.permutation(len(data)) for rng, data in zip(generators, sets, strict=True)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def source(self, epoch: int, index: int, later: int = 0) -> tuple[DataSet, VideoRecord]:
        """Return the data set and the video that an item is drawn from, or a video ``later`` in the set's order."""
        chosen, place = self._place(epoch, index)
        order = self._orders[chosen]
        return self.sets[chosen], self.sets[chosen].videos[int(order[(place + later) % len(order)])]

    def chosen_set(self, epoch: int, index: int) -> int:
        """Return the number of the data set that an item is drawn from."""
        return self._place(epoch, index)[0]

    def sample_key(self, epoch: int, index: int) -> SampleKey:
        """Return the key that a clip is drawn from: its own or, with ``views``, that of the first equal clip."""
        if self.views is None:
            return epoch, index
        chosen, place = self._place(epoch, index)
        share = self.shares[chosen]
        epoch, within = divmod(place % self._period(chosen, self.views), share)
        return epoch, int(self._ends[chosen]) - share + within

    def count_samples(self, views: int) -> int:
        """Return how many different clips there are with a number of views."""
        return sum(self._period(chosen, views) for chosen in range(len(self.sets)))

    def _place(self, epoch: int, index: int) -> tuple[int, int]:
        """Return a clip's set, and its number among all clips of that set, counted from the first epoch on."""
        chosen = int(np.searchsorted(self._ends, index, side="right"))
        share = self.shares[chosen]
        return chosen, epoch * share + index - (int(self._ends[chosen]) - share)

    def _period(self, chosen: int, views: int) -> int:
        return views * max(self.shares[chosen], len(self._orders[chosen]))


class ClipDataset(VideoOrder, Dataset[Clip | UserError]):
    """The training clips of one or several data sets, from videos in the order of :class:`VideoOrder`.

    ``dataset[epoch, index]`` draws a clip, the same one every time.

    ``dataset[epoch, index, False]`` is that clip without its pixels: no frame is read.

    Args:
        sets: the videos and stills, set by set.
        config: the sets' weights, and how clips are made (``clip``, ``augmentation``, ``min_object_side``).
        length: clips per epoch.
        size: side of the square frames in pixels.
        seed: random seed.
        views: number of ways in which each clip is drawn, which repeat in turn; None: draws never repeat.
    """

    def __init__(
        self, sets: Sequence[DataSet], config: DatasetConfig, length: int, size: int, seed: int,
        views: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(sets, [each.weight for each in config.domains], length, seed, views)
        self.config, self.size = config, size

    def with_pixels(self, batch: ClipBatch) -> ClipBatch:
        """Return a batch of this data set with its pixels, which are read if it has none.

        Raises:
            UserError: a frame cannot be read.
        """
        if batch.has_pixels:
            return batch
        drawn = [self[key] for key in batch.keys]
        for clip in drawn:
            if isinstance(clip, UserError):
                raise clip
        return ClipBatch.collate([clip for clip in drawn if isinstance(clip, Clip)])

    def __getitem__(self, key: SampleKey | tuple[int, int, bool]) -> Clip | UserError:
        epoch, index, *asked = key
        sample_key = self.sample_key(epoch, index)
        rng = np.random.default_rng((self.seed, *sample_key))
        config, pixels = self.config, all(asked)
        try:
            data, video = self.source(*sample_key)
            clip = sample_clip(video, config.clip, self.size, config.min_object_side, rng, config.augmentation, pixels)
        except UserError as error:  # handed on as it is: a loader process would wrap its traceback around it
            return error
        return replace(clip, key=sample_key, name=clip.name if len(self.sets) == 1 else f"{data.name}/{clip.name}")


def split_by_weight(count: int, weights: Sequence[float]) -> list[int]:
    """Split a number into whole shares in proportion to weights, largest remainders first; none is less than 1."""
    exact = count * np.array(weights) / sum(weights)
    shares = np.maximum(1, np.floor(exact).astype(int))
    for i in np.argsort(shares - exact, kind="stable")[: max(0, count - int(shares.sum()))]:
        shares[i] += 1
    result: list[int] = shares.tolist()
    return result
