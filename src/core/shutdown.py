"""Signals that end a run: the step at hand is finished and saved first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any

from .errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """Keeps SIGINT and SIGTERM from ending the process at once, while its block runs.

    A signal is remembered for :meth:`check`, at a place where everything is in order. After a first SIGINT the next one
    aborts at once, as it would outside the block. In another thread than the main one signals are left as they are.

    Args:
        tells: whether to say that a signal has come.
    """

    def __init__(self, tells: bool = True) -> None:
        self.tells = tells
        self.number: int | None = None
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
        if self._interruptible:
            raise Stopped(number)
        if not self.tells:
            return
        again = "; another Ctrl-C aborts at once" if number == signal.SIGINT else ""
        told = f"\n{signal.Signals(number).name}: finishing the step and saving it{again}\n"
        os.write(2, told.encode())  # print may have been interrupted, and must not be entered again

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """For work that changes nothing that must be kept: a signal raises :class:`Stopped` in the midst of it."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False


def has_ended(processes: Iterable[BaseProcess]) -> bool:
    """Whether one of some processes has, now or in the next moment: what it breaks may be seen before its end."""
    sentinels = [process.sentinel for process in processes]
    try:
        return bool(sentinels and wait(sentinels, timeout=1))
    except RuntimeError:  # torch raises it wherever the main thread is when a loader's end is told to it
        return True


def leave_signals_to_the_parent(_worker: int) -> None:
    """In a loader process: Ctrl-C reaches it too, but the trainer still needs its batches, and ends it when done."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
