"""Masks and prompts drawn into pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

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
