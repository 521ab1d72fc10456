"""Files whose names are not quite those that an annotation file gives them."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from .parsing import leaves_folder, shown

FITTING = "file names that only one file fits"


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

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Return the relative path of a listed file, and how it was listed where that is not how it is called.

        Args:
            name: as it is listed, with slashes. Where nothing fits it, it comes back as it is.
        """
        if not leaves_folder(name) and os.path.lexists(os.path.join(self.folder, name)):
            return name, None
        found = self.find(name)
        return (name, None) if found is None else (found, name)

    def _read(self) -> None:
        for at, _, files in os.walk(self.folder):
            for file in files:
                path = (Path(at) / file).relative_to(self.folder).as_posix()
                self._by_path[_folded(path)].add(path)
                self._by_base[_folded(file)].add(path)


def utf8_name(name: str) -> str:
    """Return a name with what is not UTF-8 in it escaped, as logs and TensorBoard can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def renamed(names: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Return those of the names that are none of the wanted ones, with the only wanted one that each fits.

    They may differ in Unicode's form, letter case and URL encoding. A wanted name that has itself, or that two fit, is
    given to none.
    """
    names, left = list(names), list(wanted)
    there = set(names)
    by_fold: dict[str, list[str]] = defaultdict(list)
    for each in left:
        by_fold[_folded(each)].append(each)
    missing = {name: by_fold.get(_folded(name), []) for name in set(names) - set(left)}
    fits = {name: found[0] for name, found in missing.items() if len(found) == 1 and found[0] not in there}
    taken = list(fits.values())
    return {name: fit for name, fit in fits.items() if taken.count(fit) == 1}


def said_otherwise(listed: str | None) -> str:
    """Return what messages add to a place whose file is listed by another name."""
    return "" if listed is None else f", listed as {shown(listed)}"


def _folded(name: str) -> str:
    """Return a path as it is compared; of a URL the file that it asks for."""
    address, _, query = name.partition("?")
    path = query.partition("d=")[2] if query.startswith("d=") else address
    return unicodedata.normalize("NFC", unquote(path)).casefold()
