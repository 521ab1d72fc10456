"""Training data of tracking: the clips drawn from data sets, frames for the domain gate, a picture of the clips."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch import nn

from ...config import Config, image_size_of
from ...data.clips import ClipDataset
from ...data.clips.preview import contact_sheet
from ...data.loading import load_split
from ...data.options import LoadOptions
from ...data.records import DataSet, FrameSource
from ...gating.domain_gate import DomainGate
from ...gating.fit import fit_gate

logger = logging.getLogger(__name__)

GATE_FRAMES = 128
"""Frames of a domain that the domain gate is fitted to."""


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
