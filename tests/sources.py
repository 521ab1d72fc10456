"""Opens data sets as their formats' readers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.config import NamedSplit
from src.data.formats import coco, davis, folder, sav, ytvis
from src.data.formats.coco import CocoSource
from src.data.formats.davis import DavisSource
from src.data.formats.folder import FolderSource
from src.data.formats.reader import Location, OpenOptions
from src.data.formats.registry import recognise
from src.data.formats.sav import SavSource
from src.data.formats.ytvis import YtvisSource
from src.data.loading import location_of, open_data
from src.data.options import LoadOptions
from src.data.records import Source


def location(img_folder: str | Path, annotations: str | Path | None = None) -> Location:
    return Location(Path(img_folder), None if annotations is None else Path(annotations))


def open_coco(img_folder: str | Path, ann_file: str | Path | None = None, **options: Any) -> CocoSource:
    return coco.READER.open(location(img_folder, ann_file), OpenOptions(**{"name": "coco", **options}))


def open_ytvis(img_folder: str | Path, ann_file: str | Path | None = None, **options: Any) -> YtvisSource:
    return ytvis.READER.open(location(img_folder, ann_file), OpenOptions(**{"name": "ytvis", **options}))


def open_davis(img_folder: str | Path, ann_folder: str | Path | None = None, **options: Any) -> DavisSource:
    return davis.READER.open(location(img_folder, ann_folder), OpenOptions(**{"name": "davis", **options}))


def open_sav(img_folder: str | Path, ann_folder: str | Path | None = None, **options: Any) -> SavSource:
    return sav.READER.open(location(img_folder, ann_folder), OpenOptions(**{"name": "sav", **options}))


def open_folder(img_folder: str | Path, ann_folder: str | Path | None = None, **options: Any) -> FolderSource:
    return folder.READER.open(location(img_folder, ann_folder), OpenOptions(**{"name": "folder", **options}))


def open_place(place: NamedSplit, max_objects: int = 200, follow_links: bool = False) -> Source:
    """A data set of a config."""
    return open_data(place, LoadOptions(Path("not written to"), max_objects, follow_links))


def recognised(place: NamedSplit) -> tuple[str, Path | None]:
    """The name of a data set's format, and its annotations."""
    reader, found = recognise(location_of(place), place.format)
    return reader.name, found.annotations
