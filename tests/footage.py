"""A short video to follow something through."""

from __future__ import annotations

import numpy as np


def moving_block(frames: int, height: int, width: int) -> list[np.ndarray]:
    """Dark noise, RGB uint8 (H, W, 3), and a red block of 20 × 30 pixels that moves right by 2 pixels a frame."""
    pictures = np.random.default_rng(0).integers(0, 120, (frames, height, width, 3), dtype=np.uint8)
    for t, picture in enumerate(pictures):
        picture[10:30, 10 + 2 * t : 40 + 2 * t] = (200, 60, 60)
    return list(pictures)
