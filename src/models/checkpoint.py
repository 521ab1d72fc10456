"""Checkpoints of a run: everything needed to go on exactly, in one file of plain tensors, numbers and text."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from ..config import Config, LoraConfig, Method, parse_config
from ..core.errors import UserError
from ..core.files import write_atomically
from ..core.hub import find_folder
from ..core.torch_files import read_pt, save_pt
from ..gating.domain_gate import DomainGate
from ..lora.adapter import AdapterLayer, list_groups
from ..lora.adapter_io import (
    WEIGHTS_FILE,
    Configs,
    adapter_state_dict,
    base_fingerprint,
    base_state_dict,
    load_adapter,
    refuse_not_finite,
)
from ..lora.expert_groups import active_adapter, add_adapter
from ..lora.injection import apply_method
from .spec import spec_of

ADAPTER_FOLDER = "adapter"  # in a run's folder, beside its checkpoints
FORMAT_VERSION = 1


class _Types(BaseModel, arbitrary_types_allowed=True, strict=True):
    """What a checkpoint's file holds, as plain data."""

    config: dict[str, Any]
    base_fingerprint: str
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    progress: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    data: dict[Literal["train", "valid"], dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """The content of ``best.pt``, ``last.pt``, ``previous.pt`` or ``epoch_*.pt``.

    Attributes:
        config: the run's config.
        base_fingerprint: of the base weights that training started from.
        weights: what was trained: the adapters, or with method full the whole model.
        optimizer, schedule, scaler: their state dicts.
        progress: where the run is (plain numbers, text and lists).
        data: what is in each training and validation set, as ``{"train": {name: …}, "valid": {name: …}}``; empty in
            files of earlier versions.
        groups: the config of each expert group, the one that trains last; empty without groups.
    """

    config: Config
    base_fingerprint: str
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    progress: dict[str, Any]
    groups: dict[str, LoraConfig] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, keep: Path | None = None) -> None:
        """Write the file whole or not at all; an earlier one is moved to ``keep``, if that is given."""
        content = {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "config": self.config.model_dump(mode="json"),
            "groups": {name: group.model_dump(mode="json") for name, group in self.groups.items()},
        }
        write_atomically(path, partial(save_pt, content), keep)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of a run.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.pt")) if path.parent.is_dir() else []
        hint = f"; {path.parent} holds {', '.join(near)}" if near else ""
        raise UserError(f"{path}: no such checkpoint or adapter folder{hint}", "checkpoint.missing")
    content = read_pt(path)
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        hint = "; base weights go into model.checkpoint" if isinstance(content, dict) and "model" in content else ""
        raise UserError(f"{path}: not a checkpoint of a training run{hint}", "checkpoint.other-format")
    content = {"groups": {}, "data": {}, **content}  # which files of earlier versions lack
    missing = [name for name in Checkpoint.__dataclass_fields__ if name not in content]
    if missing:
        raise UserError(
            f"{path}: not a checkpoint of a training run: it lacks {', '.join(missing)}", "checkpoint.other-format"
        )
    fields = {name: content[name] for name in Checkpoint.__dataclass_fields__}
    try:
        _Types.model_validate(fields)
        fields["groups"] = {name: LoraConfig.model_validate(group) for name, group in content["groups"].items()}
    except ValidationError as error:
        raise UserError(f"{path}: damaged: {describe_types(error)}", "checkpoint.damaged") from None
    fields["config"] = parse_config(content["config"], f"{path} (config)")
    return Checkpoint(**fields)


def describe_types(error: ValidationError) -> str:
    """Return in one line what is of a wrong type, and where."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a run's checkpoint, by the names in it; its tensors are not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
            pickled = archive.read(member) if member.file_size <= path.stat().st_size else b""
    except (OSError, zipfile.BadZipFile, StopIteration, RuntimeError):
        return False
    return all(name.encode() in pickled for name in ("format_version", "base_fingerprint", "progress"))


def trained_weights(model: nn.Module, method: Method) -> dict[str, torch.Tensor]:
    """Return the weights that a run changes: the adapters', the whole model's, or its decoder's."""
    if method == "full":
        return model.state_dict()
    if method == "decoder":
        decoder = spec_of(model).decoder
        return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(decoder)}
    return adapter_state_dict(model)


def inject_adapters(model: nn.Module, lora: LoraConfig, groups: dict[str, LoraConfig]) -> dict[str, AdapterLayer]:
    """Put a run's adapters into a base model, untrained, and return those that train, by dotted name.

    Args:
        model: without adapters.
        lora: what the run trains.
        groups: all expert groups, the one that trains last; empty without groups.

    Raises:
        UserError: as :func:`~src.lora.injection.apply_method` and :func:`~src.lora.expert_groups.add_adapter`.
    """
    if not groups:
        return apply_method(model, lora, spec_of(model).decoder if lora.method == "decoder" else ())
    return [add_adapter(model, name, config) for name, config in groups.items()][-1]


def load_trained(model: nn.Module, path: str | Path, lora: LoraConfig | None = None) -> Configs:
    """Turn a base model into the adapted one of a run.

    Args:
        model: with its base weights and without adapters.
        path: a checkpoint file of a run, or an adapter folder, here or by ``user/name`` on the hub.
        lora: the adapters' expected config; None takes the file's.

    Returns:
        The adapters' config, or with expert groups that of each.

    Raises:
        UserError: the file is missing or damaged, or belongs to another base or other adapters.
    """
    path = find_folder(path)
    if path.is_dir():
        if not (path / WEIGHTS_FILE).exists():
            raise UserError(f"{path}: not an adapter folder, which holds {WEIGHTS_FILE}", "adapter.not-a-folder")
        return load_adapter(model, path).lora
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, path, base_fingerprint(model), lora or checkpoint.config.lora)
    inject_adapters(model, checkpoint.config.lora, checkpoint.groups)
    load_weights(model, checkpoint, path)
    return checkpoint.groups or checkpoint.config.lora


def load_summary(model: nn.Module, ckpt_path: str | Path | None, adapter: str | Path | None) -> str:
    """Return one line that accounts for every key of the model."""
    keys, adapter_keys = len(base_state_dict(model)), len(adapter_state_dict(model))
    base = (
        f"loaded {ckpt_path}: {keys} base keys" if ckpt_path is not None else f"no checkpoint: {keys} random base keys"
    )
    if adapter is None:
        return f"{base}; {adapter_keys} adapter keys are new"
    groups = list_groups(model)
    active = f", expert groups {', '.join(groups)} (active: {active_adapter(model) or 'none'})" if groups else ""
    return f"{base}; {adapter_keys or keys} {'adapter' if adapter_keys else 'trained'} keys from {adapter}{active}"


def saved_gate(base: nn.Module, trained: str | Path | None) -> DomainGate | None:
    """Return the domain gate of an adapter folder, or of the one beside a run's checkpoint; None if there is none.

    Raises:
        UserError: it is damaged, or another base's.
    """
    if trained is None:
        return None
    place = find_folder(trained)
    folder = place if place.is_dir() else place.resolve().parents[1] / ADAPTER_FOLDER
    return DomainGate.beside(folder, base_fingerprint(base))


def check_fits(checkpoint: Checkpoint, path: str | Path, fingerprint: str, lora: LoraConfig) -> None:
    """Refuse a checkpoint of another base or of other adapters, naming both values."""
    if checkpoint.base_fingerprint != fingerprint:
        raise UserError(
            f"{path}: was trained on another base: on {checkpoint.base_fingerprint[:12]}, "
            f"but model.checkpoint's weights are {fingerprint[:12]}; set model.checkpoint to the base that it was "
            "trained on",
            "checkpoint.other-base",
        )
    found = differences(checkpoint.config.lora.model_dump(), lora.model_dump(), "lora")
    if found:
        raise UserError(f"{path}: does not fit the config: {'; '.join(found.values())}", "checkpoint.other-adapters")


def differences(theirs: Any, ours: Any, place: str) -> dict[str, str]:
    """Return where nested mappings (and lists of them) differ: dotted key → a text with both values."""
    if isinstance(theirs, list) and isinstance(ours, list) and all(isinstance(x, dict) for x in [*theirs, *ours]):
        theirs, ours = dict(enumerate(theirs)), dict(enumerate(ours))
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return {} if theirs == ours else {place: f"{place} is {_shown(theirs)} there and {_shown(ours)} here"}
    found: dict[str, str] = {}
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        found |= differences(theirs.get(key, _ABSENT), ours.get(key, _ABSENT), f"{place}.{key}" if place else str(key))
    return found


_ABSENT = "absent"


def _shown(value: Any) -> str:
    return "set" if isinstance(value, dict) else str(value)


def load_weights(model: nn.Module, checkpoint: Checkpoint, path: str | Path) -> None:
    """Copy a checkpoint's weights into a model prepared by ``apply_method``; every key is accounted for."""
    expected = trained_weights(model, checkpoint.config.lora.method)
    differing = sorted(expected.keys() ^ checkpoint.weights.keys()) or [
        name for name, tensor in expected.items() if checkpoint.weights[name].shape != tensor.shape
    ]
    if differing:
        raise UserError(
            f"{path}: its weights do not fit the model: {', '.join(differing[:5])}", "checkpoint.other-weights"
        )
    refuse_not_finite(path, checkpoint.weights, "checkpoint.not-finite")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(checkpoint.weights[name])
