"""What a frozen image encoder makes of training clips, kept, so that it runs once for each of them.

Clips come again where they are drawn in a number of views (``training.cache_features.views``), and are known by their
address. Features are kept as they were computed, without their position encodings, so a loss is the same to the bit
with them and without. Nothing is ever thrown out: what is known when a batch is loaded is known when it is trained on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import Config, image_size_of
from ..core.files import remove_leftovers, write_atomically
from ..data.checks.cache import state_of_files
from ..data.clips import ClipBatch, ClipDataset, SampleKey
from ..data.options import LoadOptions
from ..models.sam2.train_forward import Features, TrainableSAM2, encode_frames, has_frozen_encoder, join_features

CACHE_FOLDER = "feature_cache"
FORMAT = 1
"""Of the files; another one where what is in them, or how it is computed, changes."""

GB = 2**30


class Store(Protocol):
    """Features by the address of their clip, on the CPU."""

    size: int
    """Bytes kept."""

    def __contains__(self, address: SampleKey) -> bool: ...

    def get(self, address: SampleKey) -> Features | None: ...

    def put(self, address: SampleKey, features: Features) -> None: ...


class MemoryStore:
    """Features in main memory."""

    def __init__(self) -> None:
        self.size = 0
        self._kept: dict[SampleKey, Features] = {}

    def __contains__(self, address: SampleKey) -> bool:
        return address in self._kept

    def get(self, address: SampleKey) -> Features | None:
        return self._kept.get(address)

    def put(self, address: SampleKey, features: Features) -> None:
        self._kept[address] = [level.cpu() for level in features]
        self.size += size_of(features)


class DiskStore:
    """Features in files, one a clip, each written whole or not at all; several processes may share the folder.

    Args:
        folder: for the features of one key (:func:`cache_key`) alone; what is in it already is used.
        say: told of a damaged file.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        remove_leftovers(folder)
        self.size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    def _path(self, address: SampleKey) -> Path:
        epoch, index = address
        return self.folder / f"{epoch}_{index}.safetensors"

    def __contains__(self, address: SampleKey) -> bool:
        return self._path(address).exists()

    def get(self, address: SampleKey) -> Features | None:
        path = self._path(address)
        try:
            levels = load_file(path)
            return [levels[str(number)] for number in range(len(levels))]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError) as error:
            self.say(f"warning: {path}: damaged, so these features are computed again: {error}")
            return None

    def put(self, address: SampleKey, features: Features) -> None:
        levels = {str(number): level.cpu().contiguous() for number, level in enumerate(features)}
        write_atomically(self._path(address), partial(save_file, levels))
        self.size += size_of(features)


class ClipEncoder:
    """Image features of batches, each clip encoded by itself, so that they do not depend on the clips beside it.

    Args:
        model: whose image encoder is frozen.
        clips: what batches are drawn from.
        store: where features are kept; None: nowhere.
        budget: bytes to keep at most.
        views: of each clip, to say how much all of them would take.
        say: told once if that is over the budget.
    """

    def __init__(
        self, model: TrainableSAM2, clips: ClipDataset, store: Store | None, budget: float, views: int,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.model, self.clips, self.store, self.budget, self.say = model, clips, store, budget, say
        self.draws = clips.count_samples(views)
        self.told = False

    def is_cached(self, epoch: int, index: int) -> bool:
        """Whether the features of a clip of the data set are kept."""
        return self.store is not None and self.clips.sample_key(epoch, index) in self.store

    def __call__(self, batch: ClipBatch) -> Features:
        """The features of a batch's frames, clip by clip, on the model's device.

        Raises:
            UserError: a frame has to be read again, and cannot be.
        """
        device = next(self.model.parameters()).device
        return join_features([self._of_clip(batch, number) for number in range(len(batch.names))], device)

    def _of_clip(self, batch: ClipBatch, number: int) -> list[Tensor]:
        if self.store is None:
            return encode_frames(self.model, batch.frames_BTHWC[number])
        address = batch.keys[number]
        found = self.store.get(address)
        if found is None:
            found = encode_frames(self.model, self.clips.with_pixels(batch).frames_BTHWC[number])
            self._keep(self.store, address, found)
        return found

    def _keep(self, store: Store, address: SampleKey, features: Features) -> None:
        size = size_of(features)
        if not self.told and size * self.draws > self.budget:
            self.told = True
            self.say(
                f"training.cache_features.budget_gb {self.budget / GB:g} holds the features of "
                f"{int(self.budget // size)} of {self.draws} clips, all of them take {size * self.draws / GB:.2g}; "
                "the others are encoded every time"
            )
        if store.size + size <= self.budget:
            store.put(address, features)


def size_of(features: Features) -> int:
    """Bytes."""
    return sum(level.nbytes for level in features)


def cached_views(model: TrainableSAM2, config: Config) -> tuple[int | None, str | None]:
    """In how many views the clips of a run are drawn, None: always anew; and what to say of a cache that is off."""
    cache = config.training.cache_features
    if cache is None or has_frozen_encoder(model):
        return (cache.views if cache else None), None
    return None, (
        f"training.cache_features is off: with lora.method {config.lora.method} and these lora.target_modules, what "
        "the image encoder makes of a frame changes as training goes on; clips are drawn anew in every epoch"
    )


def build_encoder(
    model: TrainableSAM2, clips: ClipDataset, config: Config, fingerprint: str, precision: str,
    say: Callable[[str], None],
) -> ClipEncoder | None:  # fmt: skip
    """What encodes a run's clips; None where the image encoder trains along.

    Args:
        model: on its device, with what trains in place.
        clips: the run's, with the views of :func:`cached_views`.
        config: the run.
        fingerprint: of the base's weights.
        precision: that the encoder computes in.
        say: told what the user should know, while training.
    """
    folder, cache = Path(config.output_dir) / CACHE_FOLDER, config.training.cache_features
    if not has_frozen_encoder(model):
        return None
    if cache is None:
        return ClipEncoder(model, clips, None, 0, 1, say)
    store: Store = MemoryStore()
    if cache.store == "disk":
        device = next(model.parameters()).device
        key = cache_key(config, clips, fingerprint, f"{precision} on {device.type}")
        remove_stale(folder, key)
        store = DiskStore(folder / key, say)
    return ClipEncoder(model, clips, store, cache.budget_gb * GB, cache.views, say)


def cache_key(config: Config, clips: ClipDataset, fingerprint: str, precision: str) -> str:
    """A name for all that the features of a clip depend on beside its address: a change makes other features."""
    places = [each.split("train") for each in config.dataset.domains]
    parts: list[Any] = [
        FORMAT, torch.__version__, fingerprint, config.model.name, image_size_of(config.model), precision,
        config.dataset.model_dump(mode="json"), clips.seed, clips.shares,
        [state_of_files(place, LoadOptions.from_config(config)) for place in places if place is not None],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def remove_stale(folder: Path, key: str) -> None:
    """Remove the features of other keys: of earlier runs, whose base, data or settings were others."""
    for path in folder.glob("*"):
        if path.name != key:
            shutil.rmtree(path, ignore_errors=True)
