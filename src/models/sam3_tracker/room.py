"""SAM 3's tracker's room: the functions of :class:`~src.models.protocols.ModelRoom`, most of them SAM 2's."""

from ...config import ModelConfig, PromptConfig
from ..sam2 import train_forward
from ..sam2.gate_hooks import attach_gate, detach_gate, gate_features, to_pixels
from ..sam2.predictors import automatic_mask_generator, image_predictor
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
from .export import how_to_load, stock_name, write_official, write_transformers

__all__ = [
    "as_video_predictor",
    "attach_gate",
    "automatic_mask_generator",
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
    "stock_name",
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
