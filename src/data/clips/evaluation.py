"""Clips of simulated motion, as which still images are evaluated or shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ...config import MotionConfig
from ..records import RLE, ArrayFrame, VideoRecord
from .frames import for_torch
from .motion import simulate_motion
from .transforms import resize_mask, resize_picture, to_pixels


def animate_picture(
    picture_HW3: np.ndarray, frames: int, max_side: int, motion: MotionConfig, rng: np.random.Generator
) -> np.ndarray:
    """Make a clip of simulated motion from a picture without labels.

    RGB uint8 (T, H, W, 3). Arguments as for :func:`evaluation_video`.
    """
    height, width = picture_HW3.shape[:2]
    picture_3HW = resize_picture(for_torch(picture_HW3), *_at_most(max_side, height, width))
    nothing_1HW = torch.zeros_like(picture_3HW[:1])
    return to_pixels(simulate_motion(picture_3HW, nothing_1HW, frames, width / height, motion, rng)[0])


def evaluation_video(
    video: VideoRecord, index: int, frames: int, max_objects: int, max_side: int, motion: MotionConfig
) -> VideoRecord:
    """Return a video as it is evaluated; a still becomes a clip of simulated motion.

    The clip is the same one every time.

    Args:
        video: a video or still image with objects.
        index: its index in the data set, which seeds the motion.
        frames: length of the clip that a still becomes.
        max_objects: objects kept, largest first.
        max_side: stills larger than this many pixels are scaled down to it.
        motion: magnitudes of the simulated motion; nothing is augmented.
    """
    if len(video) > 1:
        return video
    masks = video.masks(0)
    if not masks:
        return replace(video, objects=[])
    largest = sorted(masks, key=lambda object_id: (-int(masks[object_id].sum()), object_id))[:max_objects]
    height, width = _at_most(max_side, video.height, video.width)
    rng = np.random.default_rng((len(video.objects), index))
    rng.random()  # an earlier version drew a flip first: so motions, and with them scores, stay comparable
    picture_3HW = resize_picture(for_torch(video.frames[0].read()), height, width)
    areas = [masks[object_id] for object_id in largest] + [area.decode() for area in video.void.values()]
    soft_OHW = torch.stack([resize_mask(area, height, width) for area in areas])
    frames_T3HW, masks_TOHW = simulate_motion(picture_3HW, soft_OHW, frames, video.width / video.height, motion, rng)
    void_TVHW = masks_TOHW[:, len(largest) :].numpy()
    tracks = dict(zip(largest, masks_TOHW[:, : len(largest)].numpy().swapaxes(0, 1), strict=True))
    known = {o.object_id: o for o in video.objects}
    objects = [
        replace(known[i], segmentations=[RLE.encode(mask) if mask.any() else None for mask in track_THW])
        for i, track_THW in tracks.items()
        if track_THW[0].any()
    ]
    pictures = enumerate(to_pixels(frames_T3HW))
    sources = [ArrayFrame(frame, f"{video.video_id} frame {t}", f"{t:05d}") for t, frame in pictures]
    void = {t: RLE.encode(area_HW) for t, area_VHW in enumerate(void_TVHW) for area_HW in area_VHW if area_HW.any()}
    return VideoRecord(video.video_id, height, width, list(sources), objects, void=dict(void))


def _at_most(max_side: int, height: int, width: int) -> tuple[int, int]:
    """Scale height and width down to sides of at most ``max_side``."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
