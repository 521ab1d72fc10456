"""Geometry and colour of clips: resizing, and the simulated motion that turns a still image into a clip.

Everything is drawn once per clip and applied to every frame, so that a clip stays consistent in time.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.config import MotionConfig


def resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize of a float image or soft mask (C, H, W)."""
    if image_CHW.shape[-2:] == (height, width):
        return image_CHW
    return F.interpolate(image_CHW[None], (height, width), mode="bilinear", antialias=True)[0]


def simulate_motion(
    image_HWC: np.ndarray, masks_OHW: np.ndarray, frames: int, height: int, width: int, motion: MotionConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Turn a still image into a clip: affine motion, a growing smooth warp, a change of light, sometimes an occluder.

    Args:
        image_HWC: RGB uint8.
        masks_OHW: bool, one mask per object.
        frames: frames to make; the motion is spread over them, and the first frame is the image itself, unmoved.
        height, width: size of the frames made, in pixels.
        motion: magnitudes over the whole clip.
        rng: where all draws come from.

    Returns:
        Frames uint8 (T, H, W, 3) and masks bool (T, O, H, W).
    """
    image = resize(torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1).float(), height, width)
    masks = resize(torch.from_numpy(masks_OHW.astype(np.float32)), height, width)
    if rng.random() < motion.flip:
        image, masks = image.flip(-1), masks.flip(-1)
    time_T = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)

    def spread(limit: float) -> Tensor:
        return time_T * float(rng.uniform(-limit, limit))

    # output → input coordinates in units where the image spans −1…1; x is widened by the aspect ratio for rotation
    angle_T, shear_T = torch.deg2rad(spread(motion.degrees)), torch.deg2rad(spread(motion.shear))
    scale_T = 1 / (1 + spread(motion.scale))
    aspect = width / height
    cos, sin, shear = torch.cos(angle_T) * scale_T, torch.sin(angle_T) * scale_T, torch.tan(shear_T)
    row_x = torch.stack([cos, (cos * shear - sin) / aspect, 2 * spread(motion.translate)], dim=-1)
    row_y = torch.stack([sin * aspect, sin * shear + cos, 2 * spread(motion.translate)], dim=-1)
    grid_THW2 = F.affine_grid(torch.stack([row_x, row_y], dim=1), [frames, 1, height, width], align_corners=False)

    warp = torch.from_numpy(rng.normal(0, 1, (1, 2, 4, 4)).astype(np.float32)) * motion.elastic
    warp_HW2 = F.interpolate(warp, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    grid_THW2 = grid_THW2 + time_T[:, None, None, None] * warp_HW2

    count = image.shape[0] + masks.shape[0]
    stack = torch.cat([image, masks])[None].expand(frames, count, height, width)
    # the picture is mirrored at its edges; masks are not, since what comes into view there is not the object
    moved_T3HW = F.grid_sample(stack[:, :3], grid_THW2, padding_mode="reflection", align_corners=False)
    masks_TOHW = F.grid_sample(stack[:, 3:], grid_THW2, padding_mode="zeros", align_corners=False) > 0.5

    if rng.random() < motion.occlusion and frames > 1:
        _pass_in_front(moved_T3HW, masks_TOHW, rng)
    gain_T = (1 + spread(motion.contrast))[:, None, None, None]
    offset_T = 255 * spread(motion.brightness)[:, None, None, None]
    centre = moved_T3HW.mean()
    moved_T3HW = (moved_T3HW - centre) * gain_T + centre + offset_T
    frames_THWC = moved_T3HW.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return frames_THWC.numpy(), masks_TOHW.numpy()


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
