"""Errors that a user can put right, and stops that a user asked for."""

from __future__ import annotations

import signal


class UserError(Exception):
    """Something the user can put right: a config value, a file, an argument.

    The message is what the user reads, without a traceback: it names the key, file or annotation and says what to
    do. Every command turns it into exit status 2 (:func:`src.cli.command.run`).

    Args:
        message: for people; its wording may change.
        code: for programs and tests, such as ``resume.other-base``; it stays.
    """

    def __init__(self, message: str, code: str = "error") -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """A signal asked to stop, and work was saved first. Every command then exits with 128 + the signal's number.

    Args:
        number: number of the signal.
        where: what was reached and saved, and how to go on.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.number, self.where = number, where

    @property
    def status(self) -> int:
        return 128 + self.number


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or of its GPU ran out."""
    words = (
        "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
        "status_alloc_failed",
    )  # fmt: skip
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
