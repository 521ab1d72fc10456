"""Mask images: palette PNGs, grey label images, and colours.

:func:`read_label_image` reads a file by itself. :func:`label_tracks` decides for a video as a whole what values mean:
one frame alone does not show whether 255 is DAVIS' void or the white of a binary mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ...core.errors import UserError
from ..records import RLE
from .images import open_image

VOID = 255
"""The number that palette and 8-bit grey masks give to what is no object's and not background either."""

MOTS_VOID = 10000
"""The number that MOTS gives to areas that are to be ignored."""

MAX_VALUES = 1000
"""A file of more different values is no mask of objects but a picture or a depth map."""

MAX_COLOURS = 255

_BINARY = "set dataset.mask_threshold=0.5 (init --mask-threshold 0.5) if all are black and white"


@lru_cache(maxsize=1)
def davis_palette() -> np.ndarray:
    """Return the colours of numbers 0 to 255 in DAVIS and Pascal VOC: uint8 RGB, (256, 3).

    The bits of a number are dealt to red, green and blue in turn, and become their highest bits.
    """
    numbers_N = np.arange(256)
    colours_NC = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        colours_NC[:, bit % 3] |= (((numbers_N >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours_NC


@dataclass(frozen=True)
class LabelImage:
    """The areas of a mask file by their non-zero value.

    ``kind`` says what values are: ``bytes``, palette indices or 8-bit grey; ``numbers``, deeper grey; ``colours``,
    24-bit RGB.
    """

    kind: Literal["bytes", "numbers", "colours"]
    size: tuple[int, int]
    areas: dict[int, RLE]

    def foreground(self) -> RLE:
        """Return all areas as one."""
        if not self.areas:
            return RLE.encode(np.zeros(self.size, dtype=bool))
        return RLE(coco_mask.merge([area.rle for area in self.areas.values()]))


def read_label_image(path: Path, threshold: float | None = None) -> LabelImage:
    """Read a mask file. Where it is wholly transparent it is background.

    Args:
        path: the file.
        threshold: share of white from which on a pixel is object 1, in a file of any kind; None: values are labels.

    Raises:
        UserError: it cannot be read, or its values are no labels: a JPEG, a blurred mask, a picture.
    """
    with open_image(path) as image:
        if threshold is not None:
            return _black_and_white(image, threshold)
        if image.format in ("JPEG", "MPO"):
            raise UserError(
                f"{path}: a JPEG, whose compression changes the numbers of objects; save masks as PNG, or {_BINARY}",
                "mask.jpeg",
            )
        values_HW = _values(path, image)
        grey = image.mode in ("L", "LA")
    if grey and is_blurred(values_HW):
        raise UserError(
            f"{path}: black and white with greys between, so it was blurred or resized; save masks without smoothing, "
            f"or {_BINARY}",
            "mask.blurred",
        )
    colours = image.mode in ("RGB", "RGBA")
    present = [int(value) for value in np.unique(values_HW) if value]
    if len(present) > (MAX_COLOURS if colours else MAX_VALUES):
        raise UserError(
            f"{path}: {len(present)} different {'colours' if colours else 'numbers'}, so it is no mask of objects, or "
            f"was blurred in resizing; save masks without smoothing, as PNG, or {_BINARY}",
            "mask.too-many-values",
        )
    values_HW = np.asfortranarray(values_HW)
    areas = {value: RLE.encode(values_HW == value) for value in present}
    kind: Literal["bytes", "numbers", "colours"] = "numbers"
    if colours:
        kind = "colours"
    elif values_HW.dtype == np.uint8:
        kind = "bytes"
    return LabelImage(kind, values_HW.shape, areas)


def label_tracks(images: Sequence[LabelImage | None]) -> tuple[dict[int | str, list[RLE | None]], dict[int, RLE]]:
    """Return the objects of a video from the mask files of its frames.

    A frame without a file has None.

    Numbers are objects, also across files of several kinds. Beside numbers of 1000 and more (class × 1000 + instance),
    10000 is MOTS' ignore region, and void. Of bytes, 255 is void, unless the video's masks know no
    other number: then they are binary, and white is object 1. Colours that are all shades of grey are read as bytes;
    colours of DAVIS' palette as its indices; if there is any other one, each colour is an object, called ``#rrggbb``.

    Returns:
        Object's number or colour → its area on every frame, ordered by number; and frame → void area.
    """
    meaning = _meaning_of_colours({v for image in images if image and image.kind == "colours" for v in image.areas})
    named = [
        {} if image is None else {meaning[v] if image.kind == "colours" else v: a for v, a in image.areas.items()}
        for image in images
    ]
    # deeper numbers have no void but MOTS'
    byte_valued = [frame for frame, image in enumerate(images) if image is not None and image.kind != "numbers"]
    values = {value for areas in named for value in areas}
    void: dict[int, RLE] = {}
    for frame in byte_valued:
        area = named[frame].pop(VOID, None)
        if area is None:
            continue
        if values == {VOID}:
            named[frame][1] = area
        else:
            void[frame] = area
    numbers = {v for image in images if image and image.kind == "numbers" for v in image.areas}
    if MOTS_VOID in numbers and all(1000 <= number < MOTS_VOID for number in numbers - {MOTS_VOID}):
        void |= {frame: areas.pop(MOTS_VOID) for frame, areas in enumerate(named) if MOTS_VOID in areas}
    keys = sorted({key for areas in named for key in areas}, key=lambda key: (isinstance(key, str), key))
    return {key: [areas.get(key) for areas in named] for key in keys}, void


def _black_and_white(image: Image.Image, threshold: float) -> LabelImage:
    """Return what is brighter than a share of white as object 1."""
    grey_HW = np.array(image.convert("LA"))
    deep = image.mode == "F" or image.mode.startswith("I")  # which Pillow's grey of 8 bits cuts off
    values_HW = np.array(image).astype(np.float64) if deep else grey_HW[..., 0] * (grey_HW[..., 1] > 0) / 255.0
    if deep:
        values_HW = values_HW / max(1.0, float(values_HW.max()))
    inside_HW = np.asfortranarray(values_HW > threshold)
    areas = {1: RLE.encode(inside_HW)} if inside_HW.any() else {}
    return LabelImage("bytes", (inside_HW.shape[0], inside_HW.shape[1]), areas)


def _values(path: Path, image: Image.Image) -> np.ndarray:
    """Return whole numbers, (H, W): uint8 of palette and grey images, else wider.

    Colours are 0xRRGGBB.
    """
    if image.mode in ("1", "L", "P"):
        return np.array(image).astype(np.uint8)
    if image.mode == "LA":
        grey, alpha = (np.array(band) for band in image.split())
        return np.where(alpha > 0, grey, np.uint8(0))
    if image.mode in ("RGB", "RGBA"):
        bands = [np.array(band).astype(np.int32) for band in image.split()]
        colours_HW = bands[0] << 16 | bands[1] << 8 | bands[2]
        return colours_HW if image.mode == "RGB" else np.where(bands[3] > 0, colours_HW, 0)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.array(image)
        if (values >= 0).all() and (values == np.floor(values)).all():
            return values.astype(np.int64)
        raise UserError(
            f"{path}: holds numbers that are negative or not whole, so it is no mask of objects", "mask.numbers"
        )
    raise UserError(f"{path}: a mask in mode {image.mode}; save masks as PNG with a palette or in grey", "mask.mode")


def is_blurred(values_HW: np.ndarray) -> bool:
    """Return whether 8-bit grey is a black and white mask with soft edges.

    Its greys would pass for hundreds of objects.
    """
    counts = np.bincount(values_HW.ravel(), minlength=256)
    between = np.flatnonzero(counts[1:255]) + 1
    # numbers of objects are small and go on without gaps; soft edges take all of the range, and little room
    return bool(len(between) >= 16 and between[-1] > 200 and counts[between].sum() < 4 * counts[255])


def _meaning_of_colours(colours: set[int]) -> dict[int, int | str]:
    """Return what each colour, 0xRRGGBB, of a video's masks stands for."""
    if all(colour >> 16 == colour >> 8 & 255 == colour & 255 for colour in colours):
        return {colour: colour & 255 for colour in colours}
    numbers = {red << 16 | green << 8 | blue: n for n, (red, green, blue) in enumerate(davis_palette().tolist())}
    if colours <= numbers.keys():
        return {colour: numbers[colour] for colour in colours}
    return {colour: f"#{colour:06x}" for colour in colours}
