"""Adapters on disk: a folder with ``adapter.safetensors`` and ``adapter_config.json``; and merging them into the base.

An adapter belongs to the base it was trained on, so its file carries the base's fingerprint, and loading checks it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from src.config import LoraConfig
from src.errors import UserError
from src.files import write_atomically, write_text
from src.lora.adapter import iter_adapters
from src.lora.lora_layer import LoRALinear
from src.lora.lora_utils import apply_method, new_adapter, remove_adapters, replace_module

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter_config.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter_config.json`` says.

    Attributes:
        lora: the adapters' configuration.
        base_fingerprint: :func:`base_fingerprint` of the model they were trained on.
        extra: whatever was given to :func:`save_adapter`, such as the model's name and image size.
    """

    lora: LoraConfig
    base_fingerprint: str
    extra: dict[str, Any]


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights by full dotted name, such as ``…q_proj.lora_A``; not copies."""
    return {
        f"{layer}.{name}" if layer else name: parameter.detach()
        for layer, adapter in iter_adapters(model)
        for name, parameter in adapter.named_adapter_parameters()
    }


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The base model's state dict, with the keys it has without adapters; not copies. Merging does not change it."""
    adapter_keys = adapter_state_dict(model).keys()
    renamed = {}
    for layer, adapter in iter_adapters(model):
        prefix = f"{layer}." if layer else ""
        renamed.update({f"{prefix}base_layer.{key}": f"{prefix}{key}" for key in adapter.base_layer.state_dict()})
    return {renamed.get(key, key): value for key, value in model.state_dict().items() if key not in adapter_keys}


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the base weights' names, shapes, dtypes and bytes; adapters, merged or not, do not change it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state_dict(model).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(model: nn.Module, folder: str | Path, config: LoraConfig, extra: dict[str, Any]) -> None:
    """Write the model's adapters to a folder; each file is replaced as a whole or not at all.

    Args:
        model: a model with adapters, merged or not.
        folder: made if missing.
        config: the configuration the adapters were injected with.
        extra: further keys for the JSON file, such as ``model_name`` and ``image_size``.

    Raises:
        ValueError: the model has no adapters or other ones than the config says, or ``extra`` uses a key of the format.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in adapter_state_dict(model).items()}
    if not weights:
        raise ValueError("the model has no adapters to save")
    if mistakes := _setting_mistakes(model, config):
        raise ValueError("the config is not the adapters' own: " + "; ".join(mistakes))
    described = {
        "format_version": FORMAT_VERSION,
        "base_fingerprint": base_fingerprint(model),
        "lora": config.model_dump(mode="json"),
    }
    if taken := described.keys() & extra.keys():
        raise ValueError(f"extra must not use the format's own keys: {', '.join(sorted(taken))}")
    folder = Path(folder)
    text = json.dumps({**described, **extra}, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(weights, path))
    write_text(folder / CONFIG_FILE, text)


def read_adapter_config(folder: str | Path) -> AdapterConfig:
    """Read ``adapter_config.json``, for example to build the model that the adapters belong to.

    Raises:
        UserError: the file is missing, is not JSON, or does not say what it should.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; an adapter folder holds {WEIGHTS_FILE} and {CONFIG_FILE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: not an adapter configuration of format_version {FORMAT_VERSION}")
    extra = {key: value for key, value in raw.items() if key not in ("format_version", "base_fingerprint", "lora")}
    if not isinstance(raw.get("base_fingerprint"), str):
        raise UserError(f"{path}: base_fingerprint is missing")
    try:
        lora = LoraConfig.model_validate(raw.get("lora"))
    except ValidationError as error:
        mistakes = "; ".join(f"lora.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {mistakes}") from None
    if lora.method in ("full", "none"):
        raise UserError(f"{path}: lora.method '{lora.method}' has no adapters")
    return AdapterConfig(lora, raw["base_fingerprint"], extra)


def load_adapter(model: nn.Module, folder: str | Path, device: str | torch.device = "cpu") -> AdapterConfig:
    """Load adapters from a folder into a model with the base they were trained on.

    A model without adapters gets those that the folder's configuration describes, with the base frozen; a model with
    adapters must have the same ones. Merged adapters are unmerged. On an error the model is as it was.

    Args:
        model: with its base weights loaded.
        folder: as written by :func:`save_adapter`.
        device: where the file is read to; the adapters stay on the device of the layers they wrap.

    Raises:
        UserError: a file is missing or damaged, the base is another, or keys, shapes or settings differ; all listed.
    """
    config = read_adapter_config(folder)
    path = Path(folder) / WEIGHTS_FILE
    weights = _read_weights(path, device)
    found = base_fingerprint(model)
    if found != config.base_fingerprint:
        raise UserError(
            f"{folder}: these adapters were trained on another base: on {config.base_fingerprint[:12]}, "
            f"but this model's base weights are {found[:12]}"
        )
    injected = not any(iter_adapters(model))
    if injected:
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        apply_method(model, config.lora)
    mistakes = _setting_mistakes(model, config.lora) + _key_mistakes(adapter_state_dict(model), weights)
    if mistakes:
        if injected:
            remove_adapters(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained[name])
        raise UserError(f"{path}: does not fit the model's adapters\n" + "\n".join(f"  {m}" for m in mistakes))
    for _, adapter in iter_adapters(model):
        if isinstance(adapter, LoRALinear):
            adapter.unmerge()
    for name, tensor in adapter_state_dict(model).items():
        tensor.copy_(weights[name])
    return config


def merge_adapters(model: nn.Module) -> None:
    """Merge every LoRA layer of the model, for inference without a branch; merged layers stay as they are.

    Raises:
        UserError: the model has mixture-of-experts layers; none is merged.
        ValueError: the model has no adapters.
    """
    for layer in _mergeable(model).values():
        layer.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """Undo :func:`merge_adapters`, bit for bit; raises what it raises."""
    for layer in _mergeable(model).values():
        layer.unmerge()


@torch.no_grad()
def unload_merged(model: nn.Module) -> None:
    """Merge, and put plain Linear layers with the merged weights in place of the LoRA layers; there is no way back.

    The state dict then has the base model's own keys, for any program that loads the base model. Raises what
    :func:`merge_adapters` raises.
    """
    merge_adapters(model)
    for name, layer in _mergeable(model).items():
        assert layer.merged_weight is not None
        layer.base_layer.weight.copy_(layer.merged_weight)
        replace_module(model, name, layer.base_layer)


def _mergeable(model: nn.Module) -> dict[str, LoRALinear]:
    adapters = dict(iter_adapters(model))
    if not adapters:
        raise ValueError("the model has no adapters to merge")
    lora = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, LoRALinear)}
    if len(lora) < len(adapters):
        raise UserError(
            "adapters with a gate (method mope) cannot be merged, because which experts add to the weight depends "
            "on the input; keep the adapter folder beside the base, or train with method lora"
        )
    return lora


def _read_weights(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; an adapter folder holds {WEIGHTS_FILE} and {CONFIG_FILE}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file: {error}") from None


def _setting_mistakes(model: nn.Module, config: LoraConfig) -> list[str]:
    """Layers of equal shapes may still compute different things, such as with another alpha."""
    mistakes = []
    for name, adapter in iter_adapters(model):
        shape = nn.Linear(adapter.in_features, adapter.out_features, device="meta")
        expected, found = new_adapter(shape, config).settings(), adapter.settings()
        if expected != found:
            mistakes.append(f"{name}: the configuration says {expected}, the model has {found}")
    return mistakes


def _key_mistakes(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    missing = [f"missing: {name}" for name in expected if name not in found]
    left_over = [f"left over: {name}" for name in found if name not in expected]
    shapes = [
        f"{name}: shape {tuple(found[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return missing + left_over + shapes
