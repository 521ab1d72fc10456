"""The models that ship: one spec each."""

from __future__ import annotations

from .spec import ModelSpec, register_model

DEFAULT_MODEL = "sam2_nano"
"""What ``model.name`` is where a config does not say it: small, with bundled weights."""


def _sam2(
    name: str, config: str, image_size: int, differences: str | None = None, source_world: str | None = None
) -> None:
    """Register a SAM 2.1: a config of the ``sam2`` package, and a file in ``sam2/configs`` that differs from it."""
    register_model(
        ModelSpec(
            name=name,
            task="tracking",
            room=".sam2",
            image_size=image_size,
            stride=32,
            pixel_mean=(0.485, 0.456, 0.406),  # ImageNet's
            pixel_std=(0.229, 0.224, 0.225),
            default_targets=tuple(f"memory_attention.*.{p}_proj" for p in ("q", "k", "v", "out")),
            encoder=("image_encoder.",),
            memory=("memory_attention.", "memory_encoder."),
            decoder=("sam_mask_decoder.",),
            checkpointed_blocks=("image_encoder.trunk.blocks.*", "memory_attention.layers.*"),
            model_class="sam2.modeling.sam2_base.SAM2Base",
            source_world=source_world,
            requires=("sam2",),
            details={"config": config, "differences": differences},
        )
    )


_sam2(DEFAULT_MODEL, "configs/sam2.1/sam2.1_hiera_t.yaml", 128, "sam2_nano.yaml", source_world="source")
_sam2("sam2.1_hiera_tiny", "configs/sam2.1/sam2.1_hiera_t.yaml", 1024)
_sam2("sam2.1_hiera_small", "configs/sam2.1/sam2.1_hiera_s.yaml", 1024)
_sam2("sam2.1_hiera_base_plus", "configs/sam2.1/sam2.1_hiera_b+.yaml", 1024)
_sam2("sam2.1_hiera_large", "configs/sam2.1/sam2.1_hiera_l.yaml", 1024)
