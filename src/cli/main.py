"""The console command ``sam2-mope`` and its sub-commands; ``python -m src`` in a clone is the same."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from ..core.console import PROGRAM
from . import command

COMMANDS = {
    "train": "train what a YAML describes, then print what was gained and what was forgotten",
    "evaluate": "score the base and the adapted model side by side",
    "predict": "masks of what is pointed at, in an image, a folder of frames or a video",
    "export": "write what was trained in a form that other tools read",
    "init": "look at the data in a folder and write a YAML that suits them",
    "dry-run": "rehearse a run: its memory and time, and what would make it fit",
    "validate-data": "check every data set of a run",
    "groups": "list and change the expert groups in adapter folders",
    "push": "put an adapter on the Hugging Face hub",
    "analyze-experts": "how the experts of an adapter are used, and which can be pruned",
    "demo": "a page to try an adapter on",
}
"""Sub-commands and what each does; ``name`` lives in the module ``name`` of this package."""


def main(name: str | None = None, argv: list[str] | None = None) -> None:
    """Run a sub-command and exit with its status.

    Args:
        name: the sub-command; None: the first word of the command line.
        argv: the words after it; None: those of the process.
    """
    words = sys.argv[1:] if argv is None else argv
    if name is None:
        name, words = _choose(words)
    module = import_module(f".{name.replace('-', '_')}", __package__)
    parser = module.build_parser()
    parser.prog = f"{PROGRAM} {name}"
    command.run(module.main, parser, words)


def _choose(words: list[str]) -> tuple[str, list[str]]:
    """Return the sub-command that the command line begins with, and the words after it."""
    lines = "\n".join(f"  {name:16} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Fine-tune Segment Anything models with small adapters, and measure what they forget.",
        epilog=f"commands:\n{lines}\n\n{PROGRAM} COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    return parser.parse_args(words[:1]).command, words[1:]
