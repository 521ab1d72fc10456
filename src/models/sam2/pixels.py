"""Pixels as SAM 2 takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import model_spec

FAMILY = model_spec("sam2_nano")
"""For what all SAM 2.1 have in common: pixels, strides, names of parts."""


def pixel_scale(device: torch.device, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Return SAM 2's mean and deviation of pixels in 0–1, each (channels,)."""
    mean, std = FAMILY.pixel_mean[:channels], FAMILY.pixel_std[:channels]
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


def normalise(frames: Tensor) -> Tensor:
    """Frames uint8 (…, H, W, 3) → float32 (…, 3, H, W) with SAM 2's mean and deviation taken out; or no channels."""
    mean, std = pixel_scale(frames.device, frames.shape[-1])
    return ((frames.float() / 255 - mean) / std).movedim(-1, -3)
