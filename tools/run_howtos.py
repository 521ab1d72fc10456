"""Run the commands of the how-tos as they stand on the pages, each page in a copy of the project of its own.

A page's commands are its blocks of bash, and of Python, in order; blocks of other kinds show output, or what needs a
GPU or the net. Data sets are what pages call datasets/NAME: links to the folders of those names in --data, or where
there is none, stand-ins of synthetic pictures that are laid out alike.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from src import cli
from src.core.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "howto"

QUICK = (
    "training.max_epochs=1", "training.clips_per_epoch=2", "training.batch_size=2", "training.num_workers=0",
    "training.monitor_clips=0", "dataset.clip.frames=2", "lora.experts=3",
    "evaluation.max_images=1", "evaluation.max_objects=1", "evaluation.frames=2", "evaluation.source_clips=1",
    "evaluation.overlays=1",
)  # fmt: skip
"""What --quick appends to commands that train, evaluate or predict."""

_FENCE = re.compile(r"```(\w*)\s*")
_TAKES_SETTINGS = re.compile(
    r"python (?:(?:train|evaluate)\.py|-m src (?:train|evaluate|predict|validate-data))\b.*\s--config\s"
)
_FIRST_OPERATOR = re.compile(r"(?s)(?:\$\([^)]*\)|(?!\$\().)*?(\s(?:\|\||&&|[|>;&]))")  # outside $(…)
_DATA = re.compile(r"\bdatasets/(\w+)")


@dataclass(frozen=True)
class Command:
    """A command of a page: a line of bash, with those it goes on in, or a whole block of Python."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


Run = Callable[[Command, Path], int]
"""Runs a command in a folder, and returns its exit status."""


def commands_of(page: Path) -> list[Command]:
    """A page's commands in their order. Raises UserError where a block is not closed."""
    commands, block, language, began = [], [], None, 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            block.append(line)
        elif language is None:
            block, language, began = [], fence[1], number
        else:
            commands += list(_split(page, began + 1, language, block))
            language = None
    if language is not None:
        raise UserError(f"{page}:{began}: this block is not closed")
    return commands


def _split(page: Path, first: int, language: str, block: list[str]) -> Iterator[Command]:
    if language == "python":
        yield Command(page, first, language, "\n".join(block) + "\n")
    elif language == "bash":
        lines: list[str] = []
        for number, line in enumerate(block, first):
            lines.append(line)
            if not line.endswith("\\"):
                text = "\n".join(lines)
                if text.strip():
                    yield Command(page, number - len(lines) + 1, language, text)
                lines = []


def shortened(command: Command) -> Command:
    """The command with :data:`QUICK` as its last settings, before any pipe or ``||``; others as they are."""
    if command.language != "bash" or not _TAKES_SETTINGS.search(command.text.replace("\\\n", "")):
        return command
    operator = _FIRST_OPERATOR.match(command.text)
    end = len(command.text) if operator is None else operator.start(1)
    settings = "".join(f" --set {setting}" for setting in QUICK)
    return replace(command, text=command.text[:end] + settings + command.text[end:])


def in_shell(command: Command, folder: Path) -> int:
    """Run a command in a process of its own; ``python`` is the one that runs this script."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": paths, "PYTHONUNBUFFERED": "1"}
    if command.language == "python":
        arguments, read = [sys.executable, "-"], command.text
    else:
        arguments, read = ["bash", "-c", command.text], None
    return subprocess.run(arguments, cwd=folder, env=environment, input=read, text=True).returncode


def run_page(page: Path, folder: Path, data: Path | None, quick: bool, run: Run = in_shell) -> None:
    """Copy the project into a folder, put the page's data sets there, and run its commands.

    Args:
        page: of ``docs/howto``.
        folder: to work in; it must not exist, or be empty.
        data: the folder of the folders called after data sets; None, or none there: synthetic stand-ins.
        quick: whether to shorten the commands (:func:`shortened`).
        run: how to run one.

    Raises:
        UserError: a command fails: page, line and exit status are named.
    """
    commands = commands_of(page)
    copy_project(folder)
    for name in dict.fromkeys(_DATA.findall("\n".join(command.text for command in commands))):
        put_data(name, folder / "datasets" / name, data)
    for command in commands:
        asked = shortened(command) if quick else command
        print(f"\n{command}: {asked.text}")
        if status := run(asked, folder):
            raise UserError(f"{command}: exit status {status} of: {asked.text}")


def copy_project(folder: Path) -> None:
    """Copy what a clone of the project holds, but for tests and what runs have written."""
    skipped = shutil.ignore_patterns(".*", "__pycache__", "tests", "experiments", "datasets", "*.pt")
    shutil.copytree(ROOT, folder, ignore=skipped, dirs_exist_ok=True)


def put_data(name: str, place: Path, data: Path | None) -> None:
    """Put a data set in its place; one that neither ``data`` nor the stand-ins have is for the page to make."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if data is not None and (data / name).is_dir():
        place.symlink_to((data / name).resolve(), target_is_directory=True)
    elif name in STAND_INS:
        if data is not None:
            print(f"{data} has no folder {name}: synthetic pictures stand in for it")
        STAND_INS[name](place)


def stand_in_flakes(place: Path) -> None:
    """Stills as Roboflow exports them."""
    from src.data.synthetic import FLAKES, make_videos
    from src.data.writers import write_coco

    for split, count, seed in (("train", 6, 0), ("valid", 2, 100), ("test", 2, 200)):
        write_coco(place / split, make_videos(FLAKES, count, seed, frames=1, side=128))


def stand_in_cells(place: Path) -> None:
    """Twenty stills in two folders, PNG, called set1, set2, …"""
    from src.data.records import DataSet
    from src.data.synthetic import CELLS, make_videos
    from src.data.writers import write_coco

    videos = [replace(video, video_id=f"set{i}") for i, video in enumerate(make_videos(CELLS, 50, 0, 1, 128).videos, 1)]
    for split, chosen in (("train", videos[:15]), ("val", videos[45:])):
        write_coco(place / split, DataSet(split, chosen), quality=None)


def stand_in_vocalfolds(place: Path) -> None:
    """One video of 32 frames, all labelled: frames below ``img``, masks below ``annot``."""
    from src.data.records import DataSet
    from src.data.synthetic import TISSUE, make_video
    from src.data.writers import write_davis

    video = replace(make_video(TISSUE, 0, frames=32, side=128), video_id="patient1/seq1")
    write_davis(place, DataSet("vocalfolds", [video]))
    for written, called in (("JPEGImages", "img"), ("Annotations", "annot")):
        (place / written).rename(place / called)
        for index, frame in enumerate(sorted((place / called / video.video_id).iterdir()), 1):
            frame.rename(frame.with_stem(f"{index:04d}"))


STAND_INS: dict[str, Callable[[Path], None]] = {
    "flakes": stand_in_flakes,
    "cells": stand_in_cells,
    "vocalfolds": stand_in_vocalfolds,
}


def pages_named(names: list[str]) -> list[Path]:
    """The pages of these names, or all. Raises UserError where there is none of a name."""
    there = {page.stem: page for page in sorted(PAGES.glob("*.md")) if page.stem != "README"}
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"no how-to is called {', '.join(unknown)}; there are {', '.join(there)}")
    return [there[name] for name in names] or list(there.values())


def main(arguments: argparse.Namespace) -> None:
    data = None if arguments.data is None else Path(arguments.data)
    if data is not None and not data.is_dir():
        raise UserError(f"{data}: no such folder of data sets")
    pages = pages_named(arguments.pages)
    work = tempfile.TemporaryDirectory() if arguments.work is None else nullcontext(arguments.work)
    with work as folder:
        for page in pages:
            place = Path(folder) / page.stem
            if place.exists():
                raise UserError(f"{place} exists already; name another folder with --work, or delete it")
            run_page(page, place, data, arguments.quick)
            print(f"{page.stem}: all {len(commands_of(page))} commands ran")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m tools.run_howtos --quick few_images take_home")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names of pages, such as few_images (default: all)")
    parser.add_argument("--data", metavar="FOLDER", help="has a folder for each data set, called as on the pages")
    parser.add_argument("--quick", action="store_true", help="smallest models, shortest training, few images")
    parser.add_argument("--work", metavar="FOLDER", help="keep the copies, with what was written, in this folder")
    cli.run(main, parser)
