"""cgF1, written down once more from the definitions: pixel by pixel, every matching tried, no shortcuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return (one & other).sum() / union if union else 0.0


def best_matching(found: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> list[float]:
    """The IoUs of the one-to-one matching with the largest sum."""
    few, many = sorted((found, true), key=len)
    tried = ([iou(a, b) for a, b in zip(few, chosen, strict=True)] for chosen in permutations(many, len(few)))
    return max(tried, key=sum)


def cgf1(pairs: Sequence[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]) -> dict[str, float]:
    """The scores of pairs of image and phrase: masks found with score 0.5 or more, and true masks."""
    TP = sum(bool(found and true) for found, true in map(_lists, pairs))
    FP = sum(bool(found and not true) for found, true in map(_lists, pairs))
    FN = sum(bool(true and not found) for found, true in map(_lists, pairs))
    TN = len(pairs) - TP - FP - FN
    product = (TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)
    MCC = (TP * TN - FP * FN) / product**0.5 if product else 0.0
    F1 = []
    for threshold in THRESHOLDS:
        right = wrong = missing = 0
        for found, true in map(_lists, pairs):
            matched = sum(each >= threshold - 1e-12 for each in best_matching(found, true)) if found and true else 0
            right, missing = right + matched, missing + len(true) - matched
            wrong += len(found) - matched if true else 0
        F1.append(2 * right / (2 * right + wrong + missing) if right else 0.0)
    pmF1 = sum(F1) / 10
    return {
        "pmF1": pmF1, "pmF1@50": F1[0], "IL_MCC": MCC, "IL_FPR": FP / (FP + TN) if FP + TN else 0.0,
        "cgF1": 100 * pmF1 * MCC, "cgF1@50": 100 * F1[0] * MCC,
    }  # fmt: skip


def _lists(pair: tuple[Sequence[np.ndarray], Sequence[np.ndarray]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return list(pair[0]), list(pair[1])


def auroc(present: Sequence[float], absent: Sequence[float]) -> float:
    wins = [1.0 if p > a else 0.5 if p == a else 0.0 for p in present for a in absent]
    return sum(wins) / len(wins)
