"""Where a user would point at a mask: its box, and the click at its heart."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt


def centre_point(mask_HW: np.ndarray) -> tuple[float, float]:
    """The (x, y) of the pixel deepest inside a mask: the largest distance to its border, as SAM's evaluation clicks."""
    depth = distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(depth), depth.shape)
    return float(x), float(y)


def bounding_box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box (x0, y0, x1, y1) of a mask, in pixels."""
    ys, xs = np.nonzero(mask_HW)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
