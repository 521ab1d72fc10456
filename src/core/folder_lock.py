"""A lock on a folder, held by one process at a time and gone with it, however it ends.

It is a POSIX record lock on a file in the folder. The system drops it when the process ends, killed or not. Linux hands
it on to the server of an NFS mount, so that processes on other machines see it too. Processes forked from the holder do
not hold it. Where a file system knows no locks, only a process of this machine that the file names is seen.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from . import distributed
from .errors import UserError
from .files import user_errors

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"

_held: dict[tuple[int, Path], FolderLock] = {}
"""The locks by process and resolved folder: the system would give a process the same one twice."""


class FolderLock:
    """A lock that this process holds.

    Attributes:
        path: its file.
        file: the descriptor that holds it; None once it is released.
    """

    def __init__(self, path: Path, file: int) -> None:
        self.path, self.file = path, file

    def check(self) -> None:
        """Raise UserError where another process has taken the folder over: nothing may be written there any more."""
        if not _is_at(self.file, self.path):
            raise UserError(
                f"{self.path.parent}: {_holder(self.path)} has taken this folder over, so this run stops; "
                "it has written nothing since",
                "run.taken-over",
            )

    def release(self) -> None:
        """Let go of the folder, and remove the file unless it is another's by now."""
        if _is_at(self.file, self.path):
            with suppress(OSError):
                self.path.unlink()
        os.close(self.file)


@contextmanager
def holding(folder: Path, force: bool = False) -> Iterator[FolderLock]:
    """Hold a folder's lock inside the block; where this process has it already, only look that it still does.

    Args:
        folder: made if missing.
        force: take the folder over from a process that holds it, which then stops at its next step.

    Raises:
        UserError: another process holds it, which is named, or the folder cannot be written to.
    """
    key = _key(folder)
    if key in _held:
        _held[key].check()
        yield _held[key]
        return
    made = not folder.exists()
    lock = _held[key] = _acquire(folder / LOCK_FILE, force)
    try:
        yield lock
    finally:
        del _held[key]
        lock.release()
        if made:
            with suppress(OSError):  # it holds something, as it should
                folder.rmdir()


@contextmanager
def main_process_holding(folder: Path, force: bool = False) -> Iterator[None]:
    """Hold a folder's lock in the first process of a run inside the block; all processes raise where it cannot."""
    refusal: UserError | None = None
    with ExitStack() as stack:
        if distributed.is_main_process():
            try:
                stack.enter_context(holding(folder, force))
            except UserError as error:
                refusal = error
        refusal = distributed.broadcast_object(refusal)
        if refusal is not None:
            raise refusal
        yield


def check_held(folder: Path) -> None:
    """Raise UserError where this process held a folder that another has taken over."""
    if (lock := _held.get(_key(folder))) is not None:
        lock.check()


def _key(folder: Path) -> tuple[int, Path]:
    return os.getpid(), folder.resolve()  # a forked process has the list, but not the locks


def _acquire(path: Path, force: bool) -> FolderLock:
    with user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            if not _lock(file, path):
                holder = _holder(path)
                os.close(file)
                if not force:
                    raise UserError(
                        f"{path.parent}: {holder} is at work in this folder; wait for it, choose another output_dir, "
                        "or take the folder over with --force, which stops the other run",
                        "run.locked",
                    )
                logger.warning(f"warning: --force takes {path.parent} over from {holder}, which stops at its next step")
                with suppress(FileNotFoundError):
                    path.unlink()
                continue
            if _is_at(file, path):  # else its holder ended, and removed it, just before it was locked
                break
            os.close(file)
        os.ftruncate(file, 0)
        os.write(file, json.dumps(_this_process()).encode())
        os.fsync(file)
        return FolderLock(path, file)


def _lock(file: int, path: Path) -> bool:
    """Lock an open file; returns False where another process has it."""
    try:
        if fcntl is None:
            raise OSError("this system has no record locks")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning(
            f"warning: {path}: its file system cannot lock files ({error}), so that a run on another machine would not "
            "be seen; start one run only in this folder"
        )
        return not _is_alive(_read(path))


def _this_process() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since}


def _is_alive(holder: dict[str, Any]) -> bool:
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _read(path: Path) -> dict[str, Any]:
    """Return what a lock's file says of its holder; empty where it is not readable."""
    try:
        content = json.loads(path.read_bytes()[:1000])
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(path: Path) -> str:
    found = _read(path)
    if not found:
        return "another process"
    return f"process {found.get('process')} on {found.get('host')}, which began {found.get('since')},"


def _is_at(file: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
