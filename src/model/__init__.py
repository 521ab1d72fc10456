"""SAM 2 with adapters: the model zoo, and SAM 2's own builders and predictors."""

from src.model.moe_attention import MoERoPEAttention, convert_rope_attention_to_moe
from src.model.predictors import (
    automatic_mask_generator,
    build_sam2_moe,
    build_sam2_video_predictor_moe,
    image_predictor,
)

__all__ = [
    "MoERoPEAttention",
    "automatic_mask_generator",
    "build_sam2_moe",
    "build_sam2_video_predictor_moe",
    "convert_rope_attention_to_moe",
    "image_predictor",
]
