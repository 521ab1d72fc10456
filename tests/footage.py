"""Short videos to follow something through, and standard input that sends one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

SIDE = 16
"""Of the frames of :func:`y4m`, in pixels."""


def moving_block(frames: int, height: int, width: int) -> list[np.ndarray]:
    """Dark noise, RGB uint8 (H, W, 3), and a red block of 20 × 30 pixels that moves right by 2 pixels a frame."""
    pictures = np.random.default_rng(0).integers(0, 120, (frames, height, width, 3), dtype=np.uint8)
    for t, picture in enumerate(pictures):
        picture[10:30, 10 + 2 * t : 40 + 2 * t] = (200, 60, 60)
    return list(pictures)


def y4m(count: int) -> Iterator[bytes]:
    """A raw video: frame t is as bright as t."""
    yield f"YUV4MPEG2 W{SIDE} H{SIDE} F25:1 Ip C444\n".encode()
    for t in range(count):
        yield b"FRAME\n" + bytes([16 + t % 200]) * SIDE**2 + bytes([128]) * (2 * SIDE**2)


@contextmanager
def piped(chunks: Iterator[bytes]) -> Iterator[None]:
    """Standard input that another thread writes into."""
    out, into = os.pipe()
    before = os.dup(0)
    os.dup2(out, 0)
    os.close(out)

    def write() -> None:
        with suppress(BrokenPipeError), open(into, "wb") as file:
            for chunk in chunks:
                file.write(chunk)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)
        writer.join(10)
