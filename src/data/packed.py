"""A long list of small objects in one block of shared memory.

A list of Python objects is copied into every loader process little by little, forked or not: reading an object writes
its reference count, and with that its memory page. Bytes in a tensor have no such counts.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch


class PackedList(Sequence[Any]):
    """A read-only list whose items are serialised in one tensor.

    Every access makes the item again.

    Processes forked from this one read the same memory. Spawned ones get it through shared memory, into which torch
    moves the tensors once, however many processes follow (``/dev/shm`` on Linux must hold it).

    Args:
        items: anything that pickles.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        content, ends = bytearray(), [0]
        for item in items:
            content += pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            ends.append(len(content))
        self._bytes = torch.from_numpy(np.frombuffer(content, dtype=np.uint8))
        self._ends = torch.tensor(ends, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self._ends.numpy()[position : position + 2]
        return pickle.loads(self._bytes.numpy()[start:end].data)  # written by this class

    @property
    def nbytes(self) -> int:
        """The memory it takes, in bytes."""
        return self._bytes.nbytes + self._ends.nbytes
