"""The model zoo: SAM 2 built from the ``sam2`` package's own classes and configs, with strictly loaded weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sam2  # noqa: F401  (registers sam2's config folder with hydra)
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from sam2.modeling.sam2_base import SAM2Base

from ...config import ModelConfig, image_size_of
from ...core.errors import UserError
from ...core.shipped import find_file
from ...core.torch_files import read_pt
from ...lora.adapter_io import base_state_dict, refuse_not_finite
from ..spec import model_spec
from .cpu_kernels import use_fast_cpu_kernels
from .pixels import FAMILY

assert FAMILY.memory_stride is not None
TOKEN_STRIDE = FAMILY.memory_stride
CONFIGS = Path(__file__).parent / "configs"  # what differs from configs of the ``sam2`` package

# what sam2.build_sam sets for its predictors, less hole filling, which needs the optional CUDA extension
_PREDICTOR_OVERRIDES = (
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
    "++model.binarize_mask_from_pts_for_mem_enc=true",
)


def sam2_config(name: str) -> str:
    """Return the config of the ``sam2`` package that a model is made from."""
    return str(model_spec(name).details["config"])


def config_overrides(config: ModelConfig) -> list[str]:
    """Return Hydra overrides that turn :func:`sam2_config` into the model asked for: its parts and image size."""
    differences, side = model_spec(config.name).details.get("differences"), image_size_of(config)
    own = OmegaConf.to_container(OmegaConf.load(CONFIGS / str(differences))) if differences else {}
    assert isinstance(own, Mapping)
    sizes = f"[{side // TOKEN_STRIDE},{side // TOKEN_STRIDE}]"
    return [
        *_as_overrides(own),
        f"model.image_size={side}",
        f"model.memory_attention.layer.self_attention.feat_sizes={sizes}",
        f"model.memory_attention.layer.cross_attention.feat_sizes={sizes}",
    ]


def _as_overrides(section: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"++{prefix}{key}={json.dumps(value, separators=(',', ':'))}"


def build_model(config: ModelConfig, target: str = "sam2.modeling.sam2_base.SAM2Base", **arguments: Any) -> SAM2Base:
    """Build a model of the zoo on the CPU, with the config's checkpoint loaded strictly (random weights without one).

    Args:
        config: which model, which weights, which image size.
        target: the class to build, SAM2Base or one derived from it.
        arguments: further arguments of that class.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another model.
    """
    parts = _compose(sam2_config(config.name), *config_overrides(config), *_PREDICTOR_OVERRIDES)
    model = instantiate({**parts, "_target_": target, **arguments})
    use_fast_cpu_kernels(model)
    if config.checkpoint is not None:
        load_base(model, config.checkpoint, config.name)
    return model


@cache  # as slow as building the parts themselves, and a run builds several models
def _compose(name: str, *overrides: str) -> Mapping[str, Any]:
    """Return the section ``model`` of a config of the ``sam2`` package, with Hydra overrides."""
    model_config = OmegaConf.to_container(compose(config_name=name, overrides=list(overrides)).model, resolve=True)
    assert isinstance(model_config, dict)
    return MappingProxyType({str(key): value for key, value in model_config.items()})


def load_base(model: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load base weights strictly: every key of the base is in the file, and every key of the file in the base.

    Args:
        model: a SAM 2 model, with adapters, which stay as they are, or without.
        path: an official ``.pt`` (``{"model": state_dict}``) or a ``.safetensors`` file; half-precision weights are
            widened.
        name: the model's name, for messages.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint, or its keys or shapes are those of another model.
    """
    weights = read_weights(path)
    expected = base_state_dict(model)
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    reshaped = [
        f"{key} is {_shape(weights[key])}, expected {_shape(expected[key])}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for what, keys in (("keys missing", missing), ("unknown keys", unexpected), ("shapes differ", reshaped))
        if keys
    ]
    if problems:
        raise UserError(f"{path} does not fit model.name {name}: {'; '.join(problems)}", "base.other-model")
    refuse_not_finite(path, weights, "base.not-finite")
    for key, tensor in expected.items():
        tensor.copy_(weights[key])


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a ``.safetensors`` or official ``.pt`` file, on the CPU, and execute nothing in it.

    Raises:
        UserError: the file is missing, truncated, or holds something else.
    """
    path = find_file(path)
    if not path.is_file():
        raise UserError(
            f"model.checkpoint: {path} does not exist; checkpoints/download_ckpts.sh fetches the official files, "
            "and null stands for random weights",
            "base.missing",
        )
    if path.suffix == ".safetensors":
        try:
            tensors: dict[str, torch.Tensor] = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: damaged or not a safetensors file: {error}", "base.damaged") from None
        return tensors
    content = read_pt(path)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(
            f"{path}: not an official SAM 2 checkpoint, which holds {{'model': state_dict}}", "base.other-format"
        )
    return weights


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
