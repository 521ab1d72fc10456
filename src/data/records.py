"""The plain records every format parser produces: videos with frame sources, objects with a segmentation per frame.

A still image is a video of one frame. Nothing outside the parsers knows a file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class FrameSource(Protocol):
    """Where one frame's pixels come from."""

    @property
    def name(self) -> str:
        """A name for messages: a path, or a path with a frame number."""

    def read(self) -> np.ndarray:
        """The frame as RGB, uint8, shape (H, W, 3). Raises UserError naming the file if it cannot be read."""


@dataclass(frozen=True)
class ArrayFrame:
    """A frame that is already in memory: RGB, uint8, (H, W, 3)."""

    array: np.ndarray
    name: str = "array"

    def read(self) -> np.ndarray:
        return self.array


class Segmentation(Protocol):
    """One object's area on one frame."""

    def decode(self) -> np.ndarray:
        """The mask, bool, (H, W) of the frame."""

    def area(self) -> int:
        """The mask's area in pixels."""


@dataclass(frozen=True)
class RLE:
    """A mask as pycocotools' compressed run-length encoding: ``{"size": [H, W], "counts": bytes}``."""

    rle: dict[str, Any]

    @classmethod
    def encode(cls, mask_HW: np.ndarray) -> RLE:
        from pycocotools import mask as coco_mask

        return cls(coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)))

    def decode(self) -> np.ndarray:
        from pycocotools import mask as coco_mask

        return coco_mask.decode(self.rle).astype(bool)

    def area(self) -> int:
        from pycocotools import mask as coco_mask

        return int(coco_mask.area(self.rle))


@dataclass(frozen=True)
class ObjectTrack:
    """One object of a video. ``segmentations[t]`` is its area on frame t, or None where it is absent."""

    object_id: int
    segmentations: list[Segmentation | None]
    category: str | None = None


@dataclass(frozen=True)
class VideoRecord:
    """One video (or still image) with its objects.

    ``height`` and ``width`` are in pixels, as the frames come out of ``FrameSource.read``.
    """

    video_id: str
    height: int
    width: int
    frames: list[FrameSource]
    objects: list[ObjectTrack]

    def __len__(self) -> int:
        return len(self.frames)

    def masks(self, frame: int) -> dict[int, np.ndarray]:
        """Masks of the objects seen on a frame: object id → bool (H, W)."""
        found = ((o.object_id, o.segmentations[frame]) for o in self.objects)
        return {object_id: s.decode() for object_id, s in found if s is not None}


@dataclass
class DataSet:
    """The videos of one split, with what was left out or repaired on the way in.

    ``notes`` maps a kind of repair or omission ("crowd annotations left out") to how often it happened.
    """

    name: str
    videos: list[VideoRecord]
    notes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.videos)

    def median_object_side(self, size: int) -> float:
        """The median over objects and frames of the area's square root, in pixels on frames of ``size`` × ``size``."""
        shares = [
            segmentation.area() / (video.height * video.width)
            for video in self.videos
            for obj in video.objects
            for segmentation in obj.segmentations
            if segmentation is not None
        ]
        return float(np.median(np.sqrt(shares))) * size
