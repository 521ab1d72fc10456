"""What the trainer sees: clips drawn into a picture, to look at before a run."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from src.data.clips import Clip, ClipDataset
from src.data.drawing import draw_masks
from src.errors import UserError

GAP = 4  # pixels between clips


def contact_sheet(dataset: ClipDataset, count: int, epoch: int = 0, largest: int = 512) -> np.ndarray:
    """Clips of an epoch, one a row, with their masks: frames after resizing, motion and augmentation, as trained on.

    An object has the same colour on all frames of its clip; on the first one it may be prompted. Frames without
    annotation say so: they are tracked through, and nothing is learned from them.

    Args:
        dataset: where the clips are drawn.
        count: rows, spread evenly over the epoch's clips, so that every set shows in its share.
        epoch: whose draws are shown.
        largest: larger frames than this many pixels are scaled down to it.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        UserError: a frame cannot be read.
    """
    rows = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)).tolist():
        clip = dataset[epoch, index]
        if isinstance(clip, UserError):
            raise clip
        data, video = dataset.source(epoch, index)
        rows.append(_row(clip, f"{data.name}: {video.video_id}", min(largest, dataset.size)))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _row(clip: Clip, title: str, side: int) -> np.ndarray:
    """The frames of a clip beside each other, (side, T × side, 3), the first one with the title."""
    cells = []
    for t, frame in enumerate(clip.frames_THWC):
        masks = dict(enumerate(clip.masks_TOHW[t], 1)) if clip.annotated_T[t] else {}
        picture = Image.fromarray(draw_masks(frame, masks)).resize((side, side))
        lines = [title, f"{len(masks)} object{'s' * (len(masks) > 1)}"] if t == 0 else []
        lines += [] if clip.annotated_T[t] else ["not annotated"]
        ImageDraw.Draw(picture).text((4, 3), "\n".join(lines), fill="white", stroke_width=1, stroke_fill="black")
        cells.append(np.asarray(picture))
    return np.concatenate(cells, axis=1)
