"""Fitting the domain gate to a domain's images, each in several lights."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..core.console import progress_bar
from ..core.device import evaluating
from ..lora.adapter_io import base_fingerprint
from ..models.sam2.gate_hooks import gate_features, to_pixels
from .domain_gate import DomainGate

VIEWS = 8  # besides the image as it is


def fit_gate(
    model: SAM2Base,
    name: str,
    frames: Iterable[np.ndarray],
    gate: DomainGate | None = None,
    *,
    limit: int = 128,
    seed: int = 0,
) -> DomainGate:
    """Teach a gate a domain; only forward passes of the image encoder, nine an image.

    Args:
        model: with its base weights, and with adapters or without; its train or eval mode comes back afterwards.
        name: of the domain.
        frames: RGB uint8 (H, W, 3), one a video (frames of one video say little more than one of them).
        gate: to add the domain to, or to replace it in; None makes a new one.
        limit: at most so many frames are taken.
        seed: of the lights.

    Returns:
        The gate, which has learned the domain; :meth:`~src.gating.domain_gate.DomainGate.save` puts it in a folder.

    Raises:
        UserError: fewer than 2 frames, or the name cannot be a domain's.
    """
    rng = np.random.default_rng(seed)
    gate = gate or DomainGate(base_fingerprint(model))
    device = next(model.parameters()).device
    features = []
    with evaluating(model):
        for frame in progress_bar(islice(frames, limit), desc=f"domain gate: {name}", unit="image"):
            pixels_3SS = to_pixels(model, frame)
            views_V3SS = torch.stack([pixels_3SS, *(photometric_jitter(pixels_3SS, rng) for _ in range(VIEWS))])
            features.append(gate_features(model, views_V3SS.to(device)).cpu())
    gate.fit(name, torch.stack(features) if features else torch.empty(0, 1 + VIEWS, 1))
    return gate


def photometric_jitter(pixels_3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """The same image, exposed otherwise: focus, contrast, gamma, gain, veil, white balance, noise; RGB in 0–1."""
    x = pixels_3SS.numpy()
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
