"""What every command line of the project shares: the error manners and the ``--set`` option."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from src.errors import Stopped, UserError


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar that is not drawn where nobody watches (no terminal)."""
    return tqdm(iterable, disable=None, mininterval=1, dynamic_ncols=True, **options)


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends with an example."""
    arguments = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return arguments


def add_config_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--set``, which every command that reads the YAML takes."""
    arguments.add_argument(
        "--config", required=True, metavar="YAML", help="the run's YAML, such as src/configs/mope.yaml"
    )
    add_override_argument(arguments)


def add_override_argument(arguments: argparse.ArgumentParser) -> None:
    """Add ``--set``, on its own for commands that choose the YAML themselves."""
    arguments.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set any value of the YAML, such as training.learning_rate=5e-4 (may be repeated)",
    )


def add_skip_bad(arguments: argparse.ArgumentParser) -> None:
    """Add ``--skip-bad``, short for ``--set dataset.skip_bad=true``, for commands that read data sets."""
    arguments.add_argument(
        "--skip-bad",
        dest="overrides",
        action="append_const",
        const="dataset.skip_bad=true",
        help="leave damaged entries of the data out, listed in the run's skipped.json, instead of stopping",
    )


def run(main: Callable[[argparse.Namespace], int | None], arguments: argparse.ArgumentParser) -> None:
    """Parse the command line, call ``main`` and exit: 0, 2 for a :class:`UserError`, 128 + a signal's number for one.

    Ctrl-C is such a signal, which makes 130; SIGTERM makes 143.
    """
    namespace = arguments.parse_args()
    try:
        status = main(namespace)
    except UserError as error:
        if namespace.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)
