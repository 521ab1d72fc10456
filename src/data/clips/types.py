"""Clips, the unit of training, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError

SampleKey: TypeAlias = tuple[int, int]
"""(epoch, index): with the random seed, all that a clip of a :class:`~src.data.clips.ClipDataset` depends on."""


@dataclass(frozen=True)
class Clip:
    """T frames and the masks of O objects, at the model's resolution.

    The first frame is annotated, and shows at least one of the objects.

    Attributes:
        name: video name.
        frames_THWC: uint8 RGB, or without channels, (T, H, W, 0), where no pixels were read.
        masks_TOHW: bool.
        annotated_T: bool, False where nothing is known of a frame's objects, whose masks are then empty.
        seed: random seed for what training draws for its objects, such as prompts.
        key: key of a data set's clip.
        void_THW: bool, areas that are neither objects nor background, of which no loss is made; None: there are none.
        start_O: int64, the first frame on which each object is visible, before which nothing is learned of it. The last
            frame is none of them. None: all are on the first frame.
    """

    name: str
    frames_THWC: np.ndarray
    masks_TOHW: np.ndarray
    annotated_T: np.ndarray
    seed: int = 0
    key: SampleKey | None = None
    void_THW: np.ndarray | None = None
    start_O: np.ndarray | None = None


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one length as tensors; ``video_of_object`` maps objects to clips.

    Attributes:
        names: clip names.
        frames_BTHWC: uint8, without channels if the clips have none.
        masks_TOHW: bool, the objects of all clips one after the other.
        annotated_TO: bool, ``annotated_T`` of each object's clip.
        video_of_object: int64 (O,), each object's clip.
        seeds: random seed of each clip.
        keys: keys of the clips, none unless all clips come from a data set.
        void_TBHW: bool, void areas of the clips; None: no clip has any.
        start_O: int64, the first frame that shows each object; None: all are on the first frames.
    """

    names: tuple[str, ...]
    frames_BTHWC: Tensor
    masks_TOHW: Tensor
    annotated_TO: Tensor
    video_of_object: Tensor
    seeds: tuple[int, ...]
    keys: tuple[SampleKey, ...] = ()
    void_TBHW: Tensor | None = None
    start_O: Tensor | None = None

    @classmethod
    def collate(cls, clips: list[Clip]) -> ClipBatch:
        """Put clips of equal length and size together."""
        counts = torch.tensor([clip.masks_TOHW.shape[1] for clip in clips])
        video_of_object = torch.repeat_interleave(torch.arange(len(clips)), counts)
        keys = tuple(clip.key for clip in clips if clip.key is not None)
        return cls(
            names=tuple(clip.name for clip in clips),
            frames_BTHWC=torch.from_numpy(np.stack([clip.frames_THWC for clip in clips])),
            masks_TOHW=torch.from_numpy(np.concatenate([clip.masks_TOHW for clip in clips], axis=1)),
            annotated_TO=torch.from_numpy(np.stack([clip.annotated_T for clip in clips], axis=1))[:, video_of_object],
            video_of_object=video_of_object,
            seeds=tuple(clip.seed for clip in clips),
            keys=keys if len(keys) == len(clips) else (),
            void_TBHW=_void_of(clips),
            start_O=_starts_of(clips),
        )

    def prompted_first(self) -> ClipBatch:
        """Return the batch with the objects that its first frames show."""
        if self.start_O is None:
            return self
        first_O = self.start_O == 0
        return replace(
            self,
            masks_TOHW=self.masks_TOHW[:, first_O],
            annotated_TO=self.annotated_TO[:, first_O],
            video_of_object=self.video_of_object[first_O],
            start_O=None,
        )

    def prompted_later(self) -> Iterator[tuple[int, int, ClipBatch]]:
        """Yield clip, start and, as a batch from there on, each object that appears after its clip's first frame."""
        for o in [] if self.start_O is None else self.start_O.nonzero().flatten().tolist():
            clip, start = int(self.video_of_object[o]), int(self.start_O[o]) if self.start_O is not None else 0
            number = o - int((self.video_of_object == clip).nonzero()[0])
            yield (
                clip,
                start,
                ClipBatch(
                    names=(self.names[clip],),
                    frames_BTHWC=self.frames_BTHWC[clip : clip + 1, start:],
                    masks_TOHW=self.masks_TOHW[start:, o : o + 1],
                    annotated_TO=self.annotated_TO[start:, o : o + 1],
                    video_of_object=torch.zeros(1, dtype=torch.int64),
                    seeds=(int(np.random.default_rng((self.seeds[clip], number)).integers(2**63)),),
                    void_TBHW=None if self.void_TBHW is None else self.void_TBHW[start:, clip : clip + 1],
                ),
            )

    @property
    def has_pixels(self) -> bool:
        return self.frames_BTHWC.shape[-1] > 0

    def clips(self) -> list[Clip]:
        """Return the clips that the batch was made of."""
        own = [self.video_of_object == number for number in range(len(self.names))]
        keys = self.keys or [None] * len(self.names)
        return [
            Clip(
                name,
                frames_THWC.numpy(),
                self.masks_TOHW[:, o].numpy(),
                self.annotated_TO[:, o][:, 0].numpy(),
                seed,
                key,
                None if self.void_TBHW is None else self.void_TBHW[:, number].numpy(),
                None if self.start_O is None else self.start_O[o].numpy(),
            )
            for number, (name, frames_THWC, o, seed, key) in enumerate(
                zip(self.names, self.frames_BTHWC, own, self.seeds, keys, strict=True)
            )
        ]

    def pin_memory(self) -> ClipBatch:
        """Return the batch with all that goes to the device in pinned memory."""
        return replace(
            self,
            frames_BTHWC=self.frames_BTHWC.pin_memory(),
            masks_TOHW=self.masks_TOHW.pin_memory(),
            video_of_object=self.video_of_object.pin_memory(),
            void_TBHW=None if self.void_TBHW is None else self.void_TBHW.pin_memory(),
        )


def _void_of(clips: list[Clip]) -> Tensor | None:
    """Return the void areas of clips (T, B, H, W); None if no clip has any."""
    if all(clip.void_THW is None for clip in clips):
        return None
    void = [np.zeros_like(c.masks_TOHW[:, 0]) if c.void_THW is None else c.void_THW for c in clips]
    return torch.from_numpy(np.stack(void, axis=1))


def _starts_of(clips: list[Clip]) -> Tensor | None:
    """Return the objects' first frames (O,); None if all are on the clips' first frames."""
    if all(clip.start_O is None or not clip.start_O.any() for clip in clips):
        return None
    starts = [np.zeros(c.masks_TOHW.shape[1], np.int64) if c.start_O is None else c.start_O for c in clips]
    return torch.from_numpy(np.concatenate(starts))


def collate(clips: list[Clip | UserError]) -> ClipBatch | UserError | None:
    """Return a batch of clips, or the first error among them; None of no clips.

    The trainer raises the error.
    """
    good = [clip for clip in clips if isinstance(clip, Clip)]
    errors = [clip for clip in clips if isinstance(clip, UserError)]
    if errors:
        return errors[0]
    return ClipBatch.collate(good) if good else None
