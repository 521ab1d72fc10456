"""Simulated motion, which turns a still image into a clip."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import MotionConfig
from .transforms import affine, stable_mean


def simulate_motion(
    image_3HW: Tensor, masks_OHW: Tensor, frames: int, aspect: float, motion: MotionConfig, rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Turn a still image into a clip: affine motion, a growing smooth warp, a change of light, sometimes an occluder.

    Args:
        image_3HW: RGB, or (0, H, W) where only masks are wanted: they are the same, and so are the draws.
        masks_OHW: one for each object.
        frames: frames to make; the motion is spread over them, and the first frame is the image itself, unmoved.
        aspect: width / height of the image before it was resized; angles are meant in that image.
        motion: magnitudes over the whole clip.
        rng: random numbers for all draws.

    Returns:
        Frames (T, 3, H, W) and masks as bool (T, O, H, W).
    """
    height, width = image_3HW.shape[-2:]
    time_T = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)

    def spread(limit: float) -> Tensor:
        return time_T * float(rng.uniform(-limit, limit))

    angle_T, shear_T, scale_T = spread(motion.degrees), spread(motion.shear), spread(motion.scale)
    moves_T23 = affine(angle_T, shear_T, scale_T, spread(motion.translate), spread(motion.translate), aspect)
    grid_THW2 = F.affine_grid(moves_T23, [frames, 1, height, width], align_corners=False)
    warp = torch.from_numpy(rng.normal(0, 1, (1, 2, 4, 4)).astype(np.float32)) * motion.elastic
    warp_HW2 = F.interpolate(warp, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    grid_THW2 = grid_THW2 + time_T[:, None, None, None] * warp_HW2

    # the picture is mirrored at its edges; masks are not, since what comes into view there is not the object
    still_T3HW, still_TOHW = (still.expand(frames, -1, -1, -1) for still in (image_3HW, masks_OHW))
    moved_T3HW = F.grid_sample(still_T3HW, grid_THW2, padding_mode="reflection", align_corners=False)
    masks_TOHW = F.grid_sample(still_TOHW, grid_THW2, padding_mode="zeros", align_corners=False) > 0.5
    if rng.random() < motion.occlusion and frames > 1:
        _pass_in_front(moved_T3HW, masks_TOHW, rng)
    gain_T = (1 + spread(motion.contrast))[:, None, None, None]
    offset_T = 255 * spread(motion.brightness)[:, None, None, None]
    centre = stable_mean(moved_T3HW)
    return (moved_T3HW - centre) * gain_T + centre + offset_T, masks_TOHW


def _pass_in_front(frames_T3HW: Tensor, masks_TOHW: Tensor, rng: np.random.Generator) -> None:
    """Let a bar, filled with a piece of the picture itself, sweep across the clip after its first frame (in place)."""
    frames, _, height, width = frames_T3HW.shape
    half = rng.uniform(0.04, 0.1)
    angle = rng.uniform(0, np.pi)
    start, end = rng.uniform(-0.6, -0.3), rng.uniform(0.3, 0.6)
    y, x = torch.meshgrid(
        torch.linspace(-0.5, 0.5, height), torch.linspace(-0.5, 0.5, width), indexing="ij"
    )  # fmt: skip
    across = x * float(np.cos(angle)) + y * float(np.sin(angle))
    filling = frames_T3HW[0].roll((height // 3, width // 3), dims=(-2, -1)).flip(-1)
    for t in range(1, frames):
        centre = start + (end - start) * t / max(frames - 1, 1)
        bar = (across - centre).abs() < half
        frames_T3HW[t] = torch.where(bar, filling, frames_T3HW[t])
        masks_TOHW[t] &= ~bar
