"""Right, wrong and missing instances of a phrase on an image, counted as cgF1 does.

Instances whose score reaches the threshold are matched one to one with the true ones, by the largest sum of IoUs.
SAM 3: Segment Anything with Concepts (Carion et al., 2025, https://arxiv.org/abs/2511.16719), section on metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from .records import ConceptPrediction, ConceptTruth, Region

SCORE_THRESHOLD = 0.5
"""Score from which an instance is an answer."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's."""

IGNORED_SHARE = 0.5
"""An instance is left out if more of it than this is in the ignored area, and it is none of the true ones."""


@dataclass(frozen=True)
class PairCounts:
    """One phrase on one image.

    Attributes:
        image_id: the image.
        present: whether the phrase is truly there.
        answered: whether an instance was found.
        tp_T, fp_T, fn_T: right, wrong and missing instances at each IoU threshold, int64 (10,).
        presence: the probability that the phrase is there: the presence head's, or without one the best score.
    """

    image_id: str
    present: bool
    answered: bool
    tp_T: np.ndarray
    fp_T: np.ndarray
    fn_T: np.ndarray
    presence: float

    @property
    def f1(self) -> float:
        """F1 at IoU 0.5 of this pair alone; 1 where nothing is there and nothing was found."""
        errors = int(self.fp_T[0] + self.fn_T[0])
        return 2 * int(self.tp_T[0]) / (2 * int(self.tp_T[0]) + errors) if self.present or self.answered else 1.0


def count_pair(
    prediction: ConceptPrediction,
    truth: ConceptTruth,
    region: Region = "segm",
    threshold: float = SCORE_THRESHOLD,
) -> PairCounts:
    """Match one phrase's instances on one image with the true ones, and count."""
    found = prediction.regions(region)
    ious_NM = overlaps(found, truth.regions(region))
    kept_N = (prediction.scores >= threshold) & ~_left_out(found, ious_NM, truth, region)
    ious_NM = ious_NM[kept_N]
    rows, columns = linear_sum_assignment(-ious_NM)
    matched_T = (ious_NM[rows, columns] >= IOU_THRESHOLDS[:, None]).sum(axis=1)
    count, true = ious_NM.shape
    presence = prediction.presence
    if presence is None:
        presence = float(prediction.scores.max(initial=0))
    return PairCounts(
        prediction.image_id, true > 0, count > 0, matched_T, count - matched_T, true - matched_T, presence
    )


def overlaps(found: list[dict[str, object]] | np.ndarray, true: list[dict[str, object]] | np.ndarray) -> np.ndarray:
    """Return the IoU of each found with each true instance, float64 (N, M)."""
    if not len(found) or not len(true):
        return np.zeros((len(found), len(true)))
    ious_NM: np.ndarray = coco_mask.iou(found, true, [0] * len(true))
    return ious_NM


def _left_out(
    found: list[dict[str, object]] | np.ndarray, ious_NM: np.ndarray, truth: ConceptTruth, region: Region
) -> np.ndarray:
    """Return which instances are mostly in the ignored area and match no true one, bool (N,)."""
    if truth.ignored is None or not len(found):
        return np.zeros(len(found), bool)
    area = truth.ignored.rle
    where = [area] if region == "segm" else np.asarray([coco_mask.toBbox(area)], np.float64)
    inside_N = coco_mask.iou(found, where, [1])[:, 0]  # against a crowd: intersection over the found area
    is_inside_N: np.ndarray = (inside_N > IGNORED_SHARE) & (ious_NM.max(axis=1, initial=0) < IOU_THRESHOLDS[0])
    return is_inside_N
