"""The interface of a format: recognising and opening its data sets.

A new format is one file beside this one, called after it, such as ``toy.py``::

    class ToyReader:
        name, order, looks_for = "toy", 0, "toy.txt"

        def recognise(self, location: Location) -> Location | None:
            file = location.annotations or location.folder / "toy.txt"
            return Location(location.folder, file) if file.name == "toy.txt" and file.exists() else None

        def open(self, location: Location, options: OpenOptions) -> Source: ...

    READER = ToyReader()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..records import Source


@dataclass(frozen=True)
class Location:
    """Where a data set is stored.

    Attributes:
        folder: images, frames or videos, or the folder above them.
        annotations: file or folder; None: the reader looks for it.
    """

    folder: Path
    annotations: Path | None = None


@dataclass(frozen=True)
class OpenOptions:
    """What is read of a data set, whatever its format.

    Attributes:
        name: data set name.
        max_objects: objects kept per image or video, the largest by mask area.
        videos: names of the images or videos to read; None: all.
        follow_links: whether links may lead out of the data set's folders.
        categories: names of the categories whose objects are read; None: all.
        ignore_categories: names of those whose areas are void.
        mask_threshold: share of white from which on a pixel of a mask file is the object; None: values are labels.
    """

    name: str = "data"
    max_objects: int = 200
    videos: Sequence[str] | None = None
    follow_links: bool = False
    mask_threshold: float | None = None
    categories: Sequence[str] | None = None
    ignore_categories: Sequence[str] = ()


class FormatReader(Protocol):
    """One format.

    Attributes:
        name: what a config calls it; its module has the same name.
        order: readers with a lower one are asked first. 0 is for formats with a sure sign; higher ones would also
            accept data that another reader knows better.
        looks_for: files by which the format is recognised, as a message lists them.
    """

    name: str
    order: int
    looks_for: str

    def recognise(self, location: Location) -> Location | None:
        """Return where a data set is with the annotations that were found; None if it is of another format.

        Decides by names of files, and by what is in a JSON file, without parsing it.
        """

    def open(self, location: Location, options: OpenOptions) -> Source:
        """Index a data set, parsing as little as that takes.

        Raises:
            UserError: it cannot be read as a whole, or there is no image or video of a wanted name.
        """
