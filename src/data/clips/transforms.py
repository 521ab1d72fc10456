"""Geometry and colour of clips: resizing, augmentation, and the simulated motion that turns a still image into a clip.

Pictures are float in 0–255, masks float in 0–1 (the share of a pixel that is the object's) until the last resampling.
All is the same to the bit with any number of torch's threads: only sums would depend on it, so :func:`_mean` does them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as colour

from ...config import AugmentationConfig, MotionConfig

MEAN_COLOUR = (123.0, 116.0, 103.0)  # what SAM 2's recipe puts where a turned picture leaves nothing
LARGE, FACTOR = 2048, 4
"""Sides over ``LARGE`` pixels and ``FACTOR`` times what is wanted are shortened to the larger, in bytes, first."""
VIEWS_TRIED = 4  # draws of an affine view that loses an object, before there is none


def resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize of a float image or soft mask (C, H, W)."""
    if image_CHW.shape[-2:] == (height, width):
        return image_CHW
    return F.interpolate(image_CHW[None], (height, width), mode="bilinear", antialias=True)[0]


def resize_picture(pixels_HW3: np.ndarray, height: int, width: int) -> Tensor:
    """A uint8 RGB picture (H, W, 3) → float (3, height, width); a large one never becomes float as it is."""
    return resize(_shortened(torch.from_numpy(pixels_HW3).permute(2, 0, 1), height, width).float(), height, width)


def resize_mask(mask_HW: np.ndarray, height: int, width: int) -> Tensor:
    """A bool mask (H, W) → soft mask (height, width), as :func:`resize_picture`."""
    bytes_1HW = torch.from_numpy(mask_HW.view(np.uint8) * np.uint8(255))[None]
    return resize(_shortened(bytes_1HW, height, width).float() / 255, height, width)[0]


def _shortened(bytes_CHW: Tensor, height: int, width: int) -> Tensor:
    """A uint8 image (C, H, W) whose sides are shortened to the limits of ``LARGE`` and ``FACTOR``."""
    before = bytes_CHW.shape[-2:]
    sides = [min(side, max(LARGE, FACTOR * wanted)) for side, wanted in zip(before, (height, width), strict=True)]
    if tuple(sides) == tuple(before):
        return bytes_CHW
    return F.interpolate(bytes_CHW[None], sides, mode="bilinear", antialias=True)[0]


def to_pixels(frames_T3HW: Tensor) -> np.ndarray:
    """Float frames (T, 3, H, W) → uint8 (T, H, W, 3)."""
    return frames_T3HW.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def draw_view(
    masks_OHW: Tensor, aspect: float, augmentation: AugmentationConfig, rng: np.random.Generator
) -> Tensor:  # fmt: skip
    """Draw how a clip is looked at: mirrored or not, turned, sheared, scaled and shifted, the same for all its frames.

    Args:
        masks_OHW: of the first frame, on which every object must still be seen. A view that loses one is drawn again,
            a few times; after that there is the flip alone.
        aspect: width / height of the picture before it was made square, as whose angles the angles are meant.
        augmentation: magnitudes.
        rng: where all draws come from.

    Returns:
        (2, 3): takes a place in the clip to the place in the picture that is seen there; the picture spans −1…1.
    """
    mirror = torch.tensor([[-1.0], [1.0]]) if rng.random() < augmentation.flip else torch.ones(2, 1)

    def draw(limit: float) -> Tensor:
        return torch.tensor([rng.uniform(-limit, limit)], dtype=torch.float32)

    for _ in range(VIEWS_TRIED):
        angle, shear, scale = draw(augmentation.degrees), draw(augmentation.shear), draw(augmentation.scale)
        shift_x, shift_y = draw(augmentation.translate), draw(augmentation.translate)
        view = mirror * _affine(angle, shear, scale, shift_x, shift_y, aspect)[0]
        if (_seen_through(view, masks_OHW[None]) > 0.5).any(-1).any(-1).all():
            return view
    return mirror * torch.eye(2, 3)


def apply_view(frames_T3HW: Tensor, masks_TOHW: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """A clip, with its soft masks, as it is seen through a view of :func:`draw_view`.

    Beyond the picture's edges there is one plain colour: mirrored, an object there would go on without its mask.
    Frames may have no channels, as those of :func:`simulate_motion`.
    """
    mean = torch.tensor(MEAN_COLOUR)[: frames_T3HW.shape[1], None, None]
    return _seen_through(view, frames_T3HW - mean) + mean, _seen_through(view, masks_TOHW)


def _seen_through(view: Tensor, images_NCHW: Tensor) -> Tensor:
    grid = F.affine_grid(view[None], [1, 1, *images_NCHW.shape[2:]], align_corners=False)
    return F.grid_sample(images_NCHW, grid.expand(len(images_NCHW), -1, -1, -1), align_corners=False)


def simulate_motion(
    image_3HW: Tensor, masks_OHW: Tensor, frames: int, aspect: float, motion: MotionConfig, rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Turn a still image into a clip: affine motion, a growing smooth warp, a change of light, sometimes an occluder.

    Args:
        image_3HW: RGB, or (0, H, W) where only masks are wanted: they are the same, and so are the draws.
        masks_OHW: one for each object.
        frames: frames to make; the motion is spread over them, and the first frame is the image itself, unmoved.
        aspect: width / height of the image before it was resized, as whose angles the angles are meant.
        motion: magnitudes over the whole clip.
        rng: where all draws come from.

    Returns:
        Frames (T, 3, H, W) and masks as bool (T, O, H, W).
    """
    height, width = image_3HW.shape[-2:]
    time_T = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)

    def spread(limit: float) -> Tensor:
        return time_T * float(rng.uniform(-limit, limit))

    angle_T, shear_T, scale_T = spread(motion.degrees), spread(motion.shear), spread(motion.scale)
    moves_T23 = _affine(angle_T, shear_T, scale_T, spread(motion.translate), spread(motion.translate), aspect)
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
    centre = _mean(moved_T3HW)
    return (moved_T3HW - centre) * gain_T + centre + offset_T, masks_TOHW


def augment_colours(frames_T3HW: Tensor, augmentation: AugmentationConfig, rng: np.random.Generator) -> Tensor:
    """SAM 2's colour augmentation: a change of the whole clip, sometimes to grey, then a smaller one of each frame."""
    frames = frames_T3HW.clamp(0, 255) / 255  # the range that torchvision's functions take
    frames = _jitter(frames, augmentation.brightness, augmentation.contrast, augmentation.saturation, rng)
    if rng.random() < augmentation.grey:
        frames = colour.rgb_to_grayscale(frames, num_output_channels=3)
    limits = augmentation.frame_brightness, augmentation.frame_contrast, augmentation.frame_saturation
    return 255 * torch.stack([_jitter(frame, *limits, rng) for frame in frames])


def _jitter(
    frames: Tensor, brightness: float, contrast: float, saturation: float, rng: np.random.Generator
) -> Tensor:  # fmt: skip
    """Change three qualities in a random order, each times a number within 1 ± its limit."""
    changes = (
        (colour.adjust_brightness, brightness),
        (_adjust_contrast, contrast),
        (colour.adjust_saturation, saturation),
    )
    for i in rng.permutation(len(changes)):
        adjust, limit = changes[i]
        frames = adjust(frames, rng.uniform(1 - limit, 1 + limit))
    return frames


def _adjust_contrast(frames: Tensor, factor: float) -> Tensor:
    """As torchvision's, but by a mean of each frame (…, 3, H, W) that does not depend on the number of threads."""
    grey_N1HW = colour.rgb_to_grayscale(frames).reshape(-1, 1, *frames.shape[-2:])
    mean = torch.tensor([_mean(grey) for grey in grey_N1HW]).reshape(*frames.shape[:-3], 1, 1, 1)
    return (frames * factor + mean * (1 - factor)).clamp(0, 1)


def _mean(values: Tensor) -> float:
    """The mean, 0 of nothing, by NumPy in one thread: torch shares a sum out among threads, which changes rounding."""
    return float(values.numpy().mean(dtype=np.float64)) if values.numel() else 0.0


def _affine(angle_T: Tensor, shear_T: Tensor, scale_T: Tensor, x_T: Tensor, y_T: Tensor, aspect: float) -> Tensor:
    """Output → input coordinates (T, 2, 3) in units where the image spans −1…1, from degrees and shares of a side."""
    angle_T, shear_T, scale_T = torch.deg2rad(angle_T), torch.tan(torch.deg2rad(shear_T)), 1 / (1 + scale_T)
    cos, sin = torch.cos(angle_T) * scale_T, torch.sin(angle_T) * scale_T
    row_x = torch.stack([cos, (cos * shear_T - sin) / aspect, 2 * x_T], dim=-1)
    row_y = torch.stack([sin * aspect, sin * shear_T + cos, 2 * y_T], dim=-1)
    return torch.stack([row_x, row_y], dim=1)


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
