"""The model zoo: SAM 2 built from the ``sam2`` package's own classes and configs, with strictly loaded weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

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
from .pixels import TOKEN_STRIDE

Build: TypeAlias = Callable[..., Any]
""":func:`build_model`, or that of another model of SAM 2's classes."""

_SAM3 = ("detector.", "tracker.", "detector_model.", "tracker_model.", "vision_encoder.backbone.layers.")
_SAM2 = ("image_encoder.trunk.", "vision_encoder.backbone.blocks.", "image_encoder.backbone.blocks.")

BASE = "sam2.modeling.sam2_base.SAM2Base"

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
        *as_overrides(own),
        f"model.image_size={side}",
        f"model.memory_attention.layer.self_attention.feat_sizes={sizes}",
        f"model.memory_attention.layer.cross_attention.feat_sizes={sizes}",
    ]


def as_overrides(section: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield nested values as Hydra overrides."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"++{prefix}{key}={json.dumps(value, separators=(',', ':'))}"


def build_model(config: ModelConfig, target: str = BASE, **arguments: Any) -> SAM2Base:
    """Build a model of the zoo on the CPU, with the config's checkpoint loaded strictly (random weights without one).

    Args:
        config: which model, which weights, which image size.
        target: the class to build, SAM2Base or one derived from it.
        arguments: further arguments of that class.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another model.
    """
    model = instantiate_model(config.name, config_overrides(config), target, **arguments)
    complete(model, config.name)
    if config.checkpoint is not None:
        load_base(model, config.checkpoint, config.name)
    return model


def instantiate_model(name: str, overrides: Iterable[str], target: str, **arguments: Any) -> SAM2Base:
    """Build a model with random weights from its config of the ``sam2`` package.

    Args:
        name: the model's name.
        overrides: Hydra overrides that turn the config into the model.
        target: the class to build, SAM2Base or one derived from it.
        arguments: further arguments of that class.
    """
    parts = _compose(sam2_config(name), *overrides, *_PREDICTOR_OVERRIDES)
    model = instantiate({**parts, "_target_": target, **arguments})
    use_fast_cpu_kernels(model)
    return model


@cache  # as slow as building the parts themselves, and a run builds several models
def _compose(name: str, *overrides: str) -> Mapping[str, Any]:
    """Return the section ``model`` of a config of the ``sam2`` package, with Hydra overrides."""
    model_config = OmegaConf.to_container(compose(config_name=name, overrides=list(overrides)).model, resolve=True)
    assert isinstance(model_config, dict)
    return MappingProxyType({str(key): value for key, value in model_config.items()})


def complete(model: SAM2Base, name: str) -> None:
    """Let a model that stands as its config describes it know which one it is."""
    model.spec = model_spec(name)


def load_base(model: torch.nn.Module, path: str | Path, name: str) -> None:
    """Load base weights strictly; see :func:`put_weights`.

    Args:
        model: a SAM 2 model, with adapters, which stay as they are, or without.
        path: an official ``.pt`` (``{"model": state_dict}``) or a ``.safetensors`` file; half-precision weights are
            widened.
        name: the model's name, for messages.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint, or its keys or shapes are those of another model.
    """
    put_weights(model, read_weights(path), path, name)


def put_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path, name: str) -> None:
    """Copy base weights into a model: every key of the base is among them, and every one of them in the base.

    Args:
        model: with adapters, which stay as they are, or without.
        weights: by the names of SAM 2's classes; half-precision weights are widened.
        path: where they are from, for messages.
        name: the model's name, for messages.

    Raises:
        UserError: keys or shapes are those of another model, or numbers are infinite or NaN.
    """
    expected = base_state_dict(model)
    check_keys(expected, weights, path, name)
    refuse_not_finite(path, weights, "base.not-finite")
    for key, tensor in expected.items():
        tensor.copy_(weights[key])


def check_keys(
    expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], path: str | Path, name: str
) -> None:
    """Raise UserError where weights have other keys or shapes than a base; arguments as of :func:`put_weights`."""
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    reshaped = [
        f"{key} is {_shape(weights[key])}, expected {_shape(expected[key])}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    integers = [
        f"{key} is {weights[key].dtype}"
        for key in expected
        if key in weights and expected[key].is_floating_point() and not weights[key].is_floating_point()
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for what, keys in (
            ("keys missing", missing),
            ("unknown keys", unexpected),
            ("shapes differ", reshaped),
            ("of whole numbers", integers),
        )
        if keys
    ]
    if problems:
        raise UserError(
            f"{path} does not fit model.name {name}: {'; '.join(problems)}{_whose(weights)}", "base.other-model"
        )


def _whose(weights: Iterable[str]) -> str:
    """Say whose weights these are, where their names tell."""
    if any(key.startswith(_SAM3) for key in weights):
        return "; these are weights of SAM 3, whose tracker is model.name sam3_tracker"
    if any(key.startswith(_SAM2) for key in weights):
        return "; these are weights of SAM 2"
    return ""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a ``.safetensors`` or official ``.pt`` file, on the CPU, and execute nothing in it.

    Raises:
        UserError: the file is missing, truncated, or holds something else.
    """
    path = find_file(path)
    if path.is_dir():
        raise UserError(
            f"model.checkpoint: {path} is a folder, but weights of SAM 2 are a file: an official .pt or safetensors; "
            "folders of transformers' SAM 3 are for model.name sam3_tracker",
            "base.other-format",
        )
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
