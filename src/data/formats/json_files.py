"""JSON files of annotations: found, recognised by their keys, and read."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files import refuse_irregular
from ..decode.images import refuse_placeholder
from .parsing import IssueLog
from .reader import Location

ROBOFLOW = "_annotations.coco.json"
"""What Roboflow calls its annotations, beside the images."""

MAX_JSON_BYTES = 8 * 2**30
"""Larger annotation files are refused before they are read; the largest in use take a quarter of it."""


def read_json(path: Path, log: IssueLog) -> dict[str, Any]:
    """Read the object of a JSON file; a byte order mark is noted.

    Raises:
        UserError: the file is missing, larger than ``MAX_JSON_BYTES``, empty, a Git LFS pointer, not JSON, or holds
            something else.
    """
    content = _read(path, log)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: not a file of annotations: expected an object, found a {type(content).__name__}",
            "data.not-annotations",
        )
    return content


def read_json_list(path: Path, log: IssueLog) -> list[Any]:
    """Read the list of a JSON file, as :func:`read_json` does an object."""
    content = _read(path, log)
    if not isinstance(content, list):
        raise UserError(
            f"{path}: not a file of tasks: expected a list, found a {type(content).__name__}", "data.not-annotations"
        )
    return content


def _read(path: Path, log: IssueLog) -> Any:
    refuse_irregular(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UserError(
                f"{path}: {size} bytes are over the limit of {MAX_JSON_BYTES} for JSON; split the data set",
                "data.json-too-large",
            )
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file", "data.missing-annotations") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}", "data.unreadable"
        ) from None
    refuse_placeholder(path, raw[:64])
    if raw.startswith(b"\xef\xbb\xbf"):
        log.note("", "a byte order mark before the JSON", "skipped")
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}", "data.not-json") from None


def find_json(location: Location) -> tuple[Path | None, str]:
    """Return the annotation file of a data set, or None and what a message adds where several might be it."""
    folder, annotations = location.folder, location.annotations
    if annotations is None:
        return _json_around(folder)
    return _json_within(annotations, folder) if annotations.is_dir() else (annotations, "")


def annotation_json(location: Location) -> Path:
    """Return the annotation file of a data set.

    Raises:
        UserError: there is none, or it is not clear which one it is.
    """
    file, ambiguous = find_json(location)
    if file is None:
        raise UserError(
            f"{location.annotations or location.folder}: no annotation file in it or beside it{ambiguous}; name it as "
            "the ann_file",
            "data.missing-annotations",
        )
    return file


def holds_keys(path: Path, *keys: str) -> bool:
    """Return whether all of some keys occur in a JSON file, without parsing it."""
    refuse_irregular(path)
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)


def _json_around(folder: Path) -> tuple[Path | None, str]:
    """Return the annotation file in and around a folder of images, as :func:`find_json`."""
    ambiguous = ""
    parents = _two_above(folder)
    for place in (folder, *(above / "annotations" for above in (folder, *parents))):
        if place.is_dir():
            file, several = _json_within(place, folder)
            if file is not None:
                return file, ""
            ambiguous += several
    beside = parents[0] / _made_for(folder)
    return (beside, "") if beside.is_file() else (None, ambiguous)


def _json_within(folder: Path, images: Path) -> tuple[Path | None, str]:
    """Return a folder's annotation file, as :func:`find_json`.

    It is Roboflow's, the one made for the image folder, or the only one.
    """
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    for name in (ROBOFLOW, _made_for(images)):
        if folder / name in files:
            return folder / name, ""
    if len(files) > 1:
        return None, f"; in {folder} there are {len(files)}: {', '.join(path.name for path in files[:4])}"
    return (files[0] if files else None), ""


def _two_above(folder: Path) -> list[Path]:
    """The two folders above one, written as it is: relative or absolute."""
    above = list(folder.absolute().parents[:2])
    return above if folder.is_absolute() else [Path(os.path.relpath(path)) for path in above]


def _made_for(images: Path) -> str:
    """What COCO calls the annotations of a folder of images."""
    return f"instances_{images.absolute().name}.json"
