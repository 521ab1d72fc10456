"""The models that ship: one spec each."""

from __future__ import annotations

from .spec import ModelSpec, register_model

_TRUNK, _NECK = "model.image_encoder.trunk", "model.image_encoder.neck"
_ATTENTION, _ENCODER = "model.memory_attention", "model.memory_encoder"

# SAM 2.1's architecture in small, for trying and testing on a CPU
_NANO = (
    f"{_TRUNK}.embed_dim=32",
    f"{_TRUNK}.stages=[1,1,2,1]",
    f"{_TRUNK}.global_att_blocks=[3]",
    f"++{_TRUNK}.window_spec=[8,4,8,4]",
    f"{_TRUNK}.window_pos_embed_bkg_spatial_size=[4,4]",
    f"++{_TRUNK}.drop_path_rate=0.0",
    f"{_NECK}.d_model=64",
    f"{_NECK}.position_encoding.num_pos_feats=64",
    f"{_NECK}.backbone_channel_list=[256,128,64,32]",
    f"{_ATTENTION}.d_model=64",
    f"{_ATTENTION}.num_layers=2",
    f"{_ATTENTION}.layer.d_model=64",
    f"{_ATTENTION}.layer.dim_feedforward=256",
    f"{_ATTENTION}.layer.dropout=0.0",
    f"{_ATTENTION}.layer.self_attention.embedding_dim=64",
    f"{_ATTENTION}.layer.self_attention.dropout=0.0",
    f"{_ATTENTION}.layer.cross_attention.embedding_dim=64",
    f"{_ATTENTION}.layer.cross_attention.kv_in_dim=32",
    f"{_ATTENTION}.layer.cross_attention.dropout=0.0",
    f"++{_ENCODER}.in_dim=64",
    f"{_ENCODER}.out_dim=32",
    f"{_ENCODER}.position_encoding.num_pos_feats=32",
    f"++{_ENCODER}.mask_downsampler.embed_dim=64",
    f"{_ENCODER}.fuser.layer.dim=64",
)


def _sam2(name: str, config: str, image_size: int, overrides: tuple[str, ...] = ()) -> None:
    """Register a SAM 2.1: a config of the ``sam2`` package, and what differs from it."""
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
            requires=("sam2",),
            details={"config": config, "overrides": overrides},
        )
    )


_sam2("sam2_nano", "configs/sam2.1/sam2.1_hiera_t.yaml", 128, _NANO)
_sam2("sam2.1_hiera_tiny", "configs/sam2.1/sam2.1_hiera_t.yaml", 1024)
_sam2("sam2.1_hiera_small", "configs/sam2.1/sam2.1_hiera_s.yaml", 1024)
_sam2("sam2.1_hiera_base_plus", "configs/sam2.1/sam2.1_hiera_b+.yaml", 1024)
_sam2("sam2.1_hiera_large", "configs/sam2.1/sam2.1_hiera_l.yaml", 1024)
