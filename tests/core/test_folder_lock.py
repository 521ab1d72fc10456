"""Two processes cannot hold a folder; a lock ends with its process, and can be taken over."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.core import folder_lock
from src.core.folder_lock import LOCK_FILE, check_held, holding
from tests.errors import refuses


class Holder:
    """A process that holds a folder until it is asked to do something."""

    def __init__(self, folder: Path) -> None:
        ready, self.asked = os.pipe(), os.pipe()
        self.process = os.fork()
        if not self.process:
            status = 1
            try:
                os.close(self.asked[1])
                with holding(folder):
                    os.write(ready[1], b"1")
                    os.read(self.asked[0], 1)
                    with refuses("run.taken-over"):
                        check_held(folder)
                status = 0
            finally:
                os._exit(status)
        os.close(self.asked[0])
        assert os.read(ready[0], 1)

    def end(self) -> int:
        """Let it look whether the folder was taken over; returns 0 if so."""
        os.close(self.asked[1])
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.asked[1])


@pytest.fixture
def hold() -> Iterator[Callable[[Path], Holder]]:
    yield Holder


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path, hold):
    holder = hold(tmp_path)
    with refuses("run.locked", str(tmp_path), f"process {holder.process} on {socket.gethostname()}", "--force"):
        holding(tmp_path).__enter__()
    holder.kill()


def test_the_lock_of_a_killed_process_is_gone(tmp_path, hold):
    hold(tmp_path).kill()
    assert (tmp_path / LOCK_FILE).exists()
    with holding(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_over_is_no_longer_the_firsts(tmp_path, hold, capsys):
    holder = hold(tmp_path)
    with holding(tmp_path, force=True):
        assert f"process {holder.process} on" in capsys.readouterr().out
        assert holder.end() == 0, "the first run did not see that it has lost its folder"
        check_held(tmp_path)
        assert (tmp_path / LOCK_FILE).exists(), "the first run must not remove what is another's"


def test_a_process_may_hold_a_folder_twice(tmp_path):
    with holding(tmp_path / "run"):
        with holding(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run").exists(), "a folder in which nothing was written is left"


def test_without_locks_a_living_process_of_this_machine_is_seen(tmp_path, hold, monkeypatch, capsys):
    def cannot(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "lockf", cannot)
    holder = hold(tmp_path)
    with refuses("run.locked", f"process {holder.process}"):
        holding(tmp_path).__enter__()
    assert "cannot lock files" in capsys.readouterr().out
    holder.kill()
    with holding(tmp_path):
        pass


def test_a_file_that_is_no_lock_is_no_crash(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with refuses("files.not-written", LOCK_FILE):
        holding(tmp_path).__enter__()
