"""Files of ``torch.save``, read without executing anything in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import UserError, is_out_of_memory

SMALL = 2**20
"""Bytes of a file that is read in any memory."""


def save_pt(content: Any, path: Path) -> None:
    """Write a file that :func:`read_pt` reads; meant for :func:`~src.core.files.write_atomically`."""
    with open(path, "wb") as file:  # given a path, torch would hide why writing failed
        torch.save(content, file)


def read_pt(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return the content of a file of ``torch.save``, on a device; nothing in it is executed.

    Raises:
        UserError: the file is damaged, or holds more than tensors, numbers, text and their containers.
    """
    try:
        _refuse_packed(path)
        content = torch.load(path, map_location=device, weights_only=True)
        if zipfile.is_zipfile(path):  # all but old files; torch does not check checksums
            with zipfile.ZipFile(path) as archive:
                flawed = archive.testzip()
                if flawed is not None:
                    raise zipfile.BadZipFile(f"the checksum of {flawed} is wrong")
        return content
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f" ({foreign[1]})" if foreign else ""
        raise UserError(
            f"{path}: refused: it holds more than tensors and numbers{found}, or is no checkpoint",
            "torch-file.foreign-content",
        ) from None
    except Exception as error:  # garbage makes the unpickler raise nearly anything
        if is_out_of_memory(error) and path.stat().st_size > SMALL:  # garbage in a small file can ask for any memory
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged or truncated ({first_line})", "torch-file.damaged") from None


def _refuse_packed(path: Path) -> None:
    """Refuse an archive that unpacks to more bytes than it has: torch compresses nothing, and checks nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > path.stat().st_size:
        raise zipfile.BadZipFile(f"it would unpack to {unpacked} bytes, more than it has")
