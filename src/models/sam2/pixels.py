"""Pixels as SAM 2 and models of its kind take them."""

from __future__ import annotations

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ..spec import ModelSpec, model_spec, spec_of

FAMILY = model_spec("sam2_nano")
"""For what all SAM 2.1 have in common: pixels, strides, names of parts."""

TOKEN_STRIDE = 16
"""``SAM2Base.image_size`` per token: masks and prompts of all models of its kind are that large, whatever they see."""


def frame_size(model: SAM2Base) -> int:
    """Return the side, in pixels, of the square frames that a model's encoder takes.

    It is ``model.image_size`` where tokens are 16 pixels apart in frames too, as in SAM 2.
    """
    stride = spec_of(model).memory_stride
    assert stride is not None
    return int(model.image_size) // TOKEN_STRIDE * stride


def pixel_scale(spec: ModelSpec, device: torch.device, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Return a model's mean and deviation of pixels in 0–1, each (channels,)."""
    mean, std = spec.pixel_mean[:channels], spec.pixel_std[:channels]
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


def normalise(frames: Tensor, spec: ModelSpec) -> Tensor:
    """Frames uint8 (…, H, W, 3) → float32 (…, 3, H, W), a model's mean and deviation taken out; or no channels."""
    mean, std = pixel_scale(spec, frames.device, frames.shape[-1])
    return ((frames.float() / 255 - mean) / std).movedim(-1, -3)
