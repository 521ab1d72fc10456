"""Pictures of answers: instances with their phrase and score, truth beside models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ...data.drawing import COLOURS, draw_labels, draw_masks
from .matching import SCORE_THRESHOLD
from .records import ConceptPrediction, ConceptTruth

MOST_PHRASES = 4
"""Rows of a sheet."""

CELL = 192
"""Longer side of a picture in a sheet, in pixels."""


def answer_sheet(
    image_HW3: np.ndarray, truths: Sequence[ConceptTruth], models: Mapping[str, Sequence[ConceptPrediction]]
) -> np.ndarray:
    """Draw one image, a row for each phrase and a column for the truth and each model.

    Rows are of phrases that are there or that a model answered, at most four.

    Args:
        image_HW3: RGB uint8.
        truths: of every phrase.
        models: model → its predictions, in the order of ``truths``.

    Returns:
        RGB uint8 (rows × height, columns × width, 3).
    """
    height, width = image_HW3.shape[:2]
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    asked = [
        i
        for i, truth in enumerate(truths)
        if truth.masks or any((of[i].scores >= SCORE_THRESHOLD).any() for of in models.values())
    ]
    rows = []
    for i in (asked or range(len(truths)))[:MOST_PHRASES]:
        phrase = truths[i].phrase
        picture = draw_masks(image_HW3, {n: mask.decode() for n, mask in enumerate(truths[i].masks)})
        cells = [_titled(picture, size, f"truth: {phrase}")]
        for name, predictions in models.items():
            picture = draw_answer(image_HW3, predictions[i], named=False)
            found = predictions[i].scores[predictions[i].scores >= SCORE_THRESHOLD]
            cells.append(_titled(picture, size, f"{name}: " + (", ".join(f"{s:.2f}" for s in found[:6]) or "nothing")))
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def draw_answer(image_HW3: np.ndarray, prediction: ConceptPrediction, named: bool = True, first: int = 0) -> np.ndarray:
    """Draw the instances of a phrase whose score reaches the threshold, with its name and scores.

    Args:
        image_HW3: RGB uint8.
        prediction: the answer; without masks its boxes are drawn.
        named: whether phrase and score stand beside each instance.
        first: the number whose colour the first instance has.

    Returns:
        RGB uint8 (H, W, 3).
    """
    found = np.flatnonzero(prediction.scores >= SCORE_THRESHOLD).tolist()
    masks = {first + n: prediction.masks[i].decode() for n, i in enumerate(found)} if prediction.masks else {}
    picture = Image.fromarray(draw_masks(image_HW3, masks))
    pen = ImageDraw.Draw(picture)
    for n, i in enumerate(found):
        corners = prediction.boxes[i].tolist()
        if not prediction.masks:
            colour = tuple(COLOURS[(first + n) % len(COLOURS)].tolist())
            pen.rectangle(corners, outline=colour, width=max(1, max(image_HW3.shape) // 400))
    if not named:
        return np.asarray(picture)
    labels = (
        (first + n, f"{prediction.phrase} {prediction.scores[i]:.2f}", tuple(prediction.boxes[i].tolist()[:2]))
        for n, i in enumerate(found)
    )
    return draw_labels(np.asarray(picture), labels)


def _titled(picture_HW3: np.ndarray, size: tuple[int, int], title: str) -> np.ndarray:
    image = Image.fromarray(picture_HW3).resize(size)
    ImageDraw.Draw(image).text((4, 3), title, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)
