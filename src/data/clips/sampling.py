"""The order of training: which clips an epoch has, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """The keys (epoch, index) of an epoch in its own random order.

    It begins after ``skip`` clips, which a resumed run has done.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order[self.skip :]])


class BatchSampler(Sampler[list[tuple[Any, ...]]]):
    """Batches of a sampler's keys, split among processes.

    The parts of a batch are as equal as they can be, and every clip is in one of them. So all processes have the same
    number of batches, and the part of a short last batch may be empty.

    Args:
        sampler: yields (epoch, index) of all clips.
        batch_size: clips in all parts of a batch together; the last one may have fewer.
        rank, size: number of this process, and of all.
        is_cached: whether the features of (epoch, index) are cached. A part whose features all are is requested without
            pixels, as (epoch, index, False). It is called when a batch is about to be loaded. None: with pixels.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, rank: int = 0, size: int = 1,
        is_cached: Callable[[int, int], bool] | None = None,
    ) -> None:  # fmt: skip
        self.sampler, self.batch_size, self.rank, self.size, self.is_cached = sampler, batch_size, rank, size, is_cached

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        keys = iter(self.sampler)
        while batch := list(islice(keys, self.batch_size)):
            part = batch[len(batch) * self.rank // self.size : len(batch) * (self.rank + 1) // self.size]
            cached = self.is_cached is not None and all(self.is_cached(*key) for key in part)
            yield [(*key, False) for key in part] if cached else [*part]
