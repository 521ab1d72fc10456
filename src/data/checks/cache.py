"""Reports of checks in files, valid until a checked file changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import PIL

from ...config import NamedSplit
from ...core.files import refuse_unreadable
from ..options import LoadOptions
from ..records import Source

logger = logging.getLogger(__name__)

CHECKS_FOLDER = "data_checks"
"""Folder of a run with the reports on its data sets."""

CHECK_VERSION = 12
"""Part of every cached report's key. Raise it when the same files may give other issues, records or areas than before:
after a change of a reader in ``formats``, of ``decode``, or of what a check looks at or reports."""


def cache_file(place: NamedSplit, options: LoadOptions) -> Path:
    """Return where the report on a data set is kept: a file for everything in a config that decides what is read."""
    settings: list[Any] = [place.model_dump(), options.max_objects, options.follow_links]
    if isinstance(place.videos, str) and Path(place.videos).is_file():
        settings.append(Path(place.videos).read_text(encoding="utf-8", errors="replace"))
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", place.name)
    return options.output_dir / CHECKS_FOLDER / f"{name}-{key}.json"


def state_of_files(place: NamedSplit, options: LoadOptions) -> str:
    """Return a hash of the files of a data set as they were when it was checked for a run."""
    entry = json.loads(cache_file(place, options).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps([entry["content"], entry["stamps"]]).encode()).hexdigest()


def read_entry(cache: Path, content: str, decode: bool) -> dict[str, Any] | None:
    """Return the report in a file as plain data; None unless it is of the same files, none of them changed.

    Args:
        cache: the file.
        content: what :func:`content_hash` says of the data set now.
        decode: whether a report for which no frame was decoded will not do.
    """
    try:
        text = cache.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    try:
        entry = json.loads(text)
        sound = entry["checksum"] == _checksum(entry["content"], entry["stamps"], entry["report"])
    except (ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        logger.warning(f"warning: {cache}: damaged, or of an earlier version, so the data are checked again")
        return None
    if entry["content"] != content or (decode and not entry["report"]["decoded"]):
        return None
    if any(stamp != _stamp(path) for path, stamp in entry["stamps"].items()):
        return None
    report: dict[str, Any] = entry["report"]
    return report


def make_entry(content: str, paths: Iterable[str], report: dict[str, Any]) -> dict[str, Any]:
    """Return what is cached: a report, and the state of the files it is about.

    Args:
        content: hash of the data set, by :func:`content_hash`.
        paths: further files whose change makes the report stale.
        report: as plain data.
    """
    stamps = {path: _stamp(path) for path in sorted(paths)}
    return {"content": content, "stamps": stamps, "report": report, "checksum": _checksum(content, stamps, report)}


def _checksum(content: str, stamps: dict[str, Any], report: dict[str, Any]) -> str:
    """Return a hash of what is cached, the same before it was written and after it was read."""
    return hashlib.sha256(json.dumps([content, stamps, report]).encode()).hexdigest()


def content_hash(source: Source) -> str:
    """Return a hash of all that decides what a check reports, but for single images and videos.

    It covers the annotation files' bytes, the stamps of all files in the source's folders, and the reader. It also
    covers the versions of the libraries that decode, and ``CHECK_VERSION``.
    """
    reader = f"{type(source).__module__.rpartition('.')[2]}.{type(source).__qualname__}"
    digest = hashlib.sha256(f"{CHECK_VERSION} {reader} Pillow {PIL.__version__} av {av.__version__}".encode())
    for path in source.files:
        digest.update(f"{path}\0".encode(errors="replace"))
        if path.is_dir():
            for folder, folders, names in os.walk(path, onerror=refuse_unreadable):
                folders.sort()
                lines = [f"{folder}/{name} {_stamp(os.path.join(folder, name))}\n" for name in sorted(names)]
                digest.update("".join(lines).encode(errors="replace"))
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp(path: str | Path) -> list[int] | None:
    """Return a file's size in bytes and modification time in nanoseconds; None without a file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]
