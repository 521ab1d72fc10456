"""Predicted masks as PNG files, in the layouts that the official tools score.

Masks are written for every frame, at the size they were scored at: a video's own, a still's up to
``evaluation.max_side``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from ..core.errors import UserError
from ..core.files import inside
from ..data.records import RLE, VideoRecord
from ..data.writers import frame_names, write_palette_png

MOST_IN_A_PALETTE = 255

_SAFE_NAME = re.compile(r"[\w#-]([\w# .-]{0,98}[\w#-])?")
"""Names that every system takes for a file: no separators, and no dot or space at the ends."""


def write_masks(folder: Path, video: VideoRecord, predicted: Mapping[int, Sequence[RLE]], exclusive: bool) -> None:
    """Write one video's masks.

    Args:
        folder: folder of the data set; the video gets a folder in it.
        video: the video. Files have the names of its frames, or their numbers where names repeat.
        predicted: object id → masks, one a frame; objects that are not scored are left out.
        exclusive: whether no two masks of a frame overlap. If so, a frame is one PNG of object numbers,
            ``VIDEO/FRAME.png``, as in DAVIS. Otherwise, or with numbers above 255, an object has a folder of its own,
            ``VIDEO/OBJECT/FRAME.png``, as in SA-V; see :func:`object_folders`.

    Raises:
        UserError: a file cannot be written, or the video's name leads out of the folder.
    """
    place = inside(folder, video.video_id)
    folders = object_folders(video)
    one_image = exclusive and max(predicted, default=0) <= MOST_IN_A_PALETTE
    for t, name in enumerate(frame_names(video)):
        ids_HW = np.zeros((video.height, video.width), np.int64)
        for object_id, masks in predicted.items():
            mask_HW = masks[t].decode()
            if one_image:
                ids_HW[mask_HW] = object_id
            else:
                write_palette_png(place / folders[object_id] / f"{name}.png", mask_HW.astype(np.int64))
        if one_image:
            write_palette_png(place / f"{name}.png", ids_HW)


def write_truth(folder: Path, video: VideoRecord) -> None:
    """Write a video's true masks, on annotated frames, as SA-V's tool reads them: ``VIDEO/OBJECT/FRAME.png``.

    Raises:
        UserError: a file cannot be written, or the video's name leads out of the folder.
    """
    place, folders = inside(folder, video.video_id), object_folders(video)
    for t, name in enumerate(frame_names(video)):
        if video.is_annotated(t):
            masks = video.masks(t)
            for object_id, called in folders.items():
                mask_HW = masks.get(object_id, np.zeros((video.height, video.width), bool))
                write_palette_png(place / called / f"{name}.png", mask_HW.astype(np.int64))


def object_folders(video: VideoRecord) -> dict[int, str]:
    """Return the names of the objects' folders: the ids in the data set's files, by which official tools pair folders.

    They are the objects' numbers where an id cannot be a name, or two ids differ in case only.
    """
    own = {o.object_id: str(o.object_id if o.original_id is None else o.original_id) for o in video.objects}
    distinct = len({name.casefold() for name in own.values()}) == len(own)
    if distinct and all(_SAFE_NAME.fullmatch(name) for name in own.values()):
        return own
    return {object_id: str(object_id) for object_id in own}


def refuse_overlap(video: VideoRecord) -> None:
    """Raise UserError if true masks of a video overlap, which a protocol of one object per pixel cannot score."""
    for t in filter(video.is_annotated, range(len(video))):
        found = [s for o in video.objects if (s := o.segmentations[t]) is not None]
        masks = [s if isinstance(s, RLE) else RLE.encode(s.decode()) for s in found]
        if coco_mask.area(coco_mask.merge([mask.rle for mask in masks])) < sum(mask.area() for mask in masks):
            raise UserError(
                f"{video.video_id}: true masks overlap on frame {t}, and evaluation.protocol davis gives a pixel to "
                "one object; take sav or after_prompt",
                code="evaluation.overlapping-masks",
            )
