"""SAM 3's image encoder, as a part of SAM 2's classes."""

from __future__ import annotations

import json
from typing import Any

from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import Tensor
from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionModel

LEVELS = 3
"""Of the neck's four levels the first; the last, the coarsest, is only there to load."""


class ImageEncoder(Sam3VisionModel):
    """``Sam3VisionModel`` with the tracker's neck, called as SAM 2 calls its ``ImageEncoder``.

    Args:
        vision_config: a Sam3VisionConfig as JSON. Its image size is the only one that the encoder takes.
    """

    def __init__(self, vision_config: str) -> None:
        super().__init__(Sam3VisionConfig(**json.loads(vision_config)))
        self.neck.d_model = width = self.config.fpn_hidden_size
        self.neck.position_encoding = PositionEmbeddingSine(num_pos_feats=width, normalize=True)

    def forward(self, sample: Tensor) -> dict[str, Any]:
        """Encode normalised images (B, 3, S, S): feature maps (B, C, h, w), fine to coarse, and their positions."""
        tokens_BNC = self.backbone(sample).last_hidden_state
        side = sample.shape[-1] // self.config.backbone_config.patch_size
        map_BChw = tokens_BNC.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        levels = [layer(map_BChw) for layer in self.neck.fpn_layers[:LEVELS]]
        positions = [self.neck.position_encoding(level).to(level.dtype) for level in levels]
        return {"vision_features": levels[-1], "vision_pos_enc": positions, "backbone_fpn": levels}
