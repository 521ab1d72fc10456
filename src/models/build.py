"""Building a model by what its spec says."""

from __future__ import annotations

from torch import nn

from ..config import ModelConfig
from .spec import model_spec


def build_model(config: ModelConfig) -> nn.Module:
    """Build a model on the CPU, with the config's checkpoint loaded strictly (random weights without one).

    Raises:
        UserError: the checkpoint is missing, damaged, or of another model.
    """
    return model_spec(config.name).load().build_model(config)
