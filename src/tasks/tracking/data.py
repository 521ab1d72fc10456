"""Training data of tracking: the clips drawn from data sets, frames for the domain gate, a picture of the clips."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch import nn

from ...config import Config, DistillConfig, image_size_of
from ...data.clips import ClipDataset
from ...data.clips.preview import contact_sheet
from ...data.loading import load_split
from ...data.options import LoadOptions
from ...data.records import DataSet, FrameSource
from ...gating.domain_gate import DomainGate
from ...gating.fit import fit_gate
from ...models.spec import ModelSpec
from ..base import Items

logger = logging.getLogger(__name__)

GATE_FRAMES = 128
"""Frames of a domain that the domain gate is fitted to."""


SMALL_OBJECT = 8
"""Pixels: half a token of the features that memory attention works on."""


def load_training_sets(config: Config) -> list[DataSet]:
    """Return the training split of every domain that the run learns. Raises UserError as :func:`load_split`."""
    options = LoadOptions.from_config(config)
    return [load_split(each, "train", options) for each in config.dataset.domains]


def training_clips(config: Config, sets: list[DataSet], views: int | None = None) -> ClipDataset:
    """Return the clips that a run trains on, in so many views, or drawn afresh every time."""
    length = config.training.clips_in_epoch(sum(len(data) for data in sets))
    return ClipDataset(sets, config.dataset, length, image_size_of(config.model), config.training.seed, views)


def labelled_frames(data: DataSet, count: int) -> Iterator[FrameSource]:
    """Yield frames that show objects, spread over a data set: one a video, or several where there are few videos."""
    chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int))
    for index in chosen:
        video = data.videos[index]
        shown = [t for t in range(len(video)) if any(obj.segmentations[t] is not None for obj in video.objects)]
        share = min(len(shown), max(1, count // len(chosen)))
        for position in np.linspace(0, len(shown) - 1, share).round().astype(int):
            yield video.frames[shown[position]]


def fit_gate_to(model: nn.Module, sets: list[DataSet], gate: DomainGate | None = None) -> DomainGate | None:
    """Fit a domain gate to data sets, under their names.

    Args:
        model: with its base weights, and with adapters or without.
        sets: labelled ones.
        gate: to add the domains to; None makes a new one.

    Returns:
        The gate; None where a set has fewer labelled frames than a gate can be fitted to.
    """
    for data in sets:
        frames = list(labelled_frames(data, GATE_FRAMES))
        if len(frames) < 2:
            logger.info(f"no domain gate: {data.name} has one labelled frame only")
            return None
        gate = fit_gate(model, data.name, (frame.read() for frame in frames), gate, limit=GATE_FRAMES)
    return gate


def preview(config: Config, count: int) -> np.ndarray:
    """Draw some clips as the run will train on them into one picture: RGB uint8 (H, W, 3).

    Raises:
        UserError: the training data cannot be read.
    """
    return contact_sheet(training_clips(config, load_training_sets(config)), count)


def describe_sets(train: list[DataSet], valid: list[DataSet], items: Items, image_size: int) -> list[str]:
    """Return the sizes of data sets, and a warning of objects that are too small.

    Args:
        train: a set of every domain.
        valid: likewise.
        items: what is trained on, of which each domain has a share.
        image_size: of the model, in pixels.
    """
    lines = []
    for data, share, held_out in zip(train, items.shares, valid, strict=True):
        drawn = f"; {share} of {len(items)} clips an epoch" if len(train) > 1 else ""
        lines.append(f"{data.name}, train: {len(data)} images or videos{_notes(data)}{drawn}")
        lines.append(f"{data.name}, valid: {len(held_out)} images or videos{_notes(held_out)}")
        side = data.median_object_side(image_size)
        if side < SMALL_OBJECT:
            lines.append(
                f"warning: {data.name}: half of the objects are smaller than {side:.1f} px at model.image_size "
                f"{image_size}, too small to be tracked well; model.image_size {2 * image_size} or more would show "
                "them larger"
            )
    return lines


def what_is_not_kept(distill: DistillConfig, spec: ModelSpec) -> list[str]:
    """Return a line on what nothing keeps where a run has no distillation."""
    if distill.weight:
        return []
    folder = "" if spec.source_world else " and training.distill.folder, general pictures of yours"
    return [
        "training.distill is off: where the adapters run, nothing keeps what the base knows of other pictures; "
        f"training.distill.weight{folder}, does"
    ]


def _notes(data: DataSet) -> str:
    """Return what was left out or repaired when a data set was read, to be added to a line about it."""
    return "".join(f"; {count} {what}" for what, count in data.notes.items())
