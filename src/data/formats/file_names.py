"""Files whose names are not quite those that an annotation file gives them."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import unquote


class FileNames:
    """The files below a folder, by names that differ from theirs as tools and systems differ.

    They may differ in Unicode's form, letter case, URL encoding, and in the folders of a labelling tool. No link to a
    folder is followed, and nothing outside is looked at. The folder is read when a name is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_path: dict[str, set[str]] = defaultdict(set)
        self._by_base: dict[str, set[str]] = defaultdict(set)

    def find(self, name: str) -> str | None:
        """Return the relative path of the only file that a name fits, by its path or else by its base name."""
        if not self._by_path:
            self._read()
        key = _folded(name)
        found = self._by_path.get(key) or self._by_base.get(PurePosixPath(key).name) or set()
        return next(iter(found)) if len(found) == 1 else None

    def _read(self) -> None:
        for at, _, files in os.walk(self.folder):
            for file in files:
                path = (Path(at) / file).relative_to(self.folder).as_posix()
                self._by_path[_folded(path)].add(path)
                self._by_base[_folded(file)].add(path)


def utf8_name(name: str) -> str:
    """Return a name with what is not UTF-8 in it escaped, as logs and TensorBoard can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _folded(name: str) -> str:
    """Return a path as it is compared; of a URL the file that it asks for."""
    address, _, query = name.partition("?")
    path = query.partition("d=")[2] if query.startswith("d=") else address
    return unicodedata.normalize("NFC", unquote(path)).casefold()
