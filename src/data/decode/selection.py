"""Some of a video's frames, and smaller ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice

import numpy as np
from PIL import Image

from ...core.errors import UserError
from ..prompts import Prompt, PromptsByFrame
from .video import FrameStream


def parse_range(text: str) -> tuple[int, int | None]:
    """Return the first frame and the one after the last, of ``100:400``, ``100:`` or ``:400``.

    Raises:
        ValueError: it is none of these, or holds no frame.
    """
    found = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text)
    start, stop = (int(found[1] or 0), int(found[2]) if found[2] else None) if found else (0, 0)
    if stop is not None and stop <= start:
        raise ValueError(text)
    return start, stop


@dataclass(frozen=True)
class Selection:
    """Frames of a video, numbered from 0 again; a :class:`~src.data.decode.video.FrameStream` itself.

    Attributes:
        footage: the video.
        start: its first frame that is taken.
        stop: the first that is not any more; None: the video's end.
        every: take each so manieth frame.
        max_side: larger frames are scaled down to this many pixels on their longer side; None: none are.
        given_rate: frames per second in place of what the video says.
    """

    footage: FrameStream
    start: int = 0
    stop: int | None = None
    every: int = 1
    max_side: int | None = None
    given_rate: Fraction | None = None

    @property
    def name(self) -> str:
        """The video's name."""
        return self.footage.name

    @property
    def count(self) -> int | None:
        """Number of frames taken; None where the video's is not known."""
        total = self.footage.count
        if total is None:
            return None
        return len(range(self.start, total if self.stop is None else min(self.stop, total), self.every))

    @property
    def rate(self) -> Fraction:
        """Frames taken per second."""
        return self.given_rate or self.footage.rate / self.every

    def frame_file(self, index: int) -> str:
        """Return the file name that the video has for a frame."""
        return self.footage.frame_file(self.start + index * self.every)

    def __iter__(self) -> Iterator[np.ndarray]:
        taken = False
        for frame in islice(self.footage, self.start, self.stop, self.every):
            taken = True
            yield self._scaled(frame)
        if not taken:
            count = "" if self.footage.count is None else f" {self.footage.count}"
            raise UserError(
                f"--frames: {self.name} has{count} frames, none of them from {self.start} on", "frames.none"
            )

    def select_prompts(self, prompts: PromptsByFrame) -> PromptsByFrame:
        """Return prompts by the numbers of the frames taken, scaled as frames are.

        Args:
            prompts: by the video's own numbers and in its own pixels; those on frame 0 are for the first one taken.

        Raises:
            UserError: a prompt is for a frame that is not taken.
        """
        chosen: PromptsByFrame = {}
        for number, on_frame in prompts.items():
            index, rest = divmod((number or self.start) - self.start, self.every)
            if rest or index < 0 or (self.stop is not None and self.start + index * self.every >= self.stop):
                raise UserError(
                    f"a prompt is for frame {number}, which --frames and --every leave out", "prompts.no-such-frame"
                )
            chosen.setdefault(index, []).extend(on_frame)
        if self.max_side is None:
            return chosen
        height, width = next(iter(self.footage)).shape[:2]
        size = self._size(height, width)
        return {index: [_scaled_prompt(p, (height, width), size) for p in each] for index, each in chosen.items()}

    def _size(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, (self.max_side or max(height, width)) / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _scaled(self, frame_HWC: np.ndarray) -> np.ndarray:
        height, width = self._size(*frame_HWC.shape[:2])
        if (height, width) == frame_HWC.shape[:2]:
            return frame_HWC
        return np.asarray(Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BOX))


def _scaled_prompt(prompt: Prompt, old: tuple[int, int], new: tuple[int, int]) -> Prompt:
    y, x = new[0] / old[0], new[1] / old[1]
    mask = prompt.mask
    if mask is not None and mask.shape == old:
        mask = np.asarray(Image.fromarray(mask).resize((new[1], new[0]), Image.Resampling.NEAREST))
    return replace(
        prompt,
        points=tuple((px * x, py * y) for px, py in prompt.points),
        box=None if prompt.box is None else tuple(v * s for v, s in zip(prompt.box, (x, y, x, y), strict=True)),  # type: ignore[arg-type]
        mask=mask,
    )
