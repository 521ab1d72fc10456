"""SAM 2.1 as Hugging Face ``transformers`` has it: names of layers and weights, the config, and a folder to load.

``transformers`` is optional: whatever needs it asks :func:`load_transformers`, which refuses a missing or old version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ...core.errors import UserError
from ...lora.adapter_io import base_fingerprint, base_state_dict
from .pixels import TOKEN_STRIDE

if TYPE_CHECKING:
    from transformers import Sam2VideoConfig, Sam2VideoModel

MINIMUM_VERSION = "5.20"  # the oldest that is tested
FINGERPRINT = "sam2_base_fingerprint"  # key of config.json
_MEMORY_CHANNELS = 64  # written into transformers' Sam2VideoMemoryAttentionLayer, whatever its config says

_POINT = re.compile(r"sam_prompt_encoder\.point_embeddings\.(\d+)\.weight")  # four tensors here, one there
POINTS = "prompt_encoder.point_embed.weight"
FREQUENCIES = "prompt_encoder.shared_embedding.positional_embedding"  # once here, twice there
FREQUENCIES_AGAIN = "shared_image_embedding.positional_embedding"

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
_MLP_OF_2 = {"layers.0": "proj_in", "layers.1": "proj_out"}
_MLP_OF_3 = {"layers.0": "proj_in", "layers.1": "layers.0", "layers.2": "proj_out"}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _norms(count: int) -> dict[str, str]:
    return {f"norm{i}": f"layer_norm{i}" for i in range(1, count + 1)}


# part of SAM 2 → part of transformers' model, and the names in them; a * is any number, the same on both sides
_NAMES: dict[tuple[str, str], dict[str, str]] = {
    ("", ""): {
        "maskmem_tpos_enc": "memory_temporal_positional_encoding",
        "no_mem_embed": "no_memory_embedding",
        "no_mem_pos_enc": "no_memory_positional_encoding",
        "no_obj_ptr": "no_object_pointer",
        "no_obj_embed_spatial": "occlusion_spatial_embedding_parameter",
        "mask_downsample": "mask_downsample",
        "obj_ptr_tpos_proj": "temporal_positional_encoding_projection_layer",
    },
    ("obj_ptr_proj", "object_pointer_proj"): _MLP_OF_3,
    ("image_encoder.trunk", "vision_encoder.backbone"): {
        **_same("pos_embed", "pos_embed_window"),
        "patch_embed.proj": "patch_embed.projection",
    },
    ("image_encoder.trunk.blocks.*", "vision_encoder.backbone.blocks.*"): {
        **_norms(2),
        **_same("attn.qkv", "attn.proj", "proj"),
    },
    ("image_encoder.trunk.blocks.*.mlp", "vision_encoder.backbone.blocks.*.mlp"): _MLP_OF_2,
    ("image_encoder.neck", "vision_encoder.neck"): {"convs.*.conv": "convs.*"},
    ("memory_attention", "memory_attention"): {"norm": "layer_norm"},
    ("memory_attention.layers.*", "memory_attention.layers.*"): {**_norms(3), **_same("linear1", "linear2")},
    ("memory_attention.layers.*.self_attn", "memory_attention.layers.*.self_attn"): _ATTENTION,
    ("memory_attention.layers.*.cross_attn_image", "memory_attention.layers.*.cross_attn_image"): _ATTENTION,
    ("memory_encoder", "memory_encoder"): {"pix_feat_proj": "feature_projection", "out_proj": "projection"},
    # a convolution, a norm and an activation each, and a convolution at the end
    ("memory_encoder.mask_downsampler", "memory_encoder.mask_downsampler"): {
        **{f"encoder.{3 * i}": f"layers.{i}.conv" for i in range(4)},
        **{f"encoder.{3 * i + 1}": f"layers.{i}.layer_norm" for i in range(4)},
        "encoder.12": "final_conv",
    },
    ("memory_encoder.fuser.layers.*", "memory_encoder.memory_fuser.layers.*"): {
        "gamma": "scale",
        "dwconv": "depthwise_conv",
        "norm": "layer_norm",
        "pwconv1": "pointwise_conv1",
        "pwconv2": "pointwise_conv2",
    },
    ("sam_prompt_encoder", "prompt_encoder"): {
        "pe_layer.positional_encoding_gaussian_matrix": "shared_embedding.positional_embedding",
        **_same("not_a_point_embed", "no_mask_embed"),
    },
    ("sam_prompt_encoder.mask_downscaling", "prompt_encoder.mask_embed"): {
        "0": "conv1",
        "1": "layer_norm1",
        "3": "conv2",
        "4": "layer_norm2",
        "6": "conv3",
    },
    ("sam_mask_decoder", "mask_decoder"): {
        **_same("iou_token", "mask_tokens", "obj_score_token", "conv_s0", "conv_s1"),
        "output_upscaling.0": "upscale_conv1",
        "output_upscaling.1": "upscale_layer_norm",
        "output_upscaling.3": "upscale_conv2",
        "transformer.norm_final_attn": "transformer.layer_norm_final_attn",
    },
    ("sam_mask_decoder.transformer.layers.*", "mask_decoder.transformer.layers.*"): _norms(4),
    ("sam_mask_decoder.transformer.layers.*.mlp", "mask_decoder.transformer.layers.*.mlp"): _MLP_OF_2,
    **{
        (f"sam_mask_decoder.transformer.{name}", f"mask_decoder.transformer.{name}"): _ATTENTION
        for name in (
            "layers.*.self_attn",
            "layers.*.cross_attn_token_to_image",
            "layers.*.cross_attn_image_to_token",
            "final_attn_token_to_image",
        )
    },
    **{
        (f"sam_mask_decoder.{name}", f"mask_decoder.{name}"): _MLP_OF_3
        for name in ("output_hypernetworks_mlps.*", "iou_prediction_head", "pred_obj_score_head")
    },
}
_PAIRS = [
    (f"{ours}.{name}".lstrip("."), f"{theirs}.{their_name}".lstrip("."))
    for (ours, theirs), names in _NAMES.items()
    for name, their_name in names.items()
]


class _Renaming:
    """Names by pairs of patterns, in which * stands for a number; ``.weight`` and ``.bias`` stay as they are."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._rules = [
            (re.compile(re.escape(old).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias)?"), new) for old, new in pairs
        ]

    def find(self, name: str) -> str | None:
        for pattern, new in self._rules:
            if found := pattern.fullmatch(name):
                *numbers, ending = found.groups(default="")
                for number in numbers:
                    new = new.replace("*", number, 1)
                return new + ending
        return None

    def __call__(self, name: str) -> str:
        new = self.find(name)
        if new is None:
            raise UserError(f"{name}: no name of a layer or weight of SAM 2.1", "transformers.unknown-name")
        return new


_to_theirs = _Renaming(_PAIRS)
_to_ours = _Renaming([(theirs, ours) for ours, theirs in _PAIRS])


def transformers_name(name: str) -> str:
    """Return transformers' name of a layer or weight, such as ``memory_attention.layers.0.self_attn.out_proj``.

    Raises:
        UserError: SAM 2.1 has none of this name, or it is one of the embeddings of points, which transformers has as
            one weight (:func:`transformers_state_dict`).
    """
    return _to_theirs(name)


def transformers_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a SAM2Base's state dict, without adapters, in the form of transformers' Sam2VideoModel."""
    points = sorted(int(found[1]) for name in weights if (found := _POINT.fullmatch(name)))
    renamed = {transformers_name(name): tensor for name, tensor in weights.items() if not _POINT.fullmatch(name)}
    renamed[POINTS] = torch.cat([weights[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in points])
    renamed[FREQUENCIES_AGAIN] = renamed[FREQUENCIES].clone()
    return renamed


def sam2_name(name: str) -> str | None:
    """Return SAM 2's name of a layer or weight of transformers' model; None where it has none."""
    return _to_ours.find(name)


def split_points(weight: Tensor) -> dict[str, Tensor]:
    """Return the embeddings of points, which transformers has as one weight, by SAM 2's names."""
    return {f"sam_prompt_encoder.point_embeddings.{i}.weight": row for i, row in enumerate(torch.split(weight, 1))}


def sam2_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a Sam2VideoModel's state dict, without adapters, as SAM 2 has it."""
    special = (POINTS, FREQUENCIES_AGAIN)
    renamed = {_to_ours(name): tensor for name, tensor in weights.items() if name not in special}
    return {**renamed, **split_points(weights[POINTS])}


def load_transformers(minimum: str = MINIMUM_VERSION) -> ModuleType:
    """Import the package.

    Args:
        minimum: the oldest version that will do.

    Raises:
        UserError: it is not installed, or older.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            f"transformers is not installed: pip install 'transformers>={minimum}' (it is optional)",
            "transformers.missing",
        ) from None
    if is_older(transformers.__version__, minimum):
        raise UserError(
            f"transformers {transformers.__version__} is too old: pip install -U 'transformers>={minimum}'",
            "transformers.too-old",
        )
    package: ModuleType = transformers
    return package


def is_older(version: str, minimum: str) -> bool:
    """Compare versions by their first two numbers."""
    return _numbers(version) < _numbers(minimum)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


@contextmanager
def without_its_bars() -> Iterator[None]:
    """Silence the progress bars that transformers draws while it reads and writes weights."""
    logging = load_transformers().logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def transformers_config(model: SAM2Base) -> Sam2VideoConfig:
    """Return the config of a Sam2VideoModel of the same architecture and image size, read from the model's own modules.

    Raises:
        UserError: transformers is missing or too old, or cannot express the model: it has 64 channels of memory written
            into its code.
    """
    transformers = load_transformers()
    if model.mem_dim != _MEMORY_CHANNELS:
        raise UserError(
            f"the model's memories have {model.mem_dim} channels, but transformers' Sam2VideoModel has "
            f"{_MEMORY_CHANNELS} written into its memory attention (kv_in_dim), whatever its config says; "
            "the official sizes, tiny to large, can be exported, sam2_nano cannot",
            "transformers.memory-channels",
        )
    return transformers.Sam2VideoConfig(
        vision_config=_vision_config(model, transformers),
        prompt_encoder_config={
            "hidden_size": model.hidden_dim,
            "image_size": model.image_size,
            "patch_size": TOKEN_STRIDE,
            "mask_input_channels": model.sam_prompt_encoder.mask_downscaling[3].out_channels,
            "num_point_embeddings": len(model.sam_prompt_encoder.point_embeddings),
        },
        mask_decoder_config=_decoder_config(model),
        image_size=model.image_size,
        num_maskmem=model.num_maskmem,
        sigmoid_scale_for_mem_enc=model.sigmoid_scale_for_mem_enc,
        sigmoid_bias_for_mem_enc=model.sigmoid_bias_for_mem_enc,
        enable_occlusion_spatial_embedding=model.no_obj_embed_spatial is not None,
        multimask_output_in_sam=model.multimask_output_in_sam,
        multimask_min_pt_num=model.multimask_min_pt_num,
        multimask_max_pt_num=model.multimask_max_pt_num,
        multimask_output_for_tracking=model.multimask_output_for_tracking,
        max_object_pointers_in_encoder=model.max_obj_ptrs_in_encoder,
        max_cond_frame_num=model.max_cond_frames_in_attn,
        enable_temporal_pos_encoding_for_object_pointers=model.proj_tpos_enc_in_obj_ptrs,
        **_memory_config(model),
        **{FINGERPRINT: base_fingerprint(model)},
    )


def _decoder_config(model: SAM2Base) -> dict[str, Any]:
    decoder = model.sam_mask_decoder
    block, iou_head = decoder.transformer.layers[0], decoder.iou_prediction_head
    return {
        "hidden_size": model.hidden_dim,
        "mlp_dim": block.mlp.layers[0].out_features,
        "num_hidden_layers": len(decoder.transformer.layers),
        "num_attention_heads": block.self_attn.num_heads,
        "attention_downsample_rate": model.hidden_dim // block.cross_attn_token_to_image.internal_dim,
        "num_multimask_outputs": decoder.num_multimask_outputs,
        "iou_head_depth": len(iou_head.layers),
        "iou_head_hidden_dim": iou_head.layers[0].out_features,
        "dynamic_multimask_via_stability": decoder.dynamic_multimask_via_stability,
        "dynamic_multimask_stability_delta": decoder.dynamic_multimask_stability_delta,
        "dynamic_multimask_stability_thresh": decoder.dynamic_multimask_stability_thresh,
    }


def _memory_config(model: SAM2Base) -> dict[str, Any]:
    attention, encoder = model.memory_attention, model.memory_encoder
    layer, fused = attention.layers[0], encoder.fuser.layers[0]
    return {
        "memory_attention_hidden_size": attention.d_model,
        "memory_attention_num_layers": attention.num_layers,
        "memory_attention_num_attention_heads": layer.self_attn.num_heads,
        "memory_attention_downsample_rate": attention.d_model // layer.self_attn.internal_dim,
        "memory_attention_feed_forward_hidden_size": layer.dim_feedforward,
        "memory_attention_feed_forward_hidden_act": layer.activation_str,
        "memory_attention_dropout": layer.dropout_value,
        "memory_attention_rope_feat_sizes": [model.image_size // TOKEN_STRIDE] * 2,
        "memory_attention_rope_dropout": layer.self_attn.dropout_p,
        "memory_encoder_hidden_size": encoder.pix_feat_proj.in_channels,
        "memory_encoder_output_channels": model.mem_dim,
        "mask_downsampler_embed_dim": encoder.mask_downsampler.encoder[-1].out_channels,
        "memory_fuser_num_layers": len(encoder.fuser.layers),
        "memory_fuser_embed_dim": fused.pwconv1.in_features,
        "memory_fuser_intermediate_dim": fused.pwconv1.out_features,
        "memory_fuser_kernel_size": fused.dwconv.kernel_size[0],
        "memory_fuser_padding": fused.dwconv.padding[0],
    }


def _vision_config(model: SAM2Base, transformers: ModuleType) -> Any:
    trunk, neck, side = model.image_encoder.trunk, model.image_encoder.neck, model.image_size
    ends = [trunk.blocks[end] for end in trunk.stage_ends]
    patches = trunk.patch_embed.proj
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=trunk.pos_embed.shape[1],
        num_attention_heads=trunk.blocks[0].attn.num_heads,
        image_size=[side, side],
        patch_kernel_size=list(patches.kernel_size),
        patch_stride=list(patches.stride),
        patch_padding=list(patches.padding),
        query_stride=list(trunk.q_stride),
        window_positional_embedding_background_size=list(trunk.pos_embed.shape[2:]),
        num_query_pool_stages=len(trunk.q_pool_blocks),
        blocks_per_stage=[end - start for start, end in zip([-1, *trunk.stage_ends], trunk.stage_ends, strict=False)],
        embed_dim_per_stage=[block.dim_out for block in ends],
        num_attention_heads_per_stage=[block.attn.num_heads for block in ends],
        window_size_per_stage=list(trunk.window_spec),
        global_attention_blocks=list(trunk.global_att_blocks),
        mlp_ratio=ends[0].mlp.layers[0].out_features / ends[0].dim_out,
    )
    return transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(neck.backbone_channel_list),
        backbone_feature_sizes=[
            [side // stride] * 2 for stride in (TOKEN_STRIDE // 4, TOKEN_STRIDE // 2, TOKEN_STRIDE)
        ],
        fpn_hidden_size=neck.d_model,
        fpn_top_down_levels=list(neck.fpn_top_down_levels),
        num_feature_levels=model.num_feature_levels,
    )


def to_transformers(model: SAM2Base) -> Sam2VideoModel:
    """Return a Sam2VideoModel with the model's base weights, in eval mode on the CPU; adapters are left out.

    Raises:
        UserError: as :func:`transformers_config`, or this version of transformers has other weights.
    """
    transformers = load_transformers()
    config = transformers_config(model)
    weights = transformers_state_dict(base_state_dict(model))
    with torch.device("meta"):
        expected = _shapes(transformers.Sam2VideoModel(config).state_dict())
    found = _shapes(weights)
    if differing := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise UserError(
            f"transformers {transformers.__version__} does not build this model: {len(differing)} weights are missing, "
            f"left over or of another shape there: {', '.join(differing[:3])}",
            "transformers.other-weights",
        )
    converted = transformers.Sam2VideoModel(config)
    converted.load_state_dict(weights)
    return converted.eval()


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def save_processor(side: int, folder: Path) -> None:
    """Write a Sam2VideoProcessor for images of a side in pixels."""
    transformers = load_transformers()
    size = {"height": side, "width": side}
    mask_size = {name: 4 * pixels // TOKEN_STRIDE for name, pixels in size.items()}
    transformers.Sam2VideoProcessor(
        image_processor=transformers.Sam2ImageProcessor(size=size, mask_size=mask_size),
        video_processor=transformers.Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)


def save_transformers(model: SAM2Base, folder: Path) -> None:
    """Write the base weights into a folder that Sam2VideoModel, Sam2Model and their processors load.

    Raises:
        UserError: as :func:`to_transformers`.
    """
    to_transformers(model).save_pretrained(folder)
    save_processor(model.image_size, folder)
