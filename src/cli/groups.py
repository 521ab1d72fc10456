"""Look into adapter folders and change their expert groups: list, join, extract, remove, prune, merge."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LoraConfig
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..gating.domain_gate import DomainGate, KnownDomain
from ..lora.adapter_io import (
    AdapterConfig,
    AdapterFile,
    join_adapters,
    pack_groups,
    read_adapter,
    read_adapter_config,
    split_groups,
    write_adapter,
)
from ..lora.expert_groups import DEFAULT_ADAPTER, ExpertGroup, check_name
from ..lora.merging import merge_groups
from ..lora.pruning import pruned
from . import command


def list_folders(arguments: argparse.Namespace) -> None:
    for folder in arguments.folders:
        file = read_adapter(folder)
        print(f"{folder}: base {file.config.base_fingerprint[:12]}")
        for name, group in split_groups(file, unnamed(folder)).items():
            print(f"  {name}: {describe(group)}")


def describe(group: ExpertGroup) -> str:
    """One line about a group: method, size, layers, parameters."""
    config = group.config
    size = f"rank {config.rank}"
    if config.method == "mope":
        null = " or null" if config.router.null_expert else ""
        size = f"{config.experts} experts × {size}, top {config.top_k}{null}, per {config.router.level}"
    parameters = sum(tensor.numel() for tensor in group.weights.values())
    return f"{config.method}, {size}; {len(group.layers())} layers, {parameters:,} parameters"


def join(arguments: argparse.Namespace) -> None:
    parts: list[tuple[str, AdapterFile]] = []
    known: dict[str, KnownDomain] = {}
    for text in arguments.parts:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():
            folder, name = text, unnamed(text)
        parts.append((name, read_adapter(folder)))
        known |= known_domains(folder, parts[-1][1], name)
    write(arguments.output, join_adapters(parts), known)


def extract(arguments: argparse.Namespace) -> None:
    file, groups = read_groups(arguments.folder, [arguments.name])
    group = groups[arguments.name]
    config = AdapterConfig(group.config, file.config.base_fingerprint, file.config.extra)
    known = known_domains(arguments.folder, file, arguments.name)
    write(arguments.output, AdapterFile(config, group.weights), known, arguments.name)


def remove(arguments: argparse.Namespace) -> None:
    file, groups = read_groups(arguments.folder, [arguments.name])
    del groups[arguments.name]
    if not groups:
        raise UserError(f"{arguments.folder}: '{arguments.name}' is its only group; without it nothing is left")
    write_groups(arguments, file, groups)


def prune(arguments: argparse.Namespace) -> None:
    file, groups = read_groups(arguments.folder, [arguments.name])
    scores = None if arguments.use is None else read_use(Path(arguments.use), arguments.name)
    groups[arguments.name] = pruned(groups[arguments.name], arguments.keep, scores)
    write_groups(arguments, file, groups)


def read_use(path: Path, name: str) -> dict[str, Tensor]:
    """Per layer each expert's use in a group, from the use.json of sam2-mope analyze-experts.

    Raises:
        UserError: it cannot be read, or does not hold the group.
    """
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))["groups"]
        if name not in measured:
            raise UserError(f"{path}: the use of '{name}' was not measured; it holds {', '.join(measured)}")
        return {layer: torch.tensor(use_E) for layer, use_E in _mean_utilization(measured[name]).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a use.json of {PROGRAM} analyze-experts: {error}") from None


def _mean_utilization(group: dict[str, Any]) -> dict[str, Any]:
    """Return each layer's numbers, under the key of today or of earlier versions."""
    return group["mean_utilization"] if "mean_utilization" in group else group["mean_use"]


def merge(arguments: argparse.Namespace) -> None:
    file, groups = read_groups(arguments.folder, arguments.names)
    union = merge_groups([groups.pop(name) for name in arguments.names])
    check_name(arguments.into)
    if arguments.into in groups:
        raise UserError(f"{arguments.folder}: there is a group '{arguments.into}' already")
    groups[arguments.into] = union
    write_groups(arguments, file, groups)


def read_groups(folder: str, needed: list[str]) -> tuple[AdapterFile, dict[str, ExpertGroup]]:
    """A folder's content, and its groups by name. Raises UserError where a needed group is missing or named twice."""
    file = read_adapter(folder)
    groups = split_groups(file, unnamed(folder))
    for name in needed:
        if name not in groups:
            raise UserError(f"{folder}: no expert group '{name}'; it holds {', '.join(groups)}")
        if needed.count(name) > 1:
            raise UserError(f"the group '{name}' is named twice")
    return file, groups


def unnamed(folder: str) -> str:
    """What adapters in no group are called as one: as the only domain that their gate knows."""
    gate = DomainGate.beside(folder, read_adapter_config(folder).base_fingerprint)
    return DEFAULT_ADAPTER if gate is None or len(gate.domains) != 1 else next(iter(gate.domains))


def known_domains(folder: str, file: AdapterFile, name: str) -> dict[str, KnownDomain]:
    """What a folder's domain gate knows of its groups; adapters in no group are called ``name``."""
    gate = DomainGate.beside(folder, file.config.base_fingerprint)
    if gate is None:
        return {}
    if isinstance(file.config.lora, LoraConfig):
        domains = list(gate.domains.values())
        return {name: domains[0]} if len(domains) == 1 else {}
    return dict(gate.domains)


def write_groups(arguments: argparse.Namespace, file: AdapterFile, groups: dict[str, ExpertGroup]) -> None:
    known = known_domains(arguments.folder, file, unnamed(arguments.folder))
    write(arguments.output, pack_groups(groups, file.config.base_fingerprint, file.config.extra), known)


def write(output: str, file: AdapterFile, known: dict[str, KnownDomain], name: str = DEFAULT_ADAPTER) -> None:
    """Write a folder, and with it a domain gate of those of its groups that are known."""
    if Path(output).exists():
        raise UserError(f"{output} exists already; name another --output, or delete it first")
    write_adapter(output, file)
    print(f"written: {output}")
    gate = DomainGate(file.config.base_fingerprint)
    for group, content in split_groups(file, name).items():
        note = ""
        if group in known:
            gate.domains[group] = known[group]
        elif known:
            note = "; the domain gate does not know it, and never chooses it"
        print(f"  {group}: {describe(content)}{note}")
    if gate.domains:
        gate.save(output)


def main(arguments: argparse.Namespace) -> None:
    arguments.action(arguments)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope groups join cells=runs/cells/adapter runs/b/adapter --output joined")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="the groups in adapter folders")
    listing.add_argument("folders", nargs="+", metavar="FOLDER")
    listing.set_defaults(action=list_folders)

    joining = actions.add_parser("join", help="the groups of several adapters of the same base into one folder")
    joining.add_argument("parts", nargs="+", metavar="[NAME=]FOLDER", help="NAME is for adapters that are in no group")
    joining.set_defaults(action=join)

    extracting = actions.add_parser(
        "extract", help="one group as adapters without groups, such as for sam2-mope export"
    )
    removing = actions.add_parser("remove", help="all groups but one; the others are not changed")
    pruning = actions.add_parser("prune", help="keep a group's largest experts in each layer, or the most used")
    for action, function in ((extracting, extract), (removing, remove), (pruning, prune)):
        action.add_argument("folder", metavar="FOLDER")
        action.add_argument("name", metavar="GROUP")
        action.set_defaults(action=function)
    pruning.add_argument("--keep", type=int, required=True, metavar="N", help="experts to keep per layer")
    pruning.add_argument(
        "--use", metavar="JSON", help="keep the most used, as this use.json of sam2-mope analyze-experts measured it"
    )

    merging = actions.add_parser("merge", help="groups into one, whose experts then compete: for further training")
    merging.add_argument("folder", metavar="FOLDER")
    merging.add_argument("names", nargs="+", metavar="GROUP")
    merging.add_argument("--into", required=True, metavar="NAME", help="the new group's name")
    merging.set_defaults(action=merge)

    for action in (joining, extracting, removing, pruning, merging):
        action.add_argument("--output", required=True, metavar="FOLDER", help="the folder to write; must not exist")
    return parser
