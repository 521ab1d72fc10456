"""SAM 3's tracker's room: the functions of :class:`~src.models.protocols.ModelRoom`, most of them SAM 2's."""

from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from ...config import ModelConfig, PromptConfig
from ...core.errors import UserError
from ..sam2 import train_forward
from ..sam2.gate_hooks import attach_gate, detach_gate, gate_features, to_pixels
from ..sam2.predictors import image_predictor
from ..sam2.streaming import StreamingTracker as tracker
from ..sam2.tracking import as_video_predictor, track_objects
from ..sam2.train_forward import (
    build_loss,
    encode_frames,
    has_frozen_encoder,
    seed_draws,
    segmentation_losses,
    track_clips,
)
from .build import build_model, complete, config_overrides, load_base

__all__ = [
    "as_video_predictor",
    "attach_gate",
    "build_loss",
    "build_model",
    "build_trainable",
    "complete",
    "config_overrides",
    "detach_gate",
    "encode_frames",
    "gate_features",
    "has_frozen_encoder",
    "how_to_load",
    "image_predictor",
    "load_base",
    "seed_draws",
    "segmentation_losses",
    "to_pixels",
    "track_clips",
    "track_objects",
    "tracker",
    "write_official",
    "write_transformers",
]


def build_trainable(config: ModelConfig, prompts: PromptConfig, frames: int) -> train_forward.TrainableSAM2:
    """Build a tracker for training; see :func:`src.models.sam2.train_forward.build_trainable`."""
    return train_forward.build_trainable(config, prompts, frames, build_model)


def write_official(model: nn.Module, config: ModelConfig, path: Path) -> NoReturn:
    """Refuse: merged weights of SAM 3's tracker have no form here. Raises UserError."""
    raise UserError(
        f"{path} was not written: of sam3_tracker only --format adapter and peft can be written", "export.unsuited-form"
    )


def write_transformers(model: nn.Module, lora: Any, about: Any, gate: Any, folder: Path) -> NoReturn:
    """Refuse, as :func:`write_official`. Raises UserError."""
    raise UserError(
        f"{folder} was not written: of sam3_tracker only --format adapter and peft can be written",
        "export.unsuited-form",
    )


def how_to_load(config: ModelConfig, path: Path) -> str:
    """Return the Python that gets the tracker with a merged checkpoint."""
    return f'build_sam2_video_predictor_moe with a YAML whose model.checkpoint is "{path}"'
