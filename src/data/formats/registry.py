"""Which format a data set is of, and opening it."""

from __future__ import annotations

import difflib
from pathlib import Path

from ...core.errors import UserError
from ..records import Issue, Source, reader_failed
from . import readers
from .json_files import find_json
from .label_files import files_below
from .reader import FormatReader, Location, OpenOptions

AUTO = "auto"
"""In place of a format's name: recognise it."""

_LIST_FOLDERS = ("davis", "folder", "labelme", "yolo")
"""Formats whose readers take what pictures there are, where others have lists of them."""

_UNREAD = frozenset({".avif", ".dcm", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".nii", ".svg"})
"""Pictures that are none of :data:`src.data.decode.video.IMAGE_SUFFIXES`."""


def recognise(location: Location, name: str = AUTO) -> tuple[FormatReader, Location]:
    """Return the reader of a data set, and where it is with the annotations that were found.

    Args:
        location: image folder, and annotations where they are known.
        name: the format's name, or ``auto``.

    Raises:
        UserError: a file or folder is missing, there is no such format, or no reader recognises the data set.
    """
    folder, annotations = location.folder, location.annotations
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder", "data.missing-folder")
    if annotations is not None and not annotations.exists():
        raise UserError(f"{annotations}: no such annotation file", "data.missing-annotations")
    if name != AUTO:
        reader = _reader_called(name)
        return reader, reader.recognise(location) or location
    for reader in readers():
        if (found := reader.recognise(location)) is not None:
            return reader, found
    looked_for = "; ".join(reader.looks_for for reader in readers())
    _, ambiguous = find_json(location)
    raise UserError(
        f"{annotations or folder}: no annotations found: looked for {looked_for}{ambiguous}; name them as the ann_file",
        "data.not-recognised",
    )


def open_source(location: Location, options: OpenOptions, name: str = AUTO) -> Source:
    """Return a data set as its format's reader has indexed it.

    Args:
        location: image folder, and annotations where they are known.
        options: what is read of it.
        name: the format's name, or ``auto``.

    Raises:
        UserError: it cannot be read, its format is not clear, or there is no video of a wanted name.
    """
    reader, found = recognise(location, name)
    return open_with(reader, found, options)


def open_with(reader: FormatReader, location: Location, options: OpenOptions) -> Source:
    """Return a data set as a reader has indexed it.

    Raises:
        UserError: it cannot be read, there is no video of a wanted name, or the reader failed.
    """
    try:
        source = reader.open(location, options)
        if reader.name in _LIST_FOLDERS and options.videos is None:
            source.issues.extend(_unread_pictures(location.folder))
        return source
    except (UserError, MemoryError):
        raise
    except Exception as error:
        place = str(location.annotations or location.folder)
        raise reader_failed(options.name, reader.name, place, error) from error


def _unread_pictures(folder: Path) -> list[Issue]:
    """Return a note of pictures in a folder, or in the folders in it, that are of a format nobody reads."""
    found = [path for path in files_below(folder) if path.suffix.lower() in _UNREAD]
    kinds = sorted({path.suffix.lower() for path in found})
    problem = f"pictures of formats that are not read ({', '.join(kinds)})"
    return [Issue("note", str(path), "", problem, "not looked at; convert them to PNG") for path in found]


def _reader_called(name: str) -> FormatReader:
    by_name = {reader.name: reader for reader in readers()}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(by_name))}"
        raise UserError(f"there is no format '{name}'; {hint}", "data.unknown-format")
    return by_name[name]
