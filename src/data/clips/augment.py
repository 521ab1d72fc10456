"""Augmentation: drawn once for a clip, applied to all its frames."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as colour

from ...config import AugmentationConfig
from .transforms import affine, stable_mean

MEAN_COLOUR = (123.0, 116.0, 103.0)  # beyond the edges of a turned picture

VIEWS_TRIED = 4  # draws of an affine view, each of which loses an object, before there is only the flip


def sample_view(
    masks_OHW: Tensor, aspect: float, augmentation: AugmentationConfig, rng: np.random.Generator
) -> Tensor:  # fmt: skip
    """Draw how a clip is seen: mirrored, turned, sheared, scaled, shifted; the same for all frames.

    Args:
        masks_OHW: of the first frame, on which every object must still be seen. A view that loses one is drawn again,
            a few times; after that there is the flip alone.
        aspect: width / height of the picture before it was made square; angles are meant in that picture.
        augmentation: magnitudes.
        rng: random numbers for all draws.

    Returns:
        (2, 3): maps a position in the clip to the position in the picture that is seen there; the picture spans −1…1.
    """
    mirror = torch.tensor([[-1.0], [1.0]]) if rng.random() < augmentation.flip else torch.ones(2, 1)

    def draw(limit: float) -> Tensor:
        return torch.tensor([rng.uniform(-limit, limit)], dtype=torch.float32)

    for _ in range(VIEWS_TRIED):
        angle, shear, scale = draw(augmentation.degrees), draw(augmentation.shear), draw(augmentation.scale)
        shift_x, shift_y = draw(augmentation.translate), draw(augmentation.translate)
        view = mirror * affine(angle, shear, scale, shift_x, shift_y, aspect)[0]
        if (_seen_through(view, masks_OHW[None]) > 0.5).any(-1).any(-1).all():
            return view
    return mirror * torch.eye(2, 3)


def apply_view(frames_T3HW: Tensor, masks_TOHW: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Return a clip and its soft masks, seen through a view of :func:`sample_view`.

    Beyond the picture's edges there is one plain colour. A mirrored picture would show objects there without masks.
    Frames may have no channels, as those of :func:`simulate_motion`.
    """
    mean = torch.tensor(MEAN_COLOUR)[: frames_T3HW.shape[1], None, None]
    return _seen_through(view, frames_T3HW - mean) + mean, _seen_through(view, masks_TOHW)


def _seen_through(view: Tensor, images_NCHW: Tensor) -> Tensor:
    grid = F.affine_grid(view[None], [1, 1, *images_NCHW.shape[2:]], align_corners=False)
    return F.grid_sample(images_NCHW, grid.expand(len(images_NCHW), -1, -1, -1), align_corners=False)


def augment_colours(frames_T3HW: Tensor, augmentation: AugmentationConfig, rng: np.random.Generator) -> Tensor:
    """Change the colours of a whole clip, sometimes to grey, then each frame's a little."""
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
    """Change contrast as torchvision does, with a mean that no number of threads changes."""
    grey_N1HW = colour.rgb_to_grayscale(frames).reshape(-1, 1, *frames.shape[-2:])
    mean = torch.tensor([stable_mean(grey) for grey in grey_N1HW]).reshape(*frames.shape[:-3], 1, 1, 1)
    return (frames * factor + mean * (1 - factor)).clamp(0, 1)
