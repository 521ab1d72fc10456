"""Records → files, in the formats that the parsers read.

Masks are written at the frames' own size, under the frames' own file stems and with the objects' own numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from src.errors import UserError
from src.files import write_atomically


def davis_palette() -> np.ndarray:
    """The colours of numbers 0 to 255 in DAVIS and Pascal VOC: uint8 RGB, (256, 3).

    The bits of a number are dealt to red, green and blue in turn, and become their highest bits.
    """
    numbers_N = np.arange(256)
    colours_NC = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        colours_NC[:, bit % 3] |= (((numbers_N >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours_NC


def write_palette_png(path: Path, ids_HW: np.ndarray) -> None:
    """Write object numbers, (H, W), 0 for background, as DAVIS does: a PNG of palette indices.

    Numbers above 255, for which a palette has no room, make it a grey PNG of 16 bits; the parsers read both.

    Raises:
        UserError: a number is negative or above 65535, or the file cannot be written.
    """
    least, most = int(ids_HW.min()), int(ids_HW.max())
    if least < 0 or most > np.iinfo(np.uint16).max:
        raise UserError(f"{path}: object numbers in a PNG go from 1 to 65535, not to {least if least < 0 else most}")
    if most > np.iinfo(np.uint8).max:
        image = Image.fromarray(ids_HW.astype(np.uint16))
    else:
        image = Image.fromarray(ids_HW.astype(np.uint8))
        image.putpalette(davis_palette().tobytes())
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))
