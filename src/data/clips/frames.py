"""The frames and masks of a clip, read at the model's resolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ..records import ObjectTrack, VideoRecord
from .transforms import resize_mask, resize_picture


def read_masks(video: VideoRecord, objects: list[ObjectTrack], path_T: np.ndarray, size: int) -> Tensor:
    """Read soft masks of objects (T, O, size, size); none is decoded twice."""
    frames_S, place_T = np.unique(path_T, return_inverse=True)
    empty = torch.zeros(size, size)
    masks = []
    for t in frames_S.tolist():
        found = (o.segmentations[t] for o in objects)
        masks.append(torch.stack([empty if s is None else resize_mask(s.decode(), size, size) for s in found]))
    return torch.stack(masks)[place_T]


def read_void(video: VideoRecord, path_T: np.ndarray, size: int) -> Tensor:
    """Read soft void areas as of one more object (T, 1, size, size), or (T, 0, size, size) if no frame has any."""
    if not any(int(t) in video.void for t in path_T):
        return torch.zeros(len(path_T), 0, size, size)
    areas = ObjectTrack(1, [video.void.get(t) for t in range(len(video))])
    return read_masks(video, [areas], path_T, size)


def read_pictures(video: VideoRecord, path_T: np.ndarray, size: int) -> Tensor:
    """Read frames (T, 3, size, size); none is read twice."""
    frames_S, place_T = np.unique(path_T, return_inverse=True)
    pictures = [resize_picture(_read_frame(video, t), size, size) for t in frames_S.tolist()]
    return torch.stack(pictures)[place_T]


def _read_frame(video: VideoRecord, frame: int) -> np.ndarray:
    source = video.frames[frame]
    pixels = source.read()
    height, width = pixels.shape[:2]
    if (height, width) != (video.height, video.width):
        raise UserError(
            f"{source.name}: the frame is {width}×{height} pixels, its annotations are for "
            f"{video.width}×{video.height}; all frames of a video must have one size",
            "data.frame-size",
        )
    return for_torch(pixels)


def for_torch(pixels: np.ndarray) -> np.ndarray:
    """Return the same array if torch can share its memory, else a copy."""
    return np.require(pixels, requirements=["C", "W"])
