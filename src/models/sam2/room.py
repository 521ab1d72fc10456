"""SAM 2's room: the functions of :class:`~src.models.protocols.ModelRoom`."""

from .build import build_model
from .train_forward import as_video_predictor, build_trainable

__all__ = ["as_video_predictor", "build_model", "build_trainable"]
