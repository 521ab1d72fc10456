"""Phrases on images, with found and true rectangles: hand-made and drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.data.records import RLE
from src.evaluation.concepts.records import ConceptPrediction, ConceptTruth

SIZE = 32

Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1."""


def mask(rectangle: Rectangle) -> np.ndarray:
    x0, y0, x1, y1 = rectangle
    mask_HW = np.zeros((SIZE, SIZE), bool)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


def found(
    image: str, phrase: str, rectangles: Sequence[Rectangle], scores: Sequence[float], presence: float | None = None
) -> ConceptPrediction:
    return ConceptPrediction(
        image, phrase, np.array(scores, np.float64), np.array(rectangles, np.float64).reshape(-1, 4),
        [RLE.encode(mask(each)) for each in rectangles], presence,
    )  # fmt: skip


def true(
    image: str, phrase: str, rectangles: Sequence[Rectangle], category: int = 1, ignored: Rectangle | None = None,
    exhaustive: bool = True,
) -> ConceptTruth:  # fmt: skip
    region = None if ignored is None else RLE.encode(mask(ignored))
    return ConceptTruth(image, phrase, category, [RLE.encode(mask(each)) for each in rectangles], region, exhaustive)


def drawn(
    seed: int, images: int = 6, phrases: Sequence[str] = ("crack", "rust", "leaf"), most: int = 3
) -> tuple[list[ConceptPrediction], list[ConceptTruth], list[str]]:
    """Every phrase on every image: true rectangles, and found ones near some of them and beside them."""
    rng = np.random.default_rng(seed)

    def rectangle() -> Rectangle:
        x, y = rng.integers(0, SIZE - 12, 2).tolist()
        width, height = rng.integers(6, 12, 2).tolist()
        return x, y, x + width, y + height

    predictions, truths = [], []
    names = [f"image {i}" for i in range(images)]
    for image in names:
        for category, phrase in enumerate(phrases, 1):
            at = [rectangle() for _ in range(rng.integers(0, most + 1))]
            near = [(x0, y0, x1 + int(rng.integers(0, 3)), y1) for x0, y0, x1, y1 in at if rng.random() < 0.8]
            near += [rectangle() for _ in range(rng.integers(0, 2))]
            truths.append(true(image, phrase, at, category))
            predictions.append(found(image, phrase, near, rng.random(len(near)) * 0.9 + 0.1, float(rng.random())))
    return predictions, truths, names
