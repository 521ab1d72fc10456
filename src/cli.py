"""What every command line of the project shares: the error manners and the ``--set`` option."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.errors import Stopped, UserError

_quiet = False
_may_tell: Callable[[BaseException], bool] = lambda error: True  # noqa: E731


def be_quiet(quiet: bool = True) -> None:
    """Say nothing on the way from now on: no progress, no lines of :func:`say`; results and errors are still told."""
    global _quiet
    _quiet = quiet


def let_speak(may_tell: Callable[[BaseException], bool]) -> None:
    """Tell errors only where this says so: of several processes that do the same work one is enough."""
    global _may_tell
    _may_tell = may_tell


def is_first_launched(error: BaseException) -> bool:
    """For :func:`let_speak`, as long as processes that a launcher has started know nothing of each other."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def say(message: str) -> None:
    """A line, or several, on what is being done; above the progress bar where there is one."""
    if not _quiet:
        tqdm.write(message)


def is_quiet() -> bool:
    """Whether nothing is to be said on the way."""
    return _quiet


PLAIN_SECONDS = 30
"""Between two lines of progress where there is no terminal."""


class _Lines(tqdm):
    """Progress in plain lines, one now and then, for a file or a pipe; what is done sooner gets none."""

    def __init__(self, iterable: Iterable | None, **options: Any) -> None:
        super().__init__(iterable, **options, mininterval=PLAIN_SECONDS, delay=PLAIN_SECONDS, ascii=True, ncols=0)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        text = str(self) if msg is None else msg
        if text:
            self.fp.write(f"{text}\n")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Lines stay."""

    def close(self) -> None:
        self.leave = False  # whose last line the bar would end with another line break
        super().close()


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A progress bar; where nobody watches (no terminal) a line now and then, and with ``--quiet`` nothing."""
    if _quiet:
        return tqdm(iterable, disable=True, **options)
    if not sys.stderr.isatty():
        return _Lines(iterable, **options)
    return tqdm(iterable, mininterval=1, dynamic_ncols=True, **options)


def parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends with an example."""
    arguments = argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
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
    """Add ``--config``, on its own for a command that can do without, or a group of options of which it takes one."""
    arguments.add_argument(
        "--config", required=required, metavar="YAML", help="the run's YAML, such as src/configs/mope.yaml"
    )


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
    """Parse the command line, call ``main`` and exit.

    Exit status: what ``main`` returns, 0 for None; 2 for a :class:`UserError`, 1 for any other error, and for a signal
    128 + its number: 130 for Ctrl-C, 143 for SIGTERM. Errors are told in one line, after a traceback with ``--debug``.
    """
    namespace = arguments.parse_args()
    be_quiet(namespace.quiet)
    try:
        status = main(namespace)
        sys.stdout.flush()
    except Stopped as stop:
        if _may_tell(stop):
            print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output wants no more of it, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if namespace.debug:
            traceback.print_exc()
        if _may_tell(error):
            print(f"error: {told(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    sys.exit(status or 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, of the machine or of its GPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def told(error: Exception) -> str:
    """An error in one line, with what to do."""
    if isinstance(error, UserError):
        return str(error)
    kind, text = type(error).__name__, " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"memory ran out ({kind}); python train.py --config YAML --dry-run says which settings make a run fit"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{kind}: {text} ({Path(place.filename).name}, line {place.lineno}); --debug shows the traceback"
