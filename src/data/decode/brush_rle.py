"""Masks as Label Studio stores what a brush painted: RGBA values, run-length encoded to a list of bytes.

A stream of bits: the number of values (32), the size of a value less 1 (5), and four sizes of lengths less 1 (4 each).
Then blocks: 1 and one value, or 0 and several; a size's number (2), the length less 1, and the values.

Format: rle-pack of https://github.com/thi-ng/umbrella, which Label Studio uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHANNELS = 4
_LENGTHS = (3, 4, 8, 16)
_VALUE = 8


def encode_brush(mask_HW: np.ndarray) -> list[int]:
    """Return a mask, bool (H, W), as Label Studio's bytes: 255 in all channels where it is True."""
    values = np.repeat(mask_HW.reshape(-1), _CHANNELS)
    ends = np.append(np.flatnonzero(values[1:] != values[:-1]) + 1, len(values))
    bits = [f"{len(values):032b}{_VALUE - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTHS)]
    for length, end in zip(np.diff(ends, prepend=0).tolist(), ends.tolist(), strict=True):
        value = "1" * _VALUE if values[end - 1] else "0" * _VALUE
        while length:
            block = min(length, 1 << _LENGTHS[-1])
            number, size = next((n, s) for n, s in enumerate(_LENGTHS) if block <= 1 << s)
            bits.append(f"1{number:02b}{block - 1:0{size}b}{value}")
            length -= block
    stream = np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")
    packed: list[int] = np.packbits(stream).tolist()
    return packed


def decode_brush(data: Sequence[int], height: int, width: int) -> np.ndarray:
    """Return the mask, bool (H, W), where alpha is over half.

    Raises:
        ValueError: it is no such list, or one of another image size.
    """
    try:
        bits = np.unpackbits(np.frombuffer(bytes(data), np.uint8))
    except (TypeError, ValueError):
        raise ValueError("its rle is not a list of bytes") from None
    text = (bits + ord("0")).tobytes().decode()
    place = 0

    def number(size: int) -> int:
        nonlocal place
        place += size
        if place > len(text):
            raise ValueError("its rle ends too early")
        return int(text[place - size : place], 2)

    count = number(32)
    if count != _CHANNELS * height * width:
        raise ValueError(f"its rle has {count} values, {width}×{height} pixels have {_CHANNELS * height * width}")
    if number(5) + 1 != _VALUE:
        raise ValueError("its rle has values of other than 8 bits")
    lengths = [number(4) + 1 for _ in range(4)]
    values, at = np.empty(count, np.uint8), 0
    while at < count:
        repeated = number(1)
        end = at + 1 + number(lengths[number(2)])
        if end > count:
            raise ValueError("its rle runs over its end")
        if repeated:
            values[at:end] = number(_VALUE)
        else:
            place += (end - at) * _VALUE
            if place > len(text):
                raise ValueError("its rle ends too early")
            values[at:end] = np.packbits(bits[place - (end - at) * _VALUE : place])
        at = end
    mask_HW: np.ndarray = values.reshape(height, width, _CHANNELS)[..., -1] > 127
    return mask_HW
