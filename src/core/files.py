"""Writing files whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and put it in place; an earlier file stays whole.

    Args:
        path: the file to write.
        write: called with the temporary file's path.
        keep: path that an earlier file is moved to; None: it is replaced. At every moment one of the two is whole.

    Raises:
        UserError: the disk is full or the folder cannot be written to; nothing is left of the temporary file.
    """
    temporary = _beside(path)
    try:
        with user_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            _sync_file(temporary)
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it is not there
            temporary.unlink()


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, sync its files, and put it in place.

    Args:
        path: the folder to write, which does not exist.
        write: called with the temporary folder's path.

    Raises:
        UserError: as :func:`write_atomically`; nothing is left of the temporary folder.
    """
    temporary = _beside(path)
    try:
        with user_errors(path):
            temporary.mkdir(parents=True)
            write(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync_file(file)
            temporary.rename(path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with :func:`write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def refuse_irregular(path: str | Path) -> None:
    """Raise UserError for what is there but is neither file nor folder: reading a pipe may wait for ever.

    A path that leads nowhere is left to who opens it.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path}: not a file but a pipe, a socket or a device; put a file there", "file.not-regular")


def refuse_unreadable(error: OSError) -> None:
    """Raise UserError for a folder that cannot be listed, which ``os.walk`` passes over unless it is given this."""
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}", "file.unreadable") from None


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, where the file's name comes from data.

    Raises:
        UserError: it would be outside the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"'{name}' would be written outside {folder}; rename the video", "files.outside")
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that processes killed while writing have left."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def user_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses, such as writing to a full disk, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason_of_system(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written: {reason}", "files.not-written") from None


def _sync_file(path: Path) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make sure that a renaming outlasts a power cut."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason_of_system(error: BaseException | None) -> str | None:
    """Return why the operating system refused; None where an error has another cause.

    torch and safetensors raise errors of their own where writing fails. The system's error is the cause of torch's; in
    that of safetensors it is part of the text.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            return os.strerror(int(number[1]))
        error = error.__cause__ or error.__context__
    return None
