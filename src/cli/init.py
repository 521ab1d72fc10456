"""Look at the data in a folder and write a YAML that suits them and this machine."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from ..core.console import PROGRAM
from . import command

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> None:
    """Write the YAML and print its name."""
    write_config(arguments.folder, arguments.output, arguments.mask_threshold)


def write_config(folder: str, output: str | None, mask_threshold: float | None = None) -> None:
    """Write a YAML for the data in a folder; its name is the folder's where ``output`` is None."""
    logger.info(f"looking at {folder}")  # what comes next takes seconds to import
    from ..train.init_config import write_suggestion

    path = Path(output or f"{Path(os.path.abspath(folder)).name}.yaml")
    write_suggestion(Path(folder), path, mask_threshold)
    print(f"written: {path}; next: {PROGRAM} dry-run --config {path}")


def share(text: str) -> float:
    """Return a number between 0 and 1."""
    value = float(text)  # whose ValueError argparse words
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1, such as 0.5")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope init path/to/data --output mine.yaml")
    parser.add_argument("folder", metavar="FOLDER", help="where the images or videos and their annotations are")
    parser.add_argument("--output", metavar="YAML", help="the file to write (default: FOLDER's name.yaml)")
    add_mask_threshold(parser)
    return parser


def add_mask_threshold(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Add ``--mask-threshold``; ``of`` begins its help."""
    parser.add_argument(
        "--mask-threshold", type=share, metavar="SHARE",
        help=f"{of}masks are black and white, JPEGs too: brighter than this share of white is the object",
    )  # fmt: skip
