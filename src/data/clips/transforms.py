"""Resizing of frames and masks, and geometry that augmentation and motion share.

Pictures are float in 0–255, masks float in 0–1 (the share of a pixel that is the object's) until the last resampling.
All is the same to the bit with any number of torch's threads. Only sums would depend on it, so :func:`stable_mean`
does them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LARGE, FACTOR = 2048, 4
"""Sides over ``LARGE`` pixels and ``FACTOR`` times what is wanted are shortened to the larger, in bytes, first."""


def resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Resize a float image or soft mask (C, H, W), bilinear and antialiased."""
    if image_CHW.shape[-2:] == (height, width):
        return image_CHW
    return F.interpolate(image_CHW[None], (height, width), mode="bilinear", antialias=True)[0]


def resize_picture(pixels_HW3: np.ndarray, height: int, width: int) -> Tensor:
    """Resize a uint8 RGB picture (H, W, 3) to float (3, height, width).

    A large one never becomes float at its full size.
    """
    return resize(_shortened(torch.from_numpy(pixels_HW3).permute(2, 0, 1), height, width).float(), height, width)


def resize_mask(mask_HW: np.ndarray, height: int, width: int) -> Tensor:
    """Resize a bool mask (H, W) to a soft mask (height, width), as :func:`resize_picture`."""
    bytes_1HW = torch.from_numpy(mask_HW.view(np.uint8) * np.uint8(255))[None]
    return resize(_shortened(bytes_1HW, height, width).float() / 255, height, width)[0]


def _shortened(bytes_CHW: Tensor, height: int, width: int) -> Tensor:
    """Return a uint8 image (C, H, W), shortened to the limits of ``LARGE`` and ``FACTOR``."""
    before = bytes_CHW.shape[-2:]
    sides = [min(side, max(LARGE, FACTOR * wanted)) for side, wanted in zip(before, (height, width), strict=True)]
    if tuple(sides) == tuple(before):
        return bytes_CHW
    return F.interpolate(bytes_CHW[None], sides, mode="bilinear", antialias=True)[0]


def to_pixels(frames_T3HW: Tensor) -> np.ndarray:
    """Convert float frames (T, 3, H, W) to uint8 (T, H, W, 3)."""
    return frames_T3HW.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def stable_mean(values: Tensor) -> float:
    """Return the mean, 0 of nothing, whatever the number of threads.

    NumPy sums in one thread. torch shares a sum out among threads, which changes rounding.
    """
    return float(values.numpy().mean(dtype=np.float64)) if values.numel() else 0.0


def affine(angle_T: Tensor, shear_T: Tensor, scale_T: Tensor, x_T: Tensor, y_T: Tensor, aspect: float) -> Tensor:
    """Return matrices (T, 2, 3) from output to input coordinates, the image spanning −1…1.

    Angles are in degrees, shifts in shares of a side.
    """
    angle_T, shear_T, scale_T = torch.deg2rad(angle_T), torch.tan(torch.deg2rad(shear_T)), 1 / (1 + scale_T)
    cos, sin = torch.cos(angle_T) * scale_T, torch.sin(angle_T) * scale_T
    row_x = torch.stack([cos, (cos * shear_T - sin) / aspect, 2 * x_T], dim=-1)
    row_y = torch.stack([sin * aspect, sin * shear_T + cos, 2 * y_T], dim=-1)
    return torch.stack([row_x, row_y], dim=1)
