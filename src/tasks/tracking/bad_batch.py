"""Batches written down to look at, such as those whose loss was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...core.files import write_atomically
from ...data.clips import ClipBatch
from ...data.clips.preview import sheet_of_clips
from ...data.writers import write_image


def dump_batches(folder: Path, batches: Sequence[ClipBatch]) -> None:
    """Write batches to look at: ``sheet.png``, their clips with masks, and all tensors as ``batch_<number>.npz``.

    Raises:
        UserError: the folder cannot be written to.
    """
    clips = [clip for batch in batches for clip in batch.clips()]
    write_image(folder / "sheet.png", sheet_of_clips([(clip.name, clip) for clip in clips]))
    for number, batch in enumerate(batches):
        arrays = {
            "names": np.array(batch.names),
            "frames_BTHWC": batch.frames_BTHWC.numpy(),
            "masks_TOHW": batch.masks_TOHW.numpy(),
            "annotated_TO": batch.annotated_TO.numpy(),
            "video_of_object": batch.video_of_object.numpy(),
        }
        write_atomically(folder / f"batch_{number}.npz", partial(_write_npz, arrays))


def _write_npz(arrays: dict[str, np.ndarray], path: Path) -> None:
    with open(path, "wb") as file:  # to a path without its ending, numpy would add one
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
