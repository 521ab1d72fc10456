"""Scores of masks: J and F of an object frame by frame, and DAVIS' measures, mean IoU and Dice of a set of objects.

J, F, recall and decay are those of DAVIS (Perazzi et al., CVPR 2016, section 5; Pont-Tuset et al., 2017,
https://arxiv.org/abs/1704.00675), as https://github.com/davisvideochallenge/davis2017-evaluation computes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

STATISTICS = ("J_recall", "J_decay", "F_recall", "F_decay")

BOUNDARY_TOLERANCE = 0.008
"""Distance within which outline pixels match, as a share of the image diagonal; DAVIS' value."""

RECALL_THRESHOLD = 0.5
DECAY_BINS = 4


def region_similarity(predicted_HW: np.ndarray, true_HW: np.ndarray) -> float:
    """Return the intersection over union of two bool masks; 1 where both are empty."""
    union = np.count_nonzero(predicted_HW | true_HW)
    return np.count_nonzero(predicted_HW & true_HW) / union if union else 1.0


def dice(predicted_HW: np.ndarray, true_HW: np.ndarray) -> float:
    """Return twice the intersection over the sum of areas of two bool masks; 1 where both are empty."""
    total = np.count_nonzero(predicted_HW) + np.count_nonzero(true_HW)
    return 2 * np.count_nonzero(predicted_HW & true_HW) / total if total else 1.0


def boundary_measure(predicted_HW: np.ndarray, true_HW: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """Return the F-measure between the outlines of two bool masks.

    Outline pixels match within ``tolerance`` × image diagonal. DAVIS dilates each outline by a disk and counts what it
    covers of the other. That is equal to comparing a distance transform with the disk's radius, whose cost does not
    depend on the radius.
    """
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
    """Return the pixels whose right, lower or lower right neighbour differs (DAVIS' seg2bmap at full size)."""
    right, below, diagonal = mask_HW.copy(), mask_HW.copy(), mask_HW.copy()
    right[:, :-1] = mask_HW[:, 1:]
    below[:-1] = mask_HW[1:]
    diagonal[:-1, :-1] = mask_HW[1:, 1:]
    outline: np.ndarray = (mask_HW ^ right) | (mask_HW ^ below)
    outline[:-1, :-1] |= mask_HW[:-1, :-1] ^ diagonal[:-1, :-1]
    return outline


def recall(values_T: np.ndarray) -> float:
    """Return the share of frames that score above 0.5."""
    return float(np.mean(values_T > RECALL_THRESHOLD))


def decay(values_T: np.ndarray) -> float:
    """Return the loss over time: the mean of the first quarter of the frames less that of the last.

    The quarters are DAVIS': neighbouring ones share one frame.
    """
    edges = np.floor(np.linspace(1, len(values_T), DECAY_BINS + 1) + 0.5 + 1e-10).astype(int) - 1
    return float(np.mean(values_T[: edges[1] + 1]) - np.mean(values_T[edges[-2] :]))


@dataclass(frozen=True)
class ObjectScores:
    """One object's scores on the T frames that count, at least one; from 0 to 1.

    Attributes:
        J_T, F_T, dice_T: float64.
        visible_T: bool, whether the object is on the frame.
    """

    J_T: np.ndarray
    F_T: np.ndarray
    dice_T: np.ndarray
    visible_T: np.ndarray

    @property
    def J(self) -> float:
        return float(self.J_T.mean())

    @property
    def F(self) -> float:
        return float(self.F_T.mean())


def score_object(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray | None], void: Sequence[np.ndarray | None] | None = None
) -> ObjectScores:
    """Score one object on the frames that count.

    Args:
        predicted: bool masks (H, W), one a frame, one at least.
        true: as many masks; None where the object is absent.
        void: as many masks of unlabelled areas, left out of both other masks; None: no such area.
    """
    rows = []
    for mask, truth, nothing in zip(predicted, true, void or [None] * len(predicted), strict=True):
        expected = np.zeros_like(mask) if truth is None else truth
        if nothing is not None:
            mask, expected = mask & ~nothing, expected & ~nothing
        rows.append(
            (region_similarity(mask, expected), boundary_measure(mask, expected), dice(mask, expected), expected.any())
        )
    J_T, F_T, dice_T, visible_T = (np.array(column) for column in zip(*rows, strict=True))
    return ObjectScores(J_T, F_T, dice_T, visible_T)


def aggregate(objects: Sequence[ObjectScores]) -> dict[str, float]:
    """Return the scores of a set of objects, NaN without objects.

    Returns:
        ``J`` and ``F``: means over objects of their means over frames, all videos together. ``J&F``: the mean of the
        two. ``mIoU`` and ``Dice``: means over all object-frames on which the object is visible.
        ``J_recall``, ``J_decay``, ``F_recall``, ``F_decay``: means over objects.
    """

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else math.nan

    scores = {"J": mean([o.J for o in objects]), "F": mean([o.F for o in objects])}
    scores["J&F"] = (scores["J"] + scores["F"]) / 2
    scores["mIoU"] = mean([float(value) for o in objects for value in o.J_T[o.visible_T]])
    scores["Dice"] = mean([float(value) for o in objects for value in o.dice_T[o.visible_T]])
    return scores | {
        "J_recall": mean([recall(o.J_T) for o in objects]),
        "J_decay": mean([decay(o.J_T) for o in objects]),
        "F_recall": mean([recall(o.F_T) for o in objects]),
        "F_decay": mean([decay(o.F_T) for o in objects]),
    }
