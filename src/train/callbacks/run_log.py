"""``training.log``: what is logged while a run trains, with the time."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from ...core.files import user_errors
from ...core.streams import printable
from .base import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer

LOG_FILE = "training.log"

_ROOM = logging.getLogger(__package__.rpartition(".")[0])
"""The logger of training: of all modules in the room that this one is in."""


class _Printable(logging.Formatter):
    """Escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's line."""
        return printable(super().format(record))


class _LogFile(logging.FileHandler):
    """A file that a run goes on without where the disk is full; it says so once."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say why a line could not be written."""
        if not self.failed:
            self.failed = True
            sys.stderr.write(f"warning: {self.baseFilename}: cannot be written: {sys.exc_info()[1]}\n")

    def close(self) -> None:
        """Close the file, whether or not its last lines can be written."""
        with suppress(OSError):
            super().close()


class _Forward(logging.Handler):
    """Hands records on to the loggers above as far as their levels let them through."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on."""
        above = _ROOM.parent
        if above is not None and above.isEnabledFor(record.levelno):
            above.handle(record)


class RunLog(Callback):
    """Writes what training logs into ``training.log``, whatever levels and handlers the program has set."""

    main_process_only: ClassVar[bool] = True

    def __init__(self) -> None:
        self._handlers: list[logging.Handler] = []
        self._before: tuple[int, bool] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the file, after what earlier runs wrote."""
        folder = trainer.folder / "logs"
        with user_errors(folder / LOG_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            file = _LogFile(folder / LOG_FILE, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(_Printable("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._handlers, self._before = [file, _Forward()], (_ROOM.level, _ROOM.propagate)
        for handler in self._handlers:
            _ROOM.addHandler(handler)
        _ROOM.setLevel(logging.INFO)
        _ROOM.propagate = False

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        for handler in self._handlers:
            _ROOM.removeHandler(handler)
            handler.close()
        if self._before is not None:
            _ROOM.setLevel(self._before[0])
            _ROOM.propagate = self._before[1]
        self._handlers, self._before = [], None
