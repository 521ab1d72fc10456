"""Standard streams that a program outlives, and text that does nothing to a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_BAR_MOVES = re.compile(r"(\r|\n|\x1b\[A)*")
"""What progress bars write to move between lines, each by itself."""


def printable(text: str) -> str:
    """Return text whose control characters are escaped, line breaks and tabs excepted.

    A name from somebody's data could else move the cursor, change colours, or pose as another line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return text with all control characters escaped, line breaks and tabs too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def in_markdown(text: str) -> str:
    """Return text as one line that is neither a table's cell border, HTML, code nor a link in Markdown."""
    text = one_line(text)
    for mark, escaped in (("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("](", "]\\(")):
        text = text.replace(mark, escaped)
    return text


class LastingStream(io.TextIOBase):
    """A text stream that goes on where its reader or its terminal is gone, and writes control characters escaped.

    Args:
        stream: what is written to; None, as for a process that was started without: nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write; what an encoding does not have is escaped, and what cannot be written is dropped."""
        shown = text
        if not text.isprintable() and not _BAR_MOVES.fullmatch(text):
            shown = "\r".join(printable(part) for part in text.split("\r"))
        try:
            self._write(shown)
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def _write(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        """Write what is waiting."""
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Let what is waiting, and all that comes, go nowhere: Python flushes the stream once more when it ends."""
        if self.stream is not None:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
        self.stream = None

    def isatty(self) -> bool:
        """Return whether somebody may be looking."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # it is closed
            return False

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        return io.TextIOBase.fileno(self) if self.stream is None else self.stream.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__.get("stream"), name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let standard output and standard error be :class:`LastingStream` inside the block.

    Where the process was started without one of the standard descriptors, that becomes the null device. The next file
    that is opened would get its number otherwise, and what is written to standard error with it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LastingStream(before[0]), LastingStream(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
