"""What a frozen encoder makes of training items, kept, so that it runs once for each of them.

Items come again where they are drawn in a number of views (``training.cache_features.views``), and are known by their
key. Features are kept as they were computed, so a loss is the same to the bit with them and without. Nothing is ever
thrown out: what is cached when a batch is loaded is cached when it is trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..core.files import remove_leftovers, write_atomically
from ..tasks.base import Features, Items, SampleKey, Task

logger = logging.getLogger(__name__)

CACHE_FOLDER = "feature_cache"
FORMAT = 2
"""Of the files; another one where what is in them, or how it is computed, changes."""

GB = 2**30


class Store(Protocol):
    """Features by the key of their item, on the CPU."""

    size: int
    """Bytes kept."""

    def __contains__(self, key: SampleKey) -> bool: ...

    def get(self, key: SampleKey) -> Features | None:
        """Return an item's features, None where they are not kept."""
        ...

    def put(self, key: SampleKey, features: Features) -> None:
        """Keep an item's features."""
        ...

    def clean(self) -> None:
        """Remove what earlier runs and killed processes have left."""
        ...


class MemoryStore:
    """Features in main memory."""

    def __init__(self) -> None:
        self.size = 0
        self._kept: dict[SampleKey, Features] = {}

    def __contains__(self, key: SampleKey) -> bool:
        return key in self._kept

    def get(self, key: SampleKey) -> Features | None:
        """Return an item's features, None where they are not kept."""
        return self._kept.get(key)

    def put(self, key: SampleKey, features: Features) -> None:
        """Keep an item's features."""
        self._kept[key] = [level.cpu() for level in features]
        self.size += size_of(features)

    def clean(self) -> None:
        """There is nothing to remove."""


class DiskStore:
    """Features in files, one an item, each written whole or not at all; several processes may share the folder.

    Args:
        folder: for the features of one cache key (:func:`cache_key`) alone; what is in it already is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def _path(self, key: SampleKey) -> Path:
        epoch, index = key
        return self.folder / f"{epoch}_{index}.safetensors"

    def __contains__(self, key: SampleKey) -> bool:
        return self._path(key).exists()

    def get(self, key: SampleKey) -> Features | None:
        """Return an item's features, None where they are not kept or their file is damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                levels = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                expected = (file.metadata() or {}).get("crc32")
            if expected != _checksum(levels):
                raise OSError("its checksum is wrong")
            return [levels[str(number)] for number in range(len(levels))]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            logger.warning(f"warning: {path}: damaged, so these features are computed again: {error}")
            return None

    def put(self, key: SampleKey, features: Features) -> None:
        """Keep an item's features."""
        levels = {str(number): level.cpu().contiguous() for number, level in enumerate(features)}
        write_atomically(self._path(key), partial(save_file, levels, metadata={"crc32": _checksum(levels)}))
        self.size += size_of(features)

    def clean(self) -> None:
        """Remove the features of other cache keys, and the temporary files of killed processes."""
        for path in self.folder.parent.glob("*"):
            if path.name != self.folder.name:
                shutil.rmtree(path, ignore_errors=True)
        remove_leftovers(self.folder)


class FrozenEncoder:
    """Features of batches, each item encoded by itself, so that they do not depend on the items beside it.

    Args:
        task: says how an item is encoded.
        model: whose encoder is frozen.
        items: what batches are drawn from.
        store: where features are kept; None: nowhere.
        budget: bytes to keep at most.
        views: of each item, to say how much all of them would take.
    """

    def __init__(
        self, task: Task, model: nn.Module, items: Items, store: Store | None, budget: float, views: int
    ) -> None:
        self.task, self.model, self.items = task, model, items
        self.store, self.budget = store, budget
        self.draws = items.count_samples(views)
        self._warned = False

    def is_cached(self, epoch: int, index: int) -> bool:
        """Whether the features of an item are kept."""
        return self.store is not None and self.items.sample_key(epoch, index) in self.store

    def __call__(self, batch: Any) -> Features:
        """Return the features of a batch, item after item, on the model's device.

        Raises:
            UserError: an item has to be read again, and cannot be.
        """
        device = next(self.model.parameters()).device
        return join_features([self._of_item(batch, number) for number in range(len(batch.names))], device)

    def _of_item(self, batch: Any, number: int) -> Features:
        if self.store is None:
            return self.task.encode(self.model, batch, number)
        key = batch.keys[number]
        found = self.store.get(key)
        if found is None:
            found = self.task.encode(self.model, self.items.with_pixels(batch), number)
            self._keep(self.store, key, found)
        return found

    def _keep(self, store: Store, key: SampleKey, features: Features) -> None:
        size = size_of(features)
        if not self._warned and size * self.draws > self.budget:
            self._warned = True
            logger.info(
                f"training.cache_features.budget_gb {self.budget / GB:g} holds the features of "
                f"{int(self.budget // size)} of {self.draws} clips, all of them take {size * self.draws / GB:.2g}; "
                "the others are encoded every time"
            )
        if store.size + size <= self.budget:
            store.put(key, features)


def size_of(features: Features) -> int:
    """Return bytes."""
    return sum(level.nbytes for level in features)


def _checksum(levels: dict[str, torch.Tensor]) -> str:
    """Return a CRC-32 of tensors: fast enough for every read, and it sees every flipped bit."""
    total = 0
    for name, level in sorted(levels.items()):
        total = zlib.crc32(f"{name} {tuple(level.shape)} {level.dtype}".encode(), total)
        total = zlib.crc32(level.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def join_features(items: Sequence[Features], device: torch.device) -> Features:
    """Return features of several items as those of all of them in a row, on the device."""
    return [torch.cat([level.to(device) for level in levels]) for levels in zip(*items, strict=True)]


def cache_key(task: Task, items: Items, base_fingerprint: str, precision: str) -> str:
    """Return a name for all that features depend on beside the item's key: a change makes other features.

    Args:
        task: of the run.
        items: of the run.
        base_fingerprint: of the base's weights.
        precision: that the encoder computes in, and where.
    """
    parts = [FORMAT, torch.__version__, base_fingerprint, precision, *task.cache_identity(items)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
