"""Pictures of videos with masks drawn on some of their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..data.drawing import draw_masks
from ..data.records import RLE, VideoRecord

SHEET_FRAMES = 4


def true_masks(video: VideoRecord) -> dict[int, list[RLE | None]]:
    """Return a video's true masks in the form of predicted ones."""
    return {
        o.object_id: [s if s is None or isinstance(s, RLE) else RLE.encode(s.decode()) for s in o.segmentations]
        for o in video.objects
    }


def shown_frames(video: VideoRecord, frames: int = SHEET_FRAMES) -> list[int]:
    """Return the numbers of up to ``frames`` frames, spread evenly over the annotated ones."""
    annotated = [t for t in range(len(video)) if video.is_annotated(t)]
    return [annotated[i] for i in np.linspace(0, len(annotated) - 1, min(frames, len(annotated))).round().astype(int)]


def overlay_sheet(
    video: VideoRecord,
    rows: Mapping[str, Mapping[int, Sequence[RLE | None]]],
    frames: int = SHEET_FRAMES,
    cell: int = 192,
) -> np.ndarray:
    """Draw masks over some frames of a video, a row for each set of masks.

    Args:
        video: source of the frames.
        rows: label → object id → masks, one a frame (RLE or None).
        frames: number of frames (:func:`shown_frames`).
        cell: width of a frame in the sheet, in pixels.

    Returns:
        RGB uint8 (rows × height, frames × width, 3).
    """
    shown = shown_frames(video, frames)
    height = max(1, round(cell * video.height / video.width))
    sheet = []
    for label, masks in rows.items():
        cells = []
        for t in shown:
            visible = {i: mask.decode() for i, of_object in masks.items() if (mask := of_object[t]) is not None}
            picture = draw_masks(video.frames[t].read(), visible)
            image = Image.fromarray(picture).resize((cell, height))
            ImageDraw.Draw(image).text((4, 3), f"{label}, frame {t}", fill="white", stroke_width=1, stroke_fill="black")
            cells.append(np.asarray(image))
        sheet.append(np.concatenate(cells, axis=1))
    return np.concatenate(sheet)
