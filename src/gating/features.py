"""What a domain gate knows of an image: statistics of the frozen encoder's feature maps, at an even exposure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN, DEVIATION = 0.45, 0.2  # exposure of the frames that the domain gate sees


def even_exposure(pixels_B3SS: Tensor) -> Tensor:
    """Set brightness and contrast of images, RGB in 0–1, over all pixels and channels to fixed values."""
    center = pixels_B3SS.mean(dim=(1, 2, 3), keepdim=True)
    contrast = pixels_B3SS.std(dim=(1, 2, 3), keepdim=True) + 1e-3
    return ((pixels_B3SS - center) / contrast * DEVIATION + MEAN).clamp(0, 1)


def channel_statistics(levels: Iterable[Tensor]) -> Tensor:
    """Return mean and deviation of every channel of feature maps (B, C, h, w): float32 (B, 2 · sum of C)."""
    return torch.cat([f(level.float(), dim=(2, 3)) for level in levels for f in (torch.mean, torch.std)], dim=1)


def to_pixels(frame: np.ndarray[Any, Any], side: int) -> Tensor:
    """Resize a frame, RGB uint8 (H, W, 3), to a square: float32 (3, side, side) in 0–1, on the CPU."""
    resized = np.asarray(Image.fromarray(frame).resize((side, side)))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1).float() / 255


def pixel_scale(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a model's mean and deviation of pixels, each (3, 1, 1)."""
    return torch.tensor(mean, device=device)[:, None, None], torch.tensor(std, device=device)[:, None, None]
