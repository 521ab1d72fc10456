"""Small videos to draw clips from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from src.config import AugmentationConfig, ClipConfig, MotionConfig
from src.core.errors import UserError
from src.data.clips import Clip, sample_clip
from src.data.records import RLE, ArrayFrame, ObjectTrack, VideoRecord

STILL = MotionConfig(degrees=0, translate=0, scale=0, shear=0, brightness=0, contrast=0, elastic=0, occlusion=0)

NO_AUGMENTATION = AugmentationConfig(**dict.fromkeys(AugmentationConfig.model_fields, 0))

SIDE = 32


def block(x0: int, y0: int, width: int, height: int, side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y0 : y0 + height, x0 : x0 + width] = True
    return mask


def record(masks: list[list[np.ndarray | None]], side: int = SIDE, name: str = "video") -> VideoRecord:
    """A video of noise with the objects' masks, object by object."""
    rng = np.random.default_rng(0)
    frames = [ArrayFrame(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), f"{t}") for t in range(len(masks[0]))]
    objects = [
        ObjectTrack(i, [None if mask is None else RLE.encode(mask) for mask in track], f"kind {i}")
        for i, track in enumerate(masks, 1)
    ]
    return VideoRecord(name, side, side, list(frames), objects)


@dataclass(frozen=True)
class Counted:
    """A frame that notes when it is read."""

    pixels: np.ndarray
    name: str
    reads: list[str]

    def read(self) -> np.ndarray:
        self.reads.append(self.name)
        return self.pixels


def counted(video: VideoRecord) -> tuple[VideoRecord, list[str]]:
    """The video with frames that note in the list when they are read."""
    reads: list[str] = []
    return replace(video, frames=[Counted(f.read(), str(t), reads) for t, f in enumerate(video.frames)]), reads


def sparse(video: VideoRecord, *annotated: int) -> VideoRecord:
    """The video as if only some of its frames had been annotated."""
    objects = [
        replace(o, segmentations=[s if t in annotated else None for t, s in enumerate(o.segmentations)])
        for o in video.objects
    ]
    return replace(video, objects=objects, annotated=frozenset(annotated))


class Unreadable:
    name = "bad.png"

    def read(self) -> np.ndarray:
        raise UserError("bad.png: not an image")


def draw(
    video: VideoRecord,
    seed: int = 0,
    size: int = SIDE,
    least: float = 0,
    augmentation: AugmentationConfig | None = None,
    **config,
) -> Clip:
    config.setdefault("motion", STILL)
    return sample_clip(video, ClipConfig(**config), size, least, np.random.default_rng(seed), augmentation)


def same(a: Clip, b: Clip) -> bool:
    return np.array_equal(a.frames_THWC, b.frames_THWC) and np.array_equal(a.masks_TOHW, b.masks_TOHW)


def flip_only(chance: float) -> AugmentationConfig:
    return NO_AUGMENTATION.model_copy(update={"flip": chance})


def moving(frames: int) -> VideoRecord:
    """A video of two objects: one moves, one grows."""
    return record([[block(2 + t, 4, 6, 6) for t in range(frames)], [block(2, 20, 5, 5 + t) for t in range(frames)]])
