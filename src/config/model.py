"""The section ``model``: which model, with which weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from .section import Section

ModelName = Literal[
    "sam2_nano", "sam2.1_hiera_tiny", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2.1_hiera_large"
]


class ModelConfig(Section):
    """Which SAM 2, with which weights."""

    name: ModelName = "sam2_nano"
    checkpoint: str | None = Field(None, description="official .pt or safetensors; null: random weights")
    image_size: int | None = Field(None, gt=0, description="pixels, a multiple of 32; null: the model's own")

    @field_validator("image_size")
    @classmethod
    def _multiple_of_stride(cls, value: int | None) -> int | None:
        if value is not None and value % 32:
            raise ValueError(f"must be a multiple of 32, such as {max(32, round(value / 32) * 32)}")
        return value
