"""SAM 3's tracker, built from SAM 2's classes, with strictly loaded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from ...config import ModelConfig, image_size_of
from ...core.errors import UserError, is_out_of_memory
from ...core.shipped import find_file
from ..sam2 import build as sam2_build
from ..sam2.build import BASE, instantiate_model, put_weights
from ..sam2.patches import FunctionOverride, frames_loaded, rebind, take_class
from ..sam2.pixels import TOKEN_STRIDE, frame_size
from ..spec import spec_of
from .config import PATCH, in_one_line, load_sam3, overrides_of, read_config
from .weights import read_tracker

_LOW_RES, _HIGH_RES = 3, 4  # places of the chosen masks in what the decoder's method returns


class TrackerPromptEncoder(PromptEncoder):
    """SAM 2's prompt encoder, for clicks in units of 14/16 of a frame's pixel.

    What a click is on is the middle of the frame's pixel, as SAM 3 has it, not that of a unit.
    """

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        embedded: Tensor = super()._embed_points(points + 0.5 * (TOKEN_STRIDE / PATCH - 1), labels, pad)
        return embedded


def config_overrides(config: ModelConfig) -> list[str]:
    """Return Hydra overrides that turn the sam2 package's config into the tracker asked for.

    Raises:
        UserError: transformers is missing or too old; the checkpoint's config is missing, damaged or another model's.
    """
    file, size = config_file(config.checkpoint), image_size_of(config)
    if file is None and config.checkpoint is not None and find_file(config.checkpoint).is_dir():
        raise UserError(
            f"model.checkpoint: {config.checkpoint} holds no config.json, which says what its weights are of; a folder "
            "of transformers' SAM 3 does",
            "base.missing",
        )
    architecture = read_config(file)
    if size < 1 or size % PATCH:  # that of the checkpoint's config, since the config's own is checked
        raise UserError(
            f"{file}: its image size, {size}, is no multiple of {PATCH}: set model.image_size", "base.unsupported"
        )
    return overrides_of(architecture, size)


def config_file(checkpoint: str | None) -> Path | None:
    """Return the ``config.json`` that stands beside weights of transformers, if there is one."""
    if checkpoint is None:
        return None
    path = find_file(checkpoint)
    file = (path if path.is_dir() else path.parent) / "config.json"
    return file if file.is_file() and path.suffix != ".pt" else None


def build_model(config: ModelConfig, target: str = BASE, **arguments: Any) -> SAM2Base:
    """Build a tracker on the CPU, with the config's checkpoint loaded strictly (random weights without one).

    Its architecture is that of the checkpoint's ``config.json``; of ``sam3.pt`` and without a checkpoint, the official
    one.

    Args:
        config: which weights, which image size.
        target: the class to build, SAM2Base or one derived from it.
        arguments: further arguments of that class.

    Raises:
        UserError: transformers is missing or too old; the checkpoint is missing, damaged, or of another model.
    """
    load_sam3()
    model = _instantiate(config, target, **arguments)
    complete(model, config.name)
    if config.checkpoint is not None:
        load_base(model, config.checkpoint, config.name)
    return model


def _instantiate(config: ModelConfig, target: str, **arguments: Any) -> SAM2Base:
    overrides, file = config_overrides(config), config_file(config.checkpoint)
    try:
        return instantiate_model(config.name, overrides, target, **arguments)
    except InstantiationException as error:
        if file is None or is_out_of_memory(error):
            raise
        reason = in_one_line(error.__cause__ or error)
        raise UserError(f"{file}: no architecture that can be built: {reason}", "base.unsupported") from None


def complete(model: SAM2Base, name: str) -> None:
    """Give a model that stands as its config describes it what else makes it a tracker of SAM 3."""
    sam2_build.complete(model, name)
    take_class(model.sam_prompt_encoder, TrackerPromptEncoder)
    rebind(model, ("_forward_sam_heads",), _run_with_masks_through_the_frame)
    if isinstance(model, SAM2VideoPredictor):
        rebind(model, ("init_state",), _run_with_own_frames)
        rebind(model, ("propagate_in_video_preflight",), _run_with_prompted_masks_through_the_frame)


def _run_with_masks_through_the_frame(model: SAM2Base, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Run the decoder, whose masks go to memory by way of the frame's size, as SAM 3's do; SAM 2's go directly."""
    found = list(getattr(type(model), name)(model, *args, **kwargs))
    found[_HIGH_RES] = _through_the_frame(model, found[_LOW_RES])
    return tuple(found)


def _run_with_prompted_masks_through_the_frame(predictor: SAM2VideoPredictor, name: str, state: Any) -> None:
    """Encode the memory of prompted frames, whose masks the stock predictor resizes by itself, in the same way."""
    there = (predictor.image_size, predictor.image_size)

    def resize(masks: Tensor, **_: Any) -> Tensor:
        return _through_the_frame(predictor, masks)

    def applies(args: Any, kwargs: Any) -> bool:
        return kwargs.get("size") == there and not kwargs.get("antialias", False)

    with FunctionOverride(F.interpolate, resize, applies):
        getattr(type(predictor), name)(predictor, state)


def _through_the_frame(model: SAM2Base, masks: Tensor) -> Tensor:
    """Return mask logits (…, h, w) at memory's size, resized to the frame's size first."""
    side, there = frame_size(model), model.image_size
    at_frame = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
    return F.interpolate(at_frame, (there, there), mode="bilinear", align_corners=False, antialias=True)


def _run_with_own_frames(predictor: SAM2VideoPredictor, name: str, *args: Any, **kwargs: Any) -> Any:
    """Run a stock method that loads frames."""
    spec = spec_of(predictor)
    with frames_loaded(frame_size(predictor), spec.pixel_mean, spec.pixel_std):
        return getattr(type(predictor), name)(predictor, *args, **kwargs)


def load_base(model: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load base weights strictly: every key of the tracker is in the file, and every key of the file is known.

    Args:
        model: a tracker, with adapters, which stay as they are, or without.
        path: a folder of transformers, a safetensors file of one, or Meta's ``sam3.pt``; half-precision weights are
            widened.
        name: the model's name, for messages.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint, or its keys or shapes are those of another model.
    """
    put_weights(model, read_tracker(path), path, name)
