"""Masks drawn into pictures."""

from __future__ import annotations

import numpy as np

COLOURS = np.array(
    [[230, 60, 60], [60, 160, 240], [80, 200, 90], [250, 190, 40], [180, 90, 220], [40, 210, 200], [250, 130, 40]]
)


def draw_masks(image_HWC: np.ndarray, masks: dict[int, np.ndarray]) -> np.ndarray:
    """A picture with masks (object id → bool (H, W)) tinted and outlined, each object in its colour."""
    picture = image_HWC.astype(np.float32)
    for object_id, mask in masks.items():
        colour = COLOURS[object_id % len(COLOURS)]
        inner = mask.copy()
        inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        picture[mask] = picture[mask] * 0.55 + colour * 0.45
        picture[mask & ~inner] = colour
    return picture.round().astype(np.uint8)
