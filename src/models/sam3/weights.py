"""The detector's weights by Meta's names, those of ``sam3.pt``, and by transformers': one table, both ways.

What the file holds besides, the tracker and some layers that transformers' model does not have, is recognised by its
name. It is left out when the file is read, and stays as it is when the detector in it is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..sam3_tracker.weights import Read, renaming

_DETECTOR = "detector."
_UNUSED = re.compile(
    r"backbone\.vision_backbone\.(sam2_convs\..*|trunk\.blocks\.\d+\.attn\.freqs_cis)"
    r"|geometry_encoder\.(points_\w+_project|mask_encoder)\..*"
    r"|transformer\.decoder\.instance_.*"
)
"""Of the detector in Meta's file: the tracker's neck, rotations, and prompts that transformers' model does not take."""

_ATTENTION = (("in_proj_weight", "qkv.weight"), ("in_proj_bias", "qkv.bias"), ("out_proj.~", "o_proj.~"))
_TRUNK, _NECK = "backbone.vision_backbone.trunk", "backbone.vision_backbone.convs"
_BLOCK, _LAYER = f"{_TRUNK}.blocks.*", "vision_encoder.backbone.layers.*"
_FPN = "vision_encoder.neck.fpn_layers"
_WORDS, _TEXT = "backbone.language_backbone.encoder", "text_encoder.text_model"
_WORD_BLOCK, _WORD_LAYER = f"{_WORDS}.transformer.resblocks.*", f"{_TEXT}.encoder.layers.*"


def _mha(meta: str, ours: str, output: str = "o_proj") -> list[tuple[str, str]]:
    return [(f"{meta}.{a}", f"{ours}.{b.replace('o_proj', output)}") for a, b in _ATTENTION]


def _layers(meta: str, ours: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{meta}.{a}.~", f"{ours}.{b}.~") for a, b in parts.items()]


_MLP = {"linear1": "mlp.fc1", "linear2": "mlp.fc2"}
_NORMS = {f"norm{i}": f"layer_norm{i}" for i in (1, 2, 3)}
_DECODER, _DETR = "transformer.decoder", "detr_decoder"
_THREE = [f"layers.{i}" for i in range(3)]

_TABLE = [
    (f"{_TRUNK}.pos_embed", "vision_encoder.backbone.embeddings.position_embeddings"),
    (f"{_TRUNK}.patch_embed.proj.~", "vision_encoder.backbone.embeddings.patch_embeddings.projection.~"),
    (f"{_TRUNK}.ln_pre.~", "vision_encoder.backbone.layer_norm.~"),
    *_layers(_BLOCK, _LAYER, {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "attention.qkv"}),
    *_layers(_BLOCK, _LAYER, {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
    (f"{_NECK}.0.dconv_2x2_0.~", f"{_FPN}.0.scale_layers.0.~"),
    (f"{_NECK}.0.dconv_2x2_1.~", f"{_FPN}.0.scale_layers.2.~"),
    (f"{_NECK}.*.dconv_2x2.~", f"{_FPN}.*.scale_layers.0.~"),
    *_layers(f"{_NECK}.*", f"{_FPN}.*", {"conv_1x1": "proj1", "conv_3x3": "proj2"}),
    *_layers(_WORDS, _TEXT, {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}),
    (f"{_WORDS}.positional_embedding", f"{_TEXT}.embeddings.position_embedding.weight"),
    (f"{_WORDS}.text_projection", "text_encoder.text_projection.weight"),
    ("backbone.language_backbone.resizer.~", "text_projection.~"),
    *_mha(f"{_WORD_BLOCK}.attn", f"{_WORD_LAYER}.self_attn", "out_proj"),
    *_layers(_WORD_BLOCK, _WORD_LAYER, {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}),
    *_layers(_WORD_BLOCK, _WORD_LAYER, {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}),
    *(
        pair
        for meta, ours in (
            ("geometry_encoder.encode.*", "geometry_encoder.layers.*"),
            ("transformer.encoder.layers.*", "detr_encoder.layers.*"),
        )
        for pair in (
            *_mha(f"{meta}.self_attn", f"{ours}.self_attn"),
            *_mha(f"{meta}.cross_attn_image", f"{ours}.cross_attn"),
            *_layers(meta, ours, _MLP | _NORMS),
        )
    ),
    *_layers(
        "geometry_encoder",
        "geometry_encoder",
        {"img_pre_norm": "vision_layer_norm", "norm": "prompt_layer_norm", "encode_norm": "output_layer_norm"},
    ),
    *_mha(f"{_DECODER}.layers.*.self_attn", f"{_DETR}.layers.*.self_attn"),
    *_mha(f"{_DECODER}.layers.*.ca_text", f"{_DETR}.layers.*.text_cross_attn"),
    *_mha(f"{_DECODER}.layers.*.cross_attn", f"{_DETR}.layers.*.vision_cross_attn"),
    *_layers(
        f"{_DECODER}.layers.*",
        f"{_DETR}.layers.*",
        _MLP
        | {"norm1": "vision_cross_attn_layer_norm", "catext_norm": "text_cross_attn_layer_norm"}
        | {"norm2": "self_attn_layer_norm", "norm3": "mlp_layer_norm"},
    ),
    *(
        (f"{_DECODER}.{meta}.{layer}.~", f"{_DETR}.{ours}.layer{i}.~")
        for meta, ours in (
            ("presence_token_head", "presence_head"),
            ("bbox_embed", "box_head"),
            ("ref_point_head", "ref_point_head"),
            ("boxRPB_embed_x", "box_rpb_embed_x"),
            ("boxRPB_embed_y", "box_rpb_embed_y"),
        )
        for i, layer in enumerate(_THREE, 1)
    ),
    *_layers(_DECODER, _DETR, {"presence_token_out_norm": "presence_layer_norm", "norm": "output_layer_norm"}),
    (f"{_DECODER}.~", f"{_DETR}.~"),
    *_layers("dot_prod_scoring.prompt_mlp", "dot_product_scoring", {"out_norm": "text_mlp_out_norm"}),
    ("dot_prod_scoring.prompt_mlp.layers.0.~", "dot_product_scoring.text_mlp.layer1.~"),
    ("dot_prod_scoring.prompt_mlp.layers.1.~", "dot_product_scoring.text_mlp.layer2.~"),
    *_layers("dot_prod_scoring", "dot_product_scoring", {"prompt_proj": "text_proj", "hs_proj": "query_proj"}),
    *_mha("segmentation_head.cross_attend_prompt", "mask_decoder.prompt_cross_attn"),
    *_layers(
        "segmentation_head",
        "mask_decoder",
        {"cross_attn_norm": "prompt_cross_attn_norm", "mask_predictor.mask_embed": "mask_embedder"}
        | {"instance_seg_head": "instance_projection", "semantic_seg_head": "semantic_projection"},
    ),
    ("segmentation_head.~", "mask_decoder.~"),
]
"""Meta's names and ours; a * is any number and a ~ any rest, the same on both sides. The first that fits counts."""

_to_ours = renaming(_TABLE)
_to_meta = renaming((ours, meta) for meta, ours in _TABLE)

_PARTS = ("q_proj", "k_proj", "v_proj")
_POSITIONS = "vision_encoder.backbone.embeddings.position_embeddings"
_TRANSPOSED = "text_encoder.text_projection.weight"


def is_meta(names: Mapping[str, object]) -> bool:
    """Return whether names are those of Meta's ``sam3.pt``."""
    return any(name.startswith(_DETECTOR) for name in names)


def detector_weights(found: Mapping[str, Read]) -> dict[str, Tensor]:
    """Return the detector in Meta's file by the names of transformers' ``Sam3Model``.

    Names that are not known stay as they are, for the check of keys to say.

    Args:
        found: what reads a weight, by its name in the file.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in ((_to_ours(key), found[f"{_DETECTOR}{key}"]()) for key in _used(found)):
        layer, _, kind = name.rpartition(".qkv.")
        if layer and tensor.ndim and len(tensor) % len(_PARTS) == 0:
            for part, value in zip(_PARTS, tensor.chunk(len(_PARTS)), strict=True):
                weights[f"{layer}.{part}.{kind}"] = value
        elif name == _POSITIONS and tensor.ndim > 1:
            weights[name] = tensor[:, 1:]  # the first is the class token's
        else:
            weights[name] = tensor.T if name == _TRANSPOSED and tensor.ndim > 1 else tensor
    return weights


def meta_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ``Sam3Model``'s weights, without adapters, by the names of Meta's ``sam3.pt``.

    The class token's position, which SAM 3 does not look at, is zero.
    """
    fused: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, part, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
        separate = part in _PARTS and f"{layer}.{_PARTS[0]}.{kind}" in weights
        if separate and part == _PARTS[0]:
            fused[f"{layer}.qkv.{kind}"] = torch.cat([weights[f"{layer}.{each}.{kind}"] for each in _PARTS])
        elif name == _POSITIONS:
            fused[name] = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1)
        elif not separate:
            fused[name] = tensor.T if name == _TRANSPOSED else tensor
    return {_DETECTOR + _to_meta(name): tensor for name, tensor in fused.items()}


def replace_detector(found: Mapping[str, Read], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all weights of Meta's file, with the detector's replaced; all else stays as it is.

    Args:
        found: what reads a weight, by its name in the file.
        weights: a ``Sam3Model``'s, without adapters.
    """
    used, new = {_DETECTOR + key for key in _used(found)}, meta_state_dict(weights)
    position = _DETECTOR + _to_meta(_POSITIONS)
    if position in used:  # keep the class token's
        new[position] = torch.cat([found[position]()[:, :1].to(new[position]), new[position][:, 1:]], 1)
    return {key: (new[key] if key in used else read()).contiguous() for key, read in found.items()}


def _used(found: Mapping[str, Read]) -> list[str]:
    """Return the names of what transformers' model has, without what all of the detector begins with."""
    names = [key.removeprefix(_DETECTOR) for key in found if key.startswith(_DETECTOR)]
    return [name for name in names if not _UNUSED.fullmatch(name)]
