"""What a command shows on the screen: log messages and progress bars.

The library only logs, to the logger of its package, and draws progress bars where that logger lets ``INFO`` through.
A program that wants neither sets the logger's level; one that wants both calls :func:`show_messages`.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .errors import UserError, is_out_of_memory

PACKAGE = __name__.split(".")[0]
"""The name of the package's logger: the import package itself."""

PROGRAM = "python -m src" if PACKAGE == "src" else "sam2-mope"
"""How a user calls the project's commands: in a clone, or installed."""

_BREAK_IN_NAME = re.compile(r"\r?\n(?!  )")

PLAIN_SECONDS = 30
"""Seconds between two lines of progress where there is no terminal."""


class _AboveBars(logging.Handler):
    """Writes messages to standard output, above the progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record))
        except Exception:
            self.handleError(record)


def show_messages(quiet: bool = False) -> None:
    """Show the package's messages on standard output; ``quiet``: only errors, and no progress bars."""
    logger = logging.getLogger(PACKAGE)
    if not any(isinstance(handler, _AboveBars) for handler in logger.handlers):
        logger.addHandler(_AboveBars())
    logger.propagate = False  # packages in use give the root logger a handler, which would show messages twice
    logger.setLevel(logging.ERROR if quiet else logging.INFO)


def hide_messages() -> None:
    """Let only errors of the package's logger through, as all processes of a run but the main one do."""
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)


def is_quiet() -> bool:
    """Return whether messages and progress bars are hidden."""
    return not logging.getLogger(PACKAGE).isEnabledFor(logging.INFO)


class _Lines(tqdm):  # type: ignore[type-arg]  # tqdm takes a type for checkers alone
    """Progress in plain lines, one now and then, for a file or a pipe."""

    def __init__(self, iterable: Iterable[Any] | None, **options: Any) -> None:
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


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """Return a progress bar: a line now and then where there is no terminal, nothing where messages are hidden."""
    if is_quiet():
        return tqdm(iterable, disable=True, **options)
    if not sys.stderr.isatty():
        return _Lines(iterable, **options)
    return tqdm(iterable, mininterval=1, dynamic_ncols=True, **options)


def format_error(error: Exception) -> str:
    """Return an error as one line, with what to do; below it, indented, what it lists.

    A line break in a name is no end of the line: it is escaped.
    """
    if isinstance(error, UserError):
        return _BREAK_IN_NAME.sub("\\\\n", str(error))
    kind, text = type(error).__name__, " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"memory ran out ({kind}); {PROGRAM} dry-run --config YAML says which settings make a run fit"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{kind}: {text} ({Path(place.filename).name}, line {place.lineno}); --debug shows the traceback"
