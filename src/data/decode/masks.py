"""Boxes and clicks that stand for a mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt


class Deepest(NamedTuple):
    """A pixel (x, y), and its distance to the mask's outside.

    The distance is 0 if the mask is empty.
    """

    xy: tuple[float, float]
    depth: float


def deepest_pixel(mask_HW: np.ndarray) -> Deepest:
    """Return the pixel deepest inside a mask; the picture's border counts as a border."""
    depth = distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(depth), depth.shape)
    return Deepest((float(x), float(y)), float(depth[y, x]))


def centre_point(mask_HW: np.ndarray) -> tuple[float, float]:
    """Return the (x, y) of the pixel deepest inside a mask.

    It has the largest distance to the mask's border, as in SAM's evaluation clicks.
    """
    return deepest_pixel(mask_HW).xy


def bounding_box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    """Return the tight box (x0, y0, x1, y1) of a mask, in pixels."""
    ys, xs = np.nonzero(mask_HW)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())
