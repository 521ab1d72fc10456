"""Adapters on disk: a folder with ``adapter.safetensors`` and ``adapter_config.json``.

An adapter belongs to the base it was trained on. So its file carries the base's fingerprint, and loading checks it.
The JSON has ``format_version`` 1 and ``lora``, the adapters' configuration; or, with expert groups, version 2 and
``groups``, a configuration for each. Weights have the names that they have in a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import ADAPTER_METHODS, LoraConfig
from ..core.errors import UserError
from ..core.files import write_atomically, write_text
from ..core.hub import find_folder
from .adapter import AdapterLayer, MultiAdapterLinear, iter_adapter_layers, iter_wrapped_linears, list_groups
from .expert_groups import ExpertGroup, add_adapter, check_name, set_adapter
from .injection import apply_method, freeze_base, new_adapter, remove_adapters
from .lora_layer import LoRALinear

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = "adapter_config.json"
CHECKSUM = "sha256"
"""The key of a file's metadata that holds the :func:`fingerprint` of its tensors, a space, and the SHA-256 of their
settings in the file beside it. It is one key, since the order of several is not always the same."""

_FORMAT_KEYS = {"format_version", "base_fingerprint", "lora", "groups"}
Configs: TypeAlias = LoraConfig | Mapping[str, LoraConfig]


@dataclass(frozen=True)
class AdapterConfig:
    """The content of ``adapter_config.json``.

    Attributes:
        lora: the adapters' configuration; with expert groups, a configuration for each name.
        base_fingerprint: :func:`base_fingerprint` of the model they were trained on.
        extra: further keys that :func:`save_adapter` was given, such as the model's name and image size.
    """

    lora: Configs
    base_fingerprint: str
    extra: dict[str, Any]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter folder's content, without a model.

    Attributes:
        config: the JSON file's content.
        weights: the safetensors file's content.
    """

    config: AdapterConfig
    weights: dict[str, Tensor]


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' weights and saved buffers by full dotted name; they are not copied.

    A name is such as ``….q_proj.lora_A``, or in an expert group ``….q_proj.groups.cells.lora_A``.
    """
    return {
        f"{layer}.{name}" if layer else name: tensor
        for layer, adapter in iter_adapter_layers(model)
        for name, tensor in adapter.adapter_state().items()
    }


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the base model's state dict under its keys without adapters; merging does not change it."""
    renamed, inside = {}, []
    for layer, wrapped in iter_wrapped_linears(model):
        prefix = f"{layer}." if layer else ""
        inside.append(prefix)
        renamed.update({f"{prefix}base_layer.{key}": f"{prefix}{key}" for key in wrapped.base_layer.state_dict()})
    return {
        renamed.get(key, key): value
        for key, value in model.state_dict().items()
        if key in renamed or not key.startswith(tuple(inside))
    }


def base_fingerprint(model: nn.Module) -> str:
    """Return the :func:`fingerprint` of the base weights; adapters, merged or not, do not change it."""
    return fingerprint(base_state_dict(model))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights' names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(model: nn.Module, folder: str | Path, config: Configs, extra: dict[str, Any]) -> None:
    """Write the model's adapters to a folder; each file is replaced as a whole or not at all.

    Args:
        model: with adapters, merged or not.
        folder: made if missing.
        config: the configuration that the adapters were injected with; with expert groups, one for each name.
        extra: further keys for the JSON file, such as ``model_name`` and ``image_size``.

    Raises:
        ValueError: the model has no adapters, they differ from the config, or ``extra`` uses a key of the format.
    """
    if not any(iter_adapter_layers(model)):
        raise ValueError("the model has no adapters to save")
    if mistakes := _setting_mistakes(model, config):
        raise ValueError("the config is not the adapters' own: " + "; ".join(mistakes))
    write_adapter(folder, AdapterFile(AdapterConfig(config, base_fingerprint(model), extra), adapter_state_dict(model)))


def write_adapter(folder: str | Path, file: AdapterFile) -> None:
    """Write an adapter folder; each file is replaced as a whole or not at all.

    Raises:
        ValueError: ``extra`` uses a key of the format.
    """
    lora, extra = file.config.lora, file.config.extra
    content: dict[str, Any] = {"format_version": 1, "base_fingerprint": file.config.base_fingerprint}
    if isinstance(lora, LoraConfig):
        content["lora"] = lora.model_dump(mode="json")
    else:
        content["format_version"] = 2
        content["groups"] = {name: config.model_dump(mode="json") for name, config in lora.items()}
    if taken := _FORMAT_KEYS & extra.keys():
        raise ValueError(f"extra must not use the format's own keys: {', '.join(sorted(taken))}")
    weights = {name: tensor.cpu().contiguous() for name, tensor in file.weights.items()}
    folder = Path(folder)
    text = json.dumps({**content, **extra}, indent=2, ensure_ascii=False) + "\n"
    checksums = {CHECKSUM: f"{fingerprint(weights)} {_settings_checksum(content)}"}
    write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(weights, path, checksums))
    write_text(folder / CONFIG_FILE, text)


def read_adapter_config(folder: str | Path) -> AdapterConfig:
    """Read ``adapter_config.json``, for example to build the model that the adapters belong to.

    Raises:
        UserError: the file is missing, is not JSON, or has wrong or missing keys.
    """
    path = find_folder(folder) / CONFIG_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}", code="adapter.damaged") from None
    if not isinstance(raw, dict) or raw.get("format_version") not in (1, 2):
        raise UserError(f"{path}: not an adapter configuration of format_version 1 or 2", code="adapter.format")
    extra = {key: value for key, value in raw.items() if key not in _FORMAT_KEYS}
    if not isinstance(raw.get("base_fingerprint"), str):
        raise UserError(f"{path}: base_fingerprint is missing", code="adapter.config")
    lora: Configs
    if raw["format_version"] == 1:
        lora = _read_lora(raw.get("lora"), path, "lora")
    elif not isinstance(raw.get("groups"), dict) or not raw["groups"]:
        raise UserError(f"{path}: groups must hold a configuration for each expert group", code="adapter.config")
    else:
        lora = {name: _read_lora(config, path, f"groups.{name}") for name, config in raw["groups"].items()}
    return AdapterConfig(lora, raw["base_fingerprint"], extra)


def _read_lora(raw: Any, path: Path, key: str) -> LoraConfig:
    try:
        lora = LoraConfig.model_validate(raw)
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join([key, *map(str, e['loc'])])}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {mistakes}", code="adapter.config") from None
    if lora.method not in ADAPTER_METHODS:
        raise UserError(f"{path}: {key}.method '{lora.method}' has no adapters", code="adapter.config")
    return lora


def read_adapter(folder: str | Path, device: str | torch.device = "cpu") -> AdapterFile:
    """Read an adapter folder, or one of the hub by ``user/name``, without a model, onto a device.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = find_folder(folder)
    config, weights = read_adapter_config(folder), _read_weights(folder / WEIGHTS_FILE, device)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as opened:
        written = (opened.metadata() or {}).get(CHECKSUM, "").partition(" ")[2]
    path = folder / CONFIG_FILE
    if written and written != _settings_checksum(json.loads(path.read_text(encoding="utf-8"))):
        raise UserError(
            f"{path}: its settings are not those that {WEIGHTS_FILE} was written with, by its checksum; take another "
            "copy, or write it again by resuming the run",
            code="adapter.damaged",
        )
    return AdapterFile(config, weights)


def load_adapter(model: nn.Module, folder: str | Path, device: str | torch.device = "cpu") -> AdapterConfig:
    """Load adapters from a folder into a model with the base they were trained on.

    A model without adapters gets those of the folder's configuration, with the base frozen; a model with adapters must
    have the same ones. Merged adapters are unmerged. On an error the model is as it was. If expert groups are put into
    the model, a single one is active; of several none, until :func:`~src.lora.expert_groups.set_adapter` sets one.

    Args:
        model: with its base weights loaded.
        folder: one that :func:`save_adapter` wrote; or ``user/name``, one of the Hugging Face hub
            (:func:`~src.core.hub.find_folder`).
        device: the device that the file is read to; adapters stay on the device of the layers they wrap.

    Raises:
        UserError: a file is missing or damaged, the base is another, or keys, shapes or settings differ; all listed.
    """
    file = read_adapter(folder, device)
    config, weights = file.config, file.weights
    path = find_folder(folder) / WEIGHTS_FILE
    check_base(folder, config, base_fingerprint(model))
    injected = not any(iter_wrapped_linears(model))
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        if injected:
            _inject(model, config.lora)
        if mistakes := _setting_mistakes(model, config.lora) + key_mistakes(adapter_state_dict(model), weights):
            listed = "\n".join(f"  {mistake}" for mistake in mistakes)
            raise UserError(f"{path}: does not fit the model's adapters\n{listed}", code="adapter.mismatch")
    except UserError:
        if injected:
            remove_adapters(model)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trained[name])
        raise
    for _, adapter in iter_adapter_layers(model):
        if isinstance(adapter, LoRALinear):
            adapter.unmerge()
    for name, tensor in adapter_state_dict(model).items():
        tensor.copy_(weights[name])
    return config


def check_base(folder: str | Path, config: AdapterConfig, found: str) -> None:
    """Raise UserError unless a folder's adapters were trained on the base of this fingerprint."""
    if found != config.base_fingerprint:
        raise UserError(
            f"{folder}: these adapters were trained on another base: on {config.base_fingerprint[:12]}, "
            f"but this model's base weights are {found[:12]}; set model.checkpoint to the base they were trained on",
            code="adapter.other-base",
        )


def _inject(model: nn.Module, lora: Configs) -> None:
    """Put untrained adapters of this configuration, or groups of them, into a model without any."""
    if isinstance(lora, LoraConfig):
        apply_method(model, lora)
        return
    for name, config in lora.items():
        add_adapter(model, name, config)
    freeze_base(model)
    if len(lora) > 1:
        set_adapter(model, None)


def split_groups(file: AdapterFile, name: str) -> dict[str, ExpertGroup]:
    """Return the expert groups of an adapter folder's content; adapters in no group are one of this name.

    Raises:
        UserError: ``name`` is needed and cannot name a group, or weights belong to no adapter of a group.
    """
    groups = {}
    if isinstance(file.config.lora, LoraConfig):
        check_name(name)
        groups[name] = ExpertGroup(file.config.lora, file.weights)
    else:
        for group, config in file.config.lora.items():
            part = f".groups.{group}."
            weights = {key.replace(part, ".", 1): tensor for key, tensor in file.weights.items() if part in key}
            groups[group] = ExpertGroup(config, weights)
    placed = sum(len(group.weights_by_layer()) for group in groups.values())
    if placed < len(file.weights):
        raise UserError(
            f"{len(file.weights) - placed} of {len(file.weights)} weights belong to no adapter of a group",
            code="groups.left-over",
        )
    return groups


def pack_groups(groups: Mapping[str, ExpertGroup], base_fingerprint: str, extra: dict[str, Any]) -> AdapterFile:
    """Return an adapter folder's content with these groups."""
    weights = {
        f"{layer}.groups.{name}.{key}": tensor
        for name, group in groups.items()
        for (layer, key), tensor in group.weights_by_layer().items()
    }
    config = AdapterConfig({name: group.config for name, group in groups.items()}, base_fingerprint, extra)
    return AdapterFile(config, weights)


def join_adapters(parts: Sequence[tuple[str, AdapterFile]]) -> AdapterFile:
    """Return the groups of several adapters of the same base as one folder's content.

    Args:
        parts: folders' contents, each with the group name that adapters in no group get.

    Raises:
        UserError: bases differ, two groups share a name, or further keys such as ``image_size`` differ.
    """
    first = parts[0][1].config
    groups: dict[str, ExpertGroup] = {}
    for name, file in parts:
        if file.config.base_fingerprint != first.base_fingerprint:
            raise UserError(
                f"adapters of different bases cannot be joined: {first.base_fingerprint[:12]} "
                f"and {file.config.base_fingerprint[:12]}",
                code="join.other-base",
            )
        if differing := [k for k in file.config.extra if k in first.extra and file.config.extra[k] != first.extra[k]]:
            raise UserError(f"adapters that differ in {', '.join(differing)} cannot be joined", code="join.different")
        for group, content in split_groups(file, name).items():
            if group in groups:
                raise UserError(
                    f"there are two groups named '{group}'; name adapters in no group NAME=FOLDER",
                    code="join.same-name",
                )
            groups[group] = content
    extra = {key: value for _, file in reversed(parts) for key, value in file.config.extra.items()}
    return pack_groups(groups, first.base_fingerprint, extra)


def _settings_checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a configuration file says of adapters, as JSON. Their base has its own."""
    settings = {key: content.get(key) for key in ("lora", "groups")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _read_weights(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    """Read weights that are whole and finite. Files of earlier versions carry no checksum."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get(CHECKSUM)
    except FileNotFoundError:
        raise _missing(path) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file: {error}", code="adapter.damaged") from None
    if checksum is not None and checksum.partition(" ")[0] != fingerprint(weights):
        raise UserError(
            f"{path}: damaged: its weights are not those that were written, by its checksum; take another copy, or "
            "write it again by resuming the run",
            code="adapter.damaged",
        )
    refuse_not_finite(path, weights, "adapter.not-finite")
    return weights


def refuse_not_finite(path: str | Path, weights: Mapping[str, Tensor], code: str) -> None:
    """Raise UserError of a code where weights that were read from a file are infinite or NaN, naming them."""
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(f"{path}: weights are infinite or NaN: {', '.join(bad[:3])}{more}; take another file", code)


def _missing(path: Path) -> UserError:
    return UserError(
        f"{path}: no such file; an adapter folder holds {WEIGHTS_FILE} and {CONFIG_FILE}", code="adapter.missing-file"
    )


def _setting_mistakes(model: nn.Module, lora: Configs) -> list[str]:
    """Return where settings differ: layers of equal shapes may compute different things, as with another alpha."""
    configs: dict[str | None, LoraConfig] = {None: lora} if isinstance(lora, LoraConfig) else dict(lora.items())
    present = list_groups(model)
    mistakes = [f"the model has no group '{group}'" for group in configs if group is not None and group not in present]
    expected: dict[tuple[int, int, str | None], dict[str, Any]] = {}
    for name, wrapped in iter_wrapped_linears(model):
        adapters: Mapping[Any, AdapterLayer]
        adapters = wrapped.adapters if isinstance(wrapped, MultiAdapterLinear) else {None: wrapped}
        for group, adapter in adapters.items():
            if group not in configs:
                mistakes.append(f"{name}: the model has {f'group {group!r}' if group else 'adapters in no group'}")
                continue
            kind = (wrapped.in_features, wrapped.out_features, group)
            if kind not in expected:
                expected[kind] = new_adapter(nn.Linear(*kind[:2], device="meta"), configs[group]).settings()
            if expected[kind] != adapter.settings():
                mistakes.append(f"{name}: the configuration says {expected[kind]}, the model has {adapter.settings()}")
    return mistakes


def key_mistakes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return a text for each weight that is missing, left over or of another shape."""
    missing = [f"missing: {name}" for name in expected if name not in found]
    left_over = [f"left over: {name}" for name in found if name not in expected]
    shapes = [
        f"{name}: shape {tuple(found[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return missing + left_over + shapes
