"""Signals that end a run, after the current step is finished and saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any

from .errors import Stopped

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
"""Ctrl-C; the end of a job; a terminal that is gone; what SLURM can send some time before a job's end."""

SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class GracefulShutdown:
    """Keeps :data:`SIGNALS` from ending the process at once, while its block runs.

    A signal is remembered until :meth:`check`, which is called where nothing is half done. A second SIGINT aborts at
    once. Outside the main thread signals are left as they are. So is one that is ignored, as SIGHUP is with ``nohup``.

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
            heard = [
                number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
            ]
            self._before = {number: signal.signal(number, self._receive) for number in heard}
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
        message = f"\n{signal.Signals(number).name}: finishing the step and saving it{again}\n"
        with suppress(OSError):  # the terminal may be gone
            os.write(2, message.encode())  # print may have been interrupted, and must not be entered again

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal raise :class:`Stopped` at any moment inside a block that changes nothing to be kept."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False


def has_ended(processes: Iterable[BaseProcess]) -> bool:
    """Return whether one of some processes has ended, or does within a second.

    What breaks with a process may be seen before its end.
    """
    sentinels = [process.sentinel for process in processes]
    try:
        return bool(sentinels and wait(sentinels, timeout=1))
    except RuntimeError:  # torch raises it in the main thread when it learns that a loader has ended
        return True


def leave_signals_to_the_parent(_worker: int) -> None:
    """Ignore signals in a loader process: the trainer still needs its batches, and ends it when done."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
