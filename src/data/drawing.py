"""Masks and prompts drawn into pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .prompts import Prompt

COLOURS = np.array(
    [[230, 60, 60], [60, 160, 240], [80, 200, 90], [250, 190, 40], [180, 90, 220], [40, 210, 200], [250, 130, 40]]
)


def draw_masks(image_HWC: np.ndarray, masks: dict[int, np.ndarray]) -> np.ndarray:
    """Draw masks into a picture, tinted and outlined, each object in its colour.

    ``masks`` maps an object id to bool (H, W).
    """
    picture = image_HWC.astype(np.float32)
    for object_id, mask in masks.items():
        colour = COLOURS[object_id % len(COLOURS)]
        inner = mask.copy()
        inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        picture[mask] = picture[mask] * 0.55 + colour * 0.45
        picture[mask & ~inner] = colour
    drawn: np.ndarray = picture.round().astype(np.uint8)
    return drawn


def draw_labels(image_HWC: np.ndarray, labels: Iterable[tuple[int, str, tuple[float, float]]]) -> np.ndarray:
    """Write what objects are into a picture, each in its colour.

    Args:
        image_HWC: RGB uint8.
        labels: object id, text, and the (x, y) of the upper left corner of the object's box.
    """
    picture = Image.fromarray(image_HWC)
    pen = ImageDraw.Draw(picture)
    height, width = image_HWC.shape[:2]
    font = ImageFont.load_default(size=max(9, min(28, max(height, width) // 50)))
    for object_id, text, (x, y) in labels:
        _, _, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = right + 4, bottom + 3
        x0 = min(max(0, x), max(0, width - wide))
        y0 = y - high if y >= high else min(max(0, y), max(0, height - high))
        colour = tuple(COLOURS[object_id % len(COLOURS)].tolist())
        pen.rectangle((x0, y0, x0 + wide - 1, y0 + high - 1), fill=colour)
        pen.text((x0 + 2, y0 + 1), text, fill="black" if sum(colour) > 420 else "white", font=font)
    return np.asarray(picture)


def corner_of(mask_HW: np.ndarray) -> tuple[float, float]:
    """Return the (x, y) of the upper left corner of a mask's box."""
    return float(mask_HW.any(axis=0).argmax()), float(mask_HW.any(axis=1).argmax())


def draw_prompts(image_HWC: np.ndarray, prompts: Iterable[Prompt]) -> np.ndarray:
    """Draw boxes and clicks into a picture, each object in its colour.

    A full circle is a click on the object, a crossed one beside it.
    """
    picture = Image.fromarray(image_HWC)
    pen = ImageDraw.Draw(picture)
    line = max(1, max(image_HWC.shape) // 400)
    radius = 3 * line
    for prompt in prompts:
        colour = tuple(COLOURS[prompt.object_id % len(COLOURS)].tolist())
        if prompt.box is not None:
            pen.rectangle(prompt.box, outline=colour, width=line)
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            place = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(place, fill=colour if label else "white", outline="white" if label else colour, width=line)
            if not label:
                pen.line((x - radius, y, x + radius, y), fill=colour, width=line)
    return np.asarray(picture)
