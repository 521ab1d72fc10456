"""cgF1 and its parts, from the counts of phrases on images.

SAM 3: Segment Anything with Concepts (Carion et al., 2025, https://arxiv.org/abs/2511.16719), section on metrics. The
small numbers in the denominators are those of Meta's evaluator, to which the results are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .matching import PairCounts

MICRO_SCORES = ("cgF1", "cgF1@50", "pmF1", "pmF1@50", "IL_MCC", "IL_FPR")

_INSTANCES = 1e-4
_IMAGES = 1e-6


def image_counts(pairs: Sequence[PairCounts], images: Sequence[str]) -> np.ndarray:
    """Return sums over each image's pairs, float64 (I, 34).

    They are right, wrong (where the phrase is present) and missing instances at ten thresholds, then pairs that are
    rightly answered, wrongly answered, rightly left and wrongly left without an answer.
    """
    numbers = {image_id: i for i, image_id in enumerate(images)}
    counts_IC = np.zeros((len(images), 34))
    for pair in pairs:
        present, answered = pair.present, pair.answered
        answers = [present and answered, answered and not present, not (present or answered), present and not answered]
        wrong_T = pair.fp_T if present else np.zeros_like(pair.fp_T)
        counts_IC[numbers[pair.image_id]] += np.concatenate([pair.tp_T, wrong_T, pair.fn_T, answers])
    return counts_IC


def micro_scores(counts_DC: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of D sums of :func:`image_counts`, (D, 34); each is float64 (D,).

    Returns:
        ``pmF1``: F1 of instances over the pairs whose phrase is present, all images together, the mean over IoU 0.5 to
        0.95. ``IL_MCC``: Matthews correlation of "present" and "answered". ``IL_FPR``: share of absent phrases that
        were answered. ``cgF1``: 100 × pmF1 × IL_MCC. ``@50``: at IoU 0.5 alone.
    """
    right_DT, wrong_DT, missing_DT = counts_DC[:, :10], counts_DC[:, 10:20], counts_DC[:, 20:30]
    precision_DT = right_DT / (right_DT + wrong_DT + _INSTANCES)
    recall_DT = right_DT / (right_DT + missing_DT + _INSTANCES)
    F1_DT = 2 * precision_DT * recall_DT / (precision_DT + recall_DT + _INSTANCES)
    TP_D, FP_D, TN_D, FN_D = counts_DC[:, 30:].T
    product_D = (TP_D + FP_D) * (TP_D + FN_D) * (TN_D + FP_D) * (TN_D + FN_D)
    MCC_D = (TP_D * TN_D - FP_D * FN_D) / (np.sqrt(product_D) + _IMAGES)
    pmF1_D = F1_DT.mean(axis=1)
    return {
        "cgF1": 100 * pmF1_D * MCC_D,
        "cgF1@50": 100 * F1_DT[:, 0] * MCC_D,
        "pmF1": pmF1_D,
        "pmF1@50": F1_DT[:, 0],
        "IL_MCC": MCC_D,
        "IL_FPR": FP_D / (FP_D + TN_D + _IMAGES),
    }


def presence_auroc(pairs: Sequence[PairCounts]) -> float:
    """Return how often a present phrase has a higher presence probability than an absent one; NaN without both."""
    present = np.array([pair.presence for pair in pairs if pair.present])
    absent = np.sort([pair.presence for pair in pairs if not pair.present])
    if not len(present) or not len(absent):
        return math.nan
    below, up_to = np.searchsorted(absent, present, "left"), np.searchsorted(absent, present, "right")
    return float((below + up_to).mean() / 2 / len(absent))
