"""SAM 2's room: the functions of :class:`~src.models.protocols.ModelRoom`."""

from .build import build_model, complete, config_overrides, load_base
from .export import how_to_load, stock_name, write_official, write_transformers
from .gate_hooks import attach_gate, detach_gate, gate_features, to_pixels
from .predictors import automatic_mask_generator, image_predictor
from .streaming import StreamingTracker as tracker
from .tracking import as_video_predictor, track_objects
from .train_forward import (
    build_loss,
    build_trainable,
    encode_frames,
    has_frozen_encoder,
    seed_draws,
    segmentation_losses,
    track_clips,
)

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
