"""Fitting the domain gate to a domain's images, each in several photometric augmentations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from ..core.console import progress_bar
from ..core.device import evaluating
from ..lora.adapter_io import base_fingerprint
from ..models.spec import spec_of
from .domain_gate import DomainGate

VIEWS = 8  # augmented ones, besides the image as it is


def fit_gate(
    model: nn.Module,
    name: str,
    frames: Iterable[np.ndarray[Any, Any]],
    gate: DomainGate | None = None,
    *,
    limit: int = 128,
    seed: int = 0,
) -> DomainGate:
    """Fit a domain gate to a domain; it takes nine forward passes of the image encoder per image.

    Args:
        model: with its base weights, and with or without adapters; its train or eval mode is restored afterwards.
        name: the domain's name.
        frames: RGB uint8 (H, W, 3), one per video, since frames of one video say little more than one of them.
        gate: the gate to add the domain to, or to replace it in; None makes a new one.
        limit: the most frames that are used.
        seed: random seed of the augmentations.

    Returns:
        The gate with the domain added; :meth:`~src.gating.domain_gate.DomainGate.save` writes it into a folder.

    Raises:
        UserError: there are fewer than 2 frames, or the name cannot be a domain's.
    """
    rng = np.random.default_rng(seed)
    gate = gate or DomainGate(base_fingerprint(model))
    device = next(model.parameters()).device
    room = spec_of(model).load()
    features = []
    with evaluating(model):
        for frame in progress_bar(islice(frames, limit), desc=f"domain gate: {name}", unit="image"):
            pixels_3SS = room.to_pixels(model, frame)
            views_V3SS = torch.stack([pixels_3SS, *(photometric_jitter(pixels_3SS, rng) for _ in range(VIEWS))])
            features.append(room.gate_features(model, views_V3SS.to(device)).cpu())
    gate.fit(name, torch.stack(features) if features else torch.empty(0, 1 + VIEWS, 1))
    return gate


def photometric_jitter(pixels_3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the image with another focus, contrast, gamma, gain, veil, white balance and noise; RGB in 0–1."""
    x: np.ndarray[Any, Any] = pixels_3SS.numpy()
    if rng.random() < 0.5:
        sigma = rng.uniform(0, 0.015) * x.shape[-1]
        x = gaussian_filter(x, (0, sigma, sigma))
    x = (x - x.mean()) * rng.uniform(0.7, 1.3) + x.mean()
    x = np.clip(x, 0, None) ** rng.uniform(0.8, 1.25)
    x = x * np.exp(rng.uniform(np.log(0.25), np.log(1.8))) + rng.uniform(-0.05, 0.2)
    x = x * rng.uniform(0.92, 1.08, (3, 1, 1))
    if rng.random() < 0.5:
        x = x + rng.normal(0, rng.uniform(0, 1.5) * x.std(), x.shape)
    return torch.from_numpy(np.clip(x, 0, 1).astype(np.float32))
