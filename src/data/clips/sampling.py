"""The order of training: which clips an epoch has, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in the epoch's own random order, beginning after ``skip`` clips (after a resume)."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order[self.skip :]])


class BatchSampler(Sampler[list[tuple[Any, ...]]]):
    """Cuts what a sampler yields into batches, of which each of several processes takes its part.

    The parts of a batch are as equal as they can be, so all processes have the same number of batches, every clip is in
    one part, and the part of a short last batch may be empty.

    Args:
        sampler: of all clips, yields (epoch, index).
        batch_size: clips a batch, in all parts together; the last one may have fewer.
        rank, size: which of how many processes this is.
        is_known: whether the features of (epoch, index) are. A part of which all are is asked for without pixels, as
            (epoch, index, False). What is known is asked when a batch is about to be loaded. None: pixels are wanted.
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
            known = self.is_cached is not None and all(self.is_cached(*key) for key in part)
            yield [(*key, False) for key in part] if known else [*part]
