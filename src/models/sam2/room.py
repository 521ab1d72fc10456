"""SAM 2's room: the functions of :class:`~src.models.protocols.ModelRoom`."""

from .build import build_model
from .gate_hooks import gate_features, to_pixels
from .train_forward import as_video_predictor, build_trainable

__all__ = ["as_video_predictor", "build_model", "build_trainable", "gate_features", "to_pixels"]
