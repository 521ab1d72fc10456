"""The formats of data sets, a module each.

A module's name is the value of ``format`` in a config. Every module that is not in ``SHARED`` defines ``READER``, a
:class:`~src.data.formats.reader.FormatReader`. Nothing else has to know of it: it is found by its file.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reader import FormatReader

SHARED = frozenset({"file_names", "json_files", "label_files", "mask_folders", "parsing", "reader", "registry"})
"""Modules of this package that are no formats."""


def format_names() -> list[str]:
    """Return the names of all formats. Imports none of them, so that checking a config stays quick."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in SHARED)


def readers() -> list[FormatReader]:
    """Return the readers of all formats, in the order in which they are asked whether a data set is theirs."""
    return _readers(tuple(format_names()))


@lru_cache(maxsize=4)
def _readers(names: tuple[str, ...]) -> list[FormatReader]:
    found: list[FormatReader] = [import_module(f"{__name__}.{name}").READER for name in names]
    return sorted(found, key=lambda reader: (reader.order, reader.name))
