"""What tests of evaluation share."""

from __future__ import annotations

import pytest
import torch

from src.config import ModelConfig
from src.models.sam2.build import build_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(ModelConfig(image_size=64))
    with torch.no_grad():  # random weights predict next to nothing: let them predict something on every frame
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return model
