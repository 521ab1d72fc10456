"""Look into adapter folders and change their expert groups: list, join, extract, remove, prune, merge."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import command

if TYPE_CHECKING:
    from ..gating.adapter_groups import AdapterGroups
    from ..lora.expert_groups import ExpertGroup


def list_folders(arguments: argparse.Namespace) -> None:
    """Print the groups in each folder."""
    from ..gating.adapter_groups import AdapterGroups

    for folder in arguments.folders:
        found = AdapterGroups.read(folder)
        print(f"{folder}: base {found.file.config.base_fingerprint[:12]}")
        for name, group in found.groups.items():
            print(f"  {name}: {describe(group)}")


def join(arguments: argparse.Namespace) -> None:
    """Write the groups of several folders into one."""
    from ..gating.adapter_groups import AdapterGroups, join_folders

    parts = []
    for text in arguments.parts:
        name, equals, folder = text.partition("=")
        named = bool(equals) and not Path(text).is_dir()
        parts.append(AdapterGroups.read(folder, name) if named else AdapterGroups.read(text))
    write(join_folders(parts), arguments.output)


def extract(arguments: argparse.Namespace) -> None:
    """Write one group as adapters that are in no group."""
    write(read(arguments.folder).extracted(arguments.name), arguments.output)


def remove(arguments: argparse.Namespace) -> None:
    """Write all groups but one."""
    write(read(arguments.folder).without(arguments.name), arguments.output)


def prune(arguments: argparse.Namespace) -> None:
    """Write all groups, one of them with fewer experts."""
    from ..gating.adapter_groups import read_utilization

    scores = None if arguments.use is None else read_utilization(Path(arguments.use), arguments.name)
    write(read(arguments.folder).with_pruned(arguments.name, arguments.keep, scores), arguments.output)


def merge(arguments: argparse.Namespace) -> None:
    """Write all groups, some of them merged into one."""
    write(read(arguments.folder).with_merged(arguments.names, arguments.into), arguments.output)


def read(folder: str) -> AdapterGroups:
    """Return the groups of a folder."""
    from ..gating.adapter_groups import AdapterGroups

    return AdapterGroups.read(folder)


def write(content: AdapterGroups, output: str) -> None:
    """Write a folder and print what is in it."""
    content.save(output)
    print(f"written: {output}")
    for name, group in content.groups.items():
        unknown = content.known and name not in content.known
        note = "; the domain gate does not know it, and never chooses it" if unknown else ""
        print(f"  {name}: {describe(group)}{note}")


def describe(group: ExpertGroup) -> str:
    """Return one line about a group: method, size, layers, parameters."""
    config = group.config
    size = f"rank {config.rank}"
    if config.method == "mope":
        null = " or null" if config.router.null_expert else ""
        size = f"{config.experts} experts × {size}, top {config.top_k}{null}, per token"
    parameters = sum(tensor.numel() for tensor in group.weights.values())
    return f"{config.method}, {size}; {len(group.layers())} layers, {parameters:,} parameters"


def main(arguments: argparse.Namespace) -> None:
    """Run the action that was asked for."""
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
