"""What every command shares: how errors are reported, and the options ``--config`` and ``--set``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from ..core.console import PROGRAM, format_error, show_messages
from ..core.errors import Stopped, UserError
from ..core.streams import lasting_streams


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return an argument parser whose help ends with an example."""
    arguments = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example.replace('sam2-mope', PROGRAM)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--quiet", action="store_true", help="say nothing but results and errors")
    arguments.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return arguments


def add_config_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--set``, which every command that reads the YAML takes."""
    add_config_argument(arguments, required=True)
    add_override_argument(arguments)


def add_config_argument(arguments: argparse._ActionsContainer, required: bool = False) -> None:
    """Add ``--config`` alone, for a command that can do without it, or to options that exclude each other."""
    arguments.add_argument(
        "--config", required=required, metavar="YAML", help="the run's YAML, such as src/configs/mope.yaml"
    )


def add_override_argument(arguments: argparse.ArgumentParser) -> None:
    """Add ``--set`` alone, for commands that choose the YAML themselves."""
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


def run(
    main: Callable[[argparse.Namespace], int | None],
    arguments: argparse.ArgumentParser,
    argv: list[str] | None = None,
) -> None:
    """Parse the command line, call ``main`` and exit.

    The exit status is what ``main`` returns, 0 for None. It is 2 for a :class:`UserError` and 1 for any other error.
    For a signal it is 128 + its number: 130 for Ctrl-C, 143 for SIGTERM. An error is one line; ``--debug`` shows its
    traceback and its code, too.

    Args:
        main: the command.
        arguments: its parser.
        argv: the words of the command line; None: those of the process.
    """
    with lasting_streams():
        namespace = arguments.parse_args(argv)
        show_messages(namespace.quiet)
        sys.exit(_status(main, namespace))


def _status(main: Callable[[argparse.Namespace], int | None], namespace: argparse.Namespace) -> int:
    """Call a command, show its error, and return its exit status."""
    try:
        return main(namespace) or 0
    except Stopped as stop:
        if _reports(stop):
            print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except Exception as raised:
        error = _user_error(raised)
        if namespace.debug:
            traceback.print_exc()
        if _reports(error):
            code = f" [{error.code}]" if namespace.debug and isinstance(error, UserError) else ""
            print(f"error: {format_error(error)}{code}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def _user_error(error: Exception) -> Exception:
    """Return what the system refuses about a path as the UserError that it is; any other error as it is."""
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error.filename, int):
        name = os.fsdecode(error.filename)
        return UserError(
            f"{name}: {error.strerror or error}; see that the path is right and may be used", "file.system"
        )
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return UserError("a path holds the character NUL, which no file's name has; write it without", "file.nul")
    return error


def _reports(error: BaseException) -> bool:
    """Return whether this process shows an error: of several that do the same work, one is enough."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from ..core import distributed

    return distributed.should_report(error)
