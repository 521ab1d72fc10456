"""The architecture of a SAM 3 tracker: from the config of transformers to SAM 2's classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...core.errors import UserError
from ..config_values import impossible_values
from ..sam2.build import as_overrides
from ..sam2.pixels import TOKEN_STRIDE
from ..sam2.transformers_format import load_transformers

if TYPE_CHECKING:
    from transformers import Sam3TrackerVideoConfig

MINIMUM_VERSION = "5.24"  # earlier ones make the encoder's positions in the model's precision
PATCH = 14

# what SAM 2's classes have written into them
_FIXED: Mapping[str, Any] = {
    "vision_config.scale_factors": [4.0, 2.0, 1.0, 0.5],
    "vision_config.backbone_config.patch_size": PATCH,
    "prompt_encoder_config.patch_size": PATCH,
    "prompt_encoder_config.mask_input_channels": 16,
    "prompt_encoder_config.num_point_embeddings": 4,
    "prompt_encoder_config.hidden_act": "gelu",
    "mask_decoder_config.hidden_act": "gelu",
    "mask_decoder_config.mlp_dim": 2048,
    "mask_decoder_config.num_hidden_layers": 2,
    "mask_decoder_config.num_attention_heads": 8,
    "mask_decoder_config.attention_downsample_rate": 2,
    "mask_decoder_config.num_multimask_outputs": 3,
    "mask_decoder_config.iou_head_depth": 3,
    "mask_decoder_config.iou_head_hidden_dim": 256,
    "mask_decoder_config.dynamic_multimask_via_stability": True,
    "mask_decoder_config.dynamic_multimask_stability_delta": 0.05,
    "mask_decoder_config.dynamic_multimask_stability_thresh": 0.98,
    "mask_downsampler_total_stride": TOKEN_STRIDE,
    "mask_downsampler_hidden_act": "gelu",
    "memory_fuser_hidden_act": "gelu",
}
_WIDTHS = (
    "prompt_encoder_config.hidden_size", "mask_decoder_config.hidden_size", "memory_attention_hidden_size",
    "memory_encoder_hidden_size", "mask_downsampler_embed_dim", "memory_fuser_embed_dim",
)  # fmt: skip
"""Keys that equal the width of the neck's feature maps: SAM 2 adds up what they are the widths of."""


def load_sam3() -> ModuleType:
    """Import transformers. Raises UserError where it is missing, or too old for SAM 3's tracker."""
    return load_transformers(MINIMUM_VERSION)


def read_config(file: Path | None) -> Sam3TrackerVideoConfig:
    """Return the config of the tracker that a ``config.json`` describes; None: the official one's.

    Raises:
        UserError: the file is damaged, of another model, or has what SAM 2's classes cannot express.
    """
    kind = load_sam3().Sam3TrackerVideoConfig
    if file is None:
        return kind()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model_type = content["model_type"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: damaged, or no config of a model: {in_one_line(error)}", "base.damaged") from None
    if model_type not in ("sam3_video", "sam3_tracker_video"):
        raise UserError(
            f"{file}: of a model of type {model_type}; model.name sam3_tracker loads folders of type sam3_video "
            "(facebook/sam3 is one) and sam3_tracker_video",
            "base.other-model",
        )
    try:
        config = kind.from_dict(content.get("tracker_config", content))
    except Exception as error:  # transformers raises nearly anything at values that do not fit
        raise UserError(f"{file}: damaged, or no config of a tracker: {in_one_line(error)}", "base.damaged") from None
    if problems := [*impossible_values(config.to_dict()), *_inexpressible(config)]:
        raise UserError(
            f"{file}: not an architecture that can be built here: {'; '.join(problems)}", "base.unsupported"
        )
    return config


def _inexpressible(config: Any) -> Iterator[str]:
    width = config.vision_config.fpn_hidden_size
    expected = {
        **_FIXED,
        **dict.fromkeys(_WIDTHS, width),
        "memory_fuser_intermediate_dim": 4 * config.memory_fuser_embed_dim,
    }
    for key, value in expected.items():
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        if found != value:
            yield f"{key} is {found}, not {value}"


def in_one_line(error: BaseException) -> str:
    """Return what an error says, or else its kind, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def overrides_of(config: Any, image_size: int) -> list[str]:
    """Return Hydra overrides that turn a SAM 2.1 of the ``sam2`` package into a tracker of this architecture.

    Args:
        config: of :func:`read_config`.
        image_size: side of the frames in pixels, a multiple of 14.
    """
    config.image_size = image_size
    vision = json.dumps(config.vision_config.to_diff_dict())
    encoder = f"{__package__}.encoder.ImageEncoder"
    return [
        "~model.image_encoder",
        f"+model.image_encoder._target_={encoder}",
        f"+model.image_encoder.vision_config='{vision}'",
        *as_overrides({"model": _sam2_values(config, image_size // PATCH)}),
    ]


def _sam2_values(config: Any, grid: int) -> dict[str, Any]:
    """Return the values of SAM 2's config, for frames of grid × grid tokens."""
    width, channels = config.vision_config.fpn_hidden_size, config.memory_encoder_output_channels
    attention = {
        "rope_theta": config.rope_parameters["rope_theta"],
        "feat_sizes": [grid, grid],
        "embedding_dim": width,
        "num_heads": config.memory_attention_num_attention_heads,
        "downsample_rate": config.memory_attention_downsample_rate,
        "dropout": config.memory_attention_rope_dropout,
    }
    return {
        "image_size": TOKEN_STRIDE * grid,
        "num_maskmem": config.num_maskmem,
        "sigmoid_scale_for_mem_enc": config.sigmoid_scale_for_mem_enc,
        "sigmoid_bias_for_mem_enc": config.sigmoid_bias_for_mem_enc,
        "no_obj_embed_spatial": config.enable_occlusion_spatial_embedding,
        "multimask_output_in_sam": config.multimask_output_in_sam,
        "multimask_min_pt_num": config.multimask_min_pt_num,
        "multimask_max_pt_num": config.multimask_max_pt_num,
        "multimask_output_for_tracking": config.multimask_output_for_tracking,
        "max_obj_ptrs_in_encoder": config.max_object_pointers_in_encoder,
        "max_cond_frames_in_attn": config.max_cond_frame_num,
        "proj_tpos_enc_in_obj_ptrs": config.enable_temporal_pos_encoding_for_object_pointers,
        "memory_attention": {
            "d_model": width,
            "num_layers": config.memory_attention_num_layers,
            "layer": {
                "d_model": width,
                "activation": config.memory_attention_feed_forward_hidden_act,
                "dim_feedforward": config.memory_attention_feed_forward_hidden_size,
                "dropout": config.memory_attention_dropout,
                "self_attention": attention,
                "cross_attention": {**attention, "kv_in_dim": channels},
            },
        },
        "memory_encoder": {
            "in_dim": width,
            "out_dim": channels,
            "position_encoding": {"num_pos_feats": channels},
            "mask_downsampler": {
                "embed_dim": width,
                "kernel_size": config.mask_downsampler_kernel_size,
                "stride": config.mask_downsampler_stride,
                "padding": config.mask_downsampler_padding,
            },
            "fuser": {
                "num_layers": config.memory_fuser_num_layers,
                "layer": {
                    "dim": width,
                    "kernel_size": config.memory_fuser_kernel_size,
                    "padding": config.memory_fuser_padding,
                    "layer_scale_init_value": config.memory_fuser_layer_scale_init_value,
                },
            },
        },
    }
