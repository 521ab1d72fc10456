"""Region similarity J, boundary measure F, mean IoU and Dice of tracked masks.

J and F are those of DAVIS (Perazzi et al., CVPR 2016, section 5; Pont-Tuset et al., 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt

BOUNDARY_TOLERANCE = 0.008  # of the image diagonal, as DAVIS has it


def region_similarity(predicted_HW: np.ndarray, true_HW: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 where both are empty."""
    union = np.count_nonzero(predicted_HW | true_HW)
    return np.count_nonzero(predicted_HW & true_HW) / union if union else 1.0


def dice(predicted_HW: np.ndarray, true_HW: np.ndarray) -> float:
    """Twice the intersection over the sum of areas of two bool masks; 1 where both are empty."""
    total = np.count_nonzero(predicted_HW) + np.count_nonzero(true_HW)
    return 2 * np.count_nonzero(predicted_HW & true_HW) / total if total else 1.0


def boundary_measure(predicted_HW: np.ndarray, true_HW: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F-measure between the outlines of two bool masks; outline pixels match within ``tolerance`` × image diagonal."""
    reach = math.ceil(tolerance * math.hypot(*true_HW.shape))
    predicted, true = _outline(predicted_HW), _outline(true_HW)
    if not predicted.any() or not true.any():
        return 1.0 if not predicted.any() and not true.any() else 0.0
    ys, xs = np.nonzero(predicted | true)
    window = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)  # distances need nothing outside it
    predicted, true = predicted[window], true[window]
    precision = float((distance_transform_edt(~true)[predicted] <= reach).mean())
    recall = float((distance_transform_edt(~predicted)[true] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask_HW: np.ndarray) -> np.ndarray:
    """Pixels whose right, lower or lower right neighbour differs (DAVIS' seg2bmap at full size)."""
    right, below, diagonal = mask_HW.copy(), mask_HW.copy(), mask_HW.copy()
    right[:, :-1] = mask_HW[:, 1:]
    below[:-1] = mask_HW[1:]
    diagonal[:-1, :-1] = mask_HW[1:, 1:]
    outline = (mask_HW ^ right) | (mask_HW ^ below)
    outline[:-1, :-1] |= mask_HW[:-1, :-1] ^ diagonal[:-1, :-1]
    return outline


@dataclass
class Scores:
    """Scores of a set of objects, gathered object by object; every score is from 0 to 1."""

    J_per_object: list[float] = field(default_factory=list)
    F_per_object: list[float] = field(default_factory=list)
    iou_visible: list[float] = field(default_factory=list)
    dice_visible: list[float] = field(default_factory=list)

    def add_object(self, predicted: list[np.ndarray], true: list[np.ndarray | None]) -> float:
        """Score one object on the frames given (prompted frames left out by the caller); None: truly absent.

        Returns:
            The object's J.
        """
        ious, boundaries = [], []
        for mask, truth in zip(predicted, true, strict=True):
            expected = np.zeros_like(mask) if truth is None else truth
            ious.append(region_similarity(mask, expected))
            boundaries.append(boundary_measure(mask, expected))
            if expected.any():
                self.iou_visible.append(ious[-1])
                self.dice_visible.append(dice(mask, expected))
        self.J_per_object.append(float(np.mean(ious)))
        self.F_per_object.append(float(np.mean(boundaries)))
        return self.J_per_object[-1]

    def summary(self) -> dict[str, float]:
        """``J`` and ``F``: mean over objects of their mean over frames; ``J&F``: the mean of the two; ``mIoU`` and
        ``Dice``: mean over all object-frames on which the object is visible. NaN without objects."""

        def mean(values: list[float]) -> float:
            return float(np.mean(values)) if values else math.nan

        region, boundary = mean(self.J_per_object), mean(self.F_per_object)
        return {
            "J": region,
            "F": boundary,
            "J&F": (region + boundary) / 2,
            "mIoU": mean(self.iou_visible),
            "Dice": mean(self.dice_visible),
        }
