"""Weights of SAM 3's tracker: from transformers' names and Meta's to those of SAM 2's classes, and back to Meta's.

Detector and tracker of SAM 3 share the image encoder's trunk, and have a neck each. What only the detector has is
recognised by its name, counted and left out.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...core.errors import UserError
from ...core.shipped import find_file
from ...core.torch_files import read_pt
from ..sam2.transformers_format import (
    FREQUENCIES,
    FREQUENCIES_AGAIN,
    POINTS,
    sam2_name,
    split_points,
    transformers_name,
)

logger = logging.getLogger(__name__)

Read: TypeAlias = Callable[[], Tensor]

NAME, INDEX = "model.safetensors", "model.safetensors.index.json"

_TRUNK, _NECK = "detector.backbone.vision_backbone.trunk", "detector.backbone.vision_backbone.sam2_convs"
_BLOCK, _LAYER = f"{_TRUNK}.blocks.*", "image_encoder.backbone.layers.*"
_META = (
    (f"{_TRUNK}.pos_embed", "image_encoder.backbone.embeddings.position_embeddings"),
    (f"{_TRUNK}.patch_embed.proj.~", "image_encoder.backbone.embeddings.patch_embeddings.projection.~"),
    (f"{_TRUNK}.ln_pre.~", "image_encoder.backbone.layer_norm.~"),
    (f"{_BLOCK}.norm1.~", f"{_LAYER}.layer_norm1.~"),
    (f"{_BLOCK}.norm2.~", f"{_LAYER}.layer_norm2.~"),
    (f"{_BLOCK}.attn.qkv.~", f"{_LAYER}.attention.qkv.~"),
    (f"{_BLOCK}.attn.proj.~", f"{_LAYER}.attention.o_proj.~"),
    (f"{_BLOCK}.mlp.~", f"{_LAYER}.mlp.~"),
    (f"{_NECK}.0.dconv_2x2_0.~", "image_encoder.neck.fpn_layers.0.scale_layers.0.~"),
    (f"{_NECK}.0.dconv_2x2_1.~", "image_encoder.neck.fpn_layers.0.scale_layers.2.~"),
    (f"{_NECK}.1.dconv_2x2.~", "image_encoder.neck.fpn_layers.1.scale_layers.0.~"),
    (f"{_NECK}.*.conv_1x1.~", "image_encoder.neck.fpn_layers.*.proj1.~"),
    (f"{_NECK}.*.conv_3x3.~", "image_encoder.neck.fpn_layers.*.proj2.~"),
    ("tracker.transformer.encoder.~", "memory_attention.~"),
    ("tracker.maskmem_backbone.~", "memory_encoder.~"),
    (
        "tracker.sam_mask_decoder.transformer.layers.*.mlp.lin1.~",
        "sam_mask_decoder.transformer.layers.*.mlp.layers.0.~",
    ),
    (
        "tracker.sam_mask_decoder.transformer.layers.*.mlp.lin2.~",
        "sam_mask_decoder.transformer.layers.*.mlp.layers.1.~",
    ),
    ("tracker.~", "~"),
)
"""Meta's names and ours; a * is any number and a ~ any rest, the same on both sides. The first that fits counts."""

_VIDEO = (
    ("detector_model.vision_encoder.backbone.~", "image_encoder.backbone.~"),
    ("tracker_neck.~", "image_encoder.neck.~"),
    ("vision_encoder.~", "image_encoder.~"),
)
"""The same of the image encoder's names in transformers' models, without :data:`_PREFIX`."""

_PREFIX = re.compile(r"^(tracker_model\.)+")
"""In the hub's folder it stands before what is the tracker's alone; transformers saves it before all, or twice."""

_OF_DETECTOR = re.compile(
    r"detector\.(?!backbone\.vision_backbone\.(trunk|sam2_convs)\.)|detector_model\.(?!vision_encoder\.backbone\.)"
)
_COMPUTED = re.compile(re.escape(_TRUNK) + r"\.blocks\.\d+\.attn\.freqs_cis")
"""Of Meta's file, what follows from the architecture: rotations by position."""

_FUSED = re.compile(r"(.*\.attention)\.qkv\.(weight|bias)")
_PARTS = ("q_proj", "k_proj", "v_proj")
_POSITIONS = "image_encoder.backbone.embeddings.position_embeddings"


_SLOTS = {"*": r"(\d+)", "~": "(.+)"}


def renaming(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """Return what renames by the first pair of patterns whose first one fits, and leaves other names as they are."""
    rules = [(re.compile("".join(_SLOTS.get(c, re.escape(c)) for c in old)), new) for old, new in pairs]

    def rename(name: str) -> str:
        for pattern, new in rules:
            if found := pattern.fullmatch(name):
                parts = iter(found.groups())
                return "".join(next(parts) if c in _SLOTS else c for c in new)
        return name

    return rename


_from_meta = renaming(_META)
_to_meta = renaming((ours, meta) for meta, ours in _META)
_from_video = renaming(_VIDEO)
_to_video = renaming((ours, video) for video, ours in _VIDEO)


def read_tracker(path: str | Path) -> dict[str, Tensor]:
    """Return the tracker's weights in a file or folder by the names of SAM 2's classes, and execute nothing in it.

    Args:
        path: a folder of transformers, of the tracker or of all of SAM 3; a safetensors file; or Meta's ``sam3.pt``.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    path = find_file(path)
    return tracker_weights(open_weights(path), path)


def tracker_weights(found: Mapping[str, Read], path: Path) -> dict[str, Tensor]:
    """Return the tracker's among the weights of a file, which is read for them alone, by the names of SAM 2's classes.

    Names that are neither the tracker's nor the detector's stay as they are.

    Args:
        found: what reads a weight, by its name in the file.
        path: the file, for messages.
    """
    found = {_PREFIX.sub("", key): read for key, read in found.items()}
    needed = {key: read for key, read in found.items() if not _OF_DETECTOR.match(key) and not _COMPUTED.fullmatch(key)}
    if others := sum(bool(_OF_DETECTOR.match(key)) for key in found):
        logger.info(f"{path}: {len(needed)} weights of the tracker; {others} of the detector are left out")
    if _is_meta(found):
        return _from_meta_weights({_from_meta(key): read() for key, read in needed.items()})
    return _from_transformers({_from_video(key): read() for key, read in needed.items()}, path)


def tracker_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tracker in the state dict of a model of transformers by the names of SAM 2's classes."""
    return _from_transformers(
        {_name_of_video(key): tensor for key, tensor in weights.items() if not _OF_DETECTOR.match(key)}, "the model"
    )


def replace_tracker(found: Mapping[str, Read], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all weights of a file, with the tracker's replaced; what the detector alone has stays as it is.

    Args:
        found: what reads each weight, by its name in the file (:func:`open_weights`): of transformers, or Meta's.
        weights: a tracker's state dict, without adapters.
    """
    meta = _is_meta(found)
    tracker = meta_state_dict(weights) if meta else {}
    replaced = {}
    for key, read in found.items():
        if _OF_DETECTOR.match(key) or _COMPUTED.fullmatch(key):
            replaced[key] = read()
        elif meta:
            replaced[key] = tracker[key]
        else:
            replaced[key] = _for_video(_name_of_video(key), weights)
        replaced[key] = replaced[key].contiguous()
    return replaced


def _for_video(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the weight that a model of transformers has under a name."""
    if name == POINTS:
        return torch.cat([weights[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)])
    if name == FREQUENCIES_AGAIN:
        return _for_video(FREQUENCIES, weights).clone()
    return weights[sam2_name(name) or name]


def video_layer_name(layer: str, whole: bool) -> str:
    """Return the name of a layer in a model of transformers.

    Args:
        layer: its name in SAM 2's classes.
        whole: of Sam3VideoModel, detector and tracker; otherwise of Sam3TrackerVideoModel.
    """
    if not layer.startswith("image_encoder."):
        return f"tracker_model.{transformers_name(layer)}" if whole else transformers_name(layer)
    return _to_video(layer) if whole else layer.replace("image_encoder.", "vision_encoder.", 1)


def _name_of_video(key: str) -> str:
    return _from_video(_PREFIX.sub("", key))


def _is_meta(found: Iterable[str]) -> bool:
    return any(key.startswith(("tracker.", "detector.")) for key in found)


def open_weights(path: Path) -> dict[str, Read]:
    """Return what reads each weight in a file or folder, by its name there."""
    if path.is_dir():
        return {key: read for file in _files(path) for key, read in open_weights(file).items()}
    if not path.is_file():
        raise UserError(
            f"model.checkpoint: {path} does not exist; it is the folder of facebook/sam3 on the Hugging Face hub, or "
            "Meta's sam3.pt, and null stands for random weights",
            "base.missing",
        )
    if path.suffix == ".safetensors":
        try:
            file: Any = safe_open(path, "pt")
            return {key: partial(file.get_tensor, key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or not a safetensors file: {error}", "base.damaged") from None
    content = read_pt(path)
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise UserError(f"{path}: not Meta's sam3.pt, which holds a state dict", "base.other-format")
    return {key: partial(weights.__getitem__, key) for key in weights}


def _files(folder: Path) -> list[Path]:
    """Return the files of weights in a folder of transformers."""
    if (folder / NAME).is_file():
        return [folder / NAME]
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = sorted({folder / Path(file).name for file in content["weight_map"].values()})
        if other := [file.name for file in files if file.suffix != ".safetensors"]:
            raise ValueError(f"it names {other[0]!r}, which is no safetensors file")
    except FileNotFoundError:
        raise UserError(
            f"model.checkpoint: {folder} holds neither {NAME} nor {INDEX}; a folder of transformers' SAM 3 does",
            "base.missing",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / INDEX}: damaged: {error}", "base.damaged") from None
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"model.checkpoint: {folder} lacks {', '.join(absent)}, which {INDEX} names: fetch the rest of it",
            "base.missing",
        )
    return files


def _from_transformers(weights: dict[str, Tensor], path: object) -> dict[str, Tensor]:
    again, once = weights.pop(FREQUENCIES_AGAIN, None), weights.get(FREQUENCIES)
    if again is not None and once is not None and not torch.equal(again, once):
        raise UserError(
            f"{path}: {FREQUENCIES_AGAIN} and {FREQUENCIES} differ, but a tracker has one of them", "base.unsupported"
        )
    points = split_points(weights.pop(POINTS)) if POINTS in weights and weights[POINTS].ndim else {}
    return {**{sam2_name(key) or key: tensor for key, tensor in weights.items()}, **points}


def _from_meta_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    separate = {}  # what has no shape to be taken apart stays as it is, for the check of keys and shapes to name
    for key, tensor in weights.items():
        if (found := _FUSED.fullmatch(key)) and tensor.ndim and len(tensor) and len(tensor) % len(_PARTS) == 0:
            for part, value in zip(_PARTS, tensor.chunk(3), strict=True):
                separate[f"{found[1]}.{part}.{found[2]}"] = value
        elif key == _POSITIONS and tensor.ndim > 1:
            separate[key] = tensor[:, 1:]  # the first is the class token's
        else:
            separate[key] = tensor
    return separate


def meta_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a tracker's state dict, without adapters, by the names of Meta's ``sam3.pt``.

    The class token's position, which SAM 3 does not look at, is zero. What the file has of the detector alone, and
    rotations, which follow from the architecture, are not among them.
    """
    fused: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        layer, part, kind = key.rsplit(".", 2) if key.count(".") > 1 else ("", "", "")
        if layer.startswith("image_encoder.") and part in _PARTS:
            if part == _PARTS[0]:
                fused[f"{layer}.qkv.{kind}"] = torch.cat([weights[f"{layer}.{each}.{kind}"] for each in _PARTS])
        else:
            fused[key] = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1) if key == _POSITIONS else tensor
    return {_to_meta(key): tensor for key, tensor in fused.items()}
