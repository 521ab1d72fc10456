"""Training clips drawn into a picture, to look at before a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw

from ...core.errors import UserError
from ..drawing import draw_masks
from .dataset import ClipDataset
from .sampling import EpochSampler
from .types import Clip

CAPTION = 16  # pixels above each clip


def contact_sheet(dataset: ClipDataset, count: int, epoch: int = 0, largest: int = 512) -> np.ndarray:
    """Draw the first clips of an epoch into a picture, one a row.

    They come in the order of training, resized, moved and augmented, with their masks.

    An object has one colour on all frames of its clip; it may be prompted on the first one. Frames without annotation
    say so: they are tracked through, and nothing is learned from them.

    Args:
        dataset: where the clips are drawn.
        count: rows; no more than the epoch has clips.
        epoch: which one.
        largest: larger frames than this many pixels are scaled down to it.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        UserError: a frame cannot be read.
    """
    sampler = EpochSampler(len(dataset), dataset.seed)
    sampler.epoch = epoch
    drawn: list[tuple[str, Clip]] = []
    for key in islice(sampler, count):
        clip = dataset[key]
        if isinstance(clip, UserError):
            raise clip
        data, video = dataset.source(*key)
        drawn.append((f"{data.name}: {video.video_id}", clip))
    return sheet_of_clips(drawn, largest)


def sheet_of_clips(titled: Sequence[tuple[str, Clip]], largest: int = 512) -> np.ndarray:
    """Draw clips of one length and size with their titles, as :func:`contact_sheet` does."""
    side = min(largest, titled[0][1].frames_THWC.shape[1])
    return np.concatenate([part for title, clip in titled for part in (_caption(title, clip, side), _row(clip, side))])


def _row(clip: Clip, side: int) -> np.ndarray:
    """Draw the frames of a clip beside each other: (side, T × side, 3)."""
    cells = []
    for frame, masks_OHW, annotated in zip(clip.frames_THWC, clip.masks_TOHW, clip.annotated_T, strict=True):
        picture = Image.fromarray(draw_masks(frame, dict(enumerate(masks_OHW)))).resize((side, side))
        if not annotated:
            _write(picture, "not annotated")
        cells.append(np.asarray(picture))
    return np.concatenate(cells, axis=1)


def _caption(title: str, clip: Clip, side: int) -> np.ndarray:
    """Draw a clip's name and its number of objects: (CAPTION, T × side, 3)."""
    frames, objects = clip.masks_TOHW.shape[:2]
    strip = Image.new("RGB", (frames * side, CAPTION))
    _write(strip, f"{title}, {objects} object{'s' if objects > 1 else ''}")
    return np.asarray(strip)


def _write(picture: Image.Image, text: str) -> None:
    ImageDraw.Draw(picture).text((4, 2), text, fill="white", stroke_width=1, stroke_fill="black")
