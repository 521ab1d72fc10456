"""Rehearse a run: build all of it, take a few steps, and report its memory, its time, and what would make it fit."""

from __future__ import annotations

import argparse
import logging

from . import command
from .objectives import extra_objectives

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> int:
    """Print what the run takes; the status is 2 where it does not fit."""
    from ..config import load_config

    config = load_config(arguments.config, arguments.overrides)
    logger.info(f"{arguments.config}: read; loading {config.model.name}")  # takes seconds
    from ..train.dry_run import dry_run

    return 0 if dry_run(config, print, objectives=extra_objectives(config)) else 2


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope dry-run --config mine.yaml")
    command.add_config_arguments(parser)
    command.add_skip_bad(parser)
    return parser
