"""Adapter folders taken apart and put together, group by group, without the base model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LoraConfig
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..lora.adapter_io import (
    AdapterConfig,
    AdapterFile,
    join_adapters,
    pack_groups,
    read_adapter,
    split_groups,
    write_adapter,
)
from ..lora.expert_groups import DEFAULT_ADAPTER, ExpertGroup, check_name
from ..lora.merging import merge_groups
from ..lora.pruning import pruned
from .domain_gate import DomainGate, KnownDomain


@dataclass(frozen=True)
class AdapterGroups:
    """The expert groups of an adapter folder, and what its domain gate knows of them.

    Attributes:
        file: the folder's adapters.
        default_name: the name of adapters that are in no group.
        known: the domains that the gate knows, by the name of their group.
        origin: the folder, for messages.
    """

    file: AdapterFile
    default_name: str
    known: Mapping[str, KnownDomain]
    origin: str

    @classmethod
    def read(cls, folder: str, name: str | None = None) -> AdapterGroups:
        """Read a folder.

        Args:
            folder: an adapter folder.
            name: a name for adapters that are in no group; None: the only domain that their gate knows.

        Raises:
            UserError: a file is missing or damaged.
        """
        file = read_adapter(folder)
        gate = DomainGate.beside(folder, file.config.base_fingerprint)
        known = {} if gate is None else dict(gate.domains)
        if isinstance(file.config.lora, LoraConfig):
            only = next(iter(known)) if len(known) == 1 else None
            name = name or only or DEFAULT_ADAPTER
            known = {} if only is None else {name: known[only]}
        return cls(file, name or DEFAULT_ADAPTER, known, folder)

    @property
    def groups(self) -> dict[str, ExpertGroup]:
        """The groups by name; adapters in no group are one, of the default name."""
        return split_groups(self.file, self.default_name)

    def extracted(self, name: str) -> AdapterGroups:
        """Return one group alone, as adapters that are in no group."""
        group = self._with(name)[name]
        config = AdapterConfig(group.config, self.file.config.base_fingerprint, self.file.config.extra)
        return replace(self, file=AdapterFile(config, group.weights), default_name=name)

    def without(self, name: str) -> AdapterGroups:
        """Return all groups but one."""
        groups = self._with(name)
        del groups[name]
        if not groups:
            raise UserError(f"{self.origin}: '{name}' is its only group; without it nothing is left", "groups.last")
        return self._of(groups)

    def with_pruned(self, name: str, keep: int, scores: dict[str, Tensor] | None = None) -> AdapterGroups:
        """Return all groups, one of them with fewer experts (:func:`~src.lora.pruning.pruned`)."""
        groups = self._with(name)
        groups[name] = pruned(groups[name], keep, scores)
        return self._of(groups)

    def with_merged(self, names: Sequence[str], into: str) -> AdapterGroups:
        """Return all groups, some of them merged into one (:func:`~src.lora.merging.merge_groups`)."""
        groups = self._with(*names)
        union = merge_groups([groups.pop(name) for name in names])
        check_name(into)
        if into in groups:
            raise UserError(f"{self.origin}: there is a group '{into}' already", "groups.name-taken")
        groups[into] = union
        return self._of(groups)

    def save(self, output: str) -> None:
        """Write a folder, and in it a domain gate of those groups whose domains are known."""
        if Path(output).exists():
            raise UserError(f"{output} exists already; name another --output, or delete it first", "groups.exists")
        write_adapter(output, self.file)
        gate = DomainGate(self.file.config.base_fingerprint)
        gate.domains.update({name: self.known[name] for name in self.groups if name in self.known})
        if gate.domains:
            gate.save(output)

    def _with(self, *needed: str) -> dict[str, ExpertGroup]:
        """Return the groups by name, of which some must be there."""
        groups = self.groups
        for name in needed:
            if name not in groups:
                raise UserError(
                    f"{self.origin}: no expert group '{name}'; it holds {', '.join(groups)}", "groups.unknown"
                )
            if needed.count(name) > 1:
                raise UserError(f"the group '{name}' is named twice", "groups.named-twice")
        return groups

    def _of(self, groups: dict[str, ExpertGroup]) -> AdapterGroups:
        config = self.file.config
        return replace(self, file=pack_groups(groups, config.base_fingerprint, config.extra))


def join_folders(parts: Sequence[AdapterGroups]) -> AdapterGroups:
    """Return the groups of several folders of the same base as those of one.

    Raises:
        UserError: as :func:`~src.lora.adapter_io.join_adapters`.
    """
    file = join_adapters([(part.default_name, part.file) for part in parts])
    known = {name: domain for part in parts for name, domain in part.known.items()}
    return AdapterGroups(file, DEFAULT_ADAPTER, known, ", ".join(part.origin for part in parts))


def read_utilization(path: Path, name: str) -> dict[str, Tensor]:
    """Return each layer's utilization of a group's experts, as the command analyze-experts measured it.

    Raises:
        UserError: the file cannot be read, or does not hold the group.
    """
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))["groups"]
        if name not in measured:
            raise UserError(
                f"{path}: the use of '{name}' was not measured; it holds {', '.join(measured)}", "groups.not-measured"
            )
        return {layer: torch.tensor(use_E) for layer, use_E in _mean_utilization(measured[name]).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a use.json of {PROGRAM} analyze-experts: {error}", "groups.use-file") from None


def _mean_utilization(group: dict[str, Any]) -> dict[str, Any]:
    """Return each layer's numbers, under the key of today or of earlier versions."""
    found: dict[str, Any] = group["mean_utilization"] if "mean_utilization" in group else group["mean_use"]
    return found
