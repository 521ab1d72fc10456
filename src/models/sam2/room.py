"""SAM 2's room: the functions of :class:`~src.models.protocols.ModelRoom`."""

from .build import build_model
from .gate_hooks import attach_gate, detach_gate, gate_features, to_pixels
from .predictors import image_predictor
from .streaming import StreamingTracker as tracker
from .tracking import as_video_predictor, track_objects
from .train_forward import build_trainable

__all__ = [
    "as_video_predictor",
    "attach_gate",
    "build_model",
    "build_trainable",
    "detach_gate",
    "gate_features",
    "image_predictor",
    "to_pixels",
    "track_objects",
    "tracker",
]
