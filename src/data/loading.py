"""The data sets of a config: opened, checked, and parsed on demand."""

from __future__ import annotations

import re
from pathlib import Path

from ..config import DomainConfig, NamedSplit, Split
from ..core.errors import UserError
from ..core.files import refuse_irregular
from .checks.cache import cache_file
from .checks.report import data_set
from .checks.skipped import list_skipped
from .checks.validate import check
from .formats.mask_folders import FRAMES, LEVELS, MASKS
from .formats.reader import Location, OpenOptions
from .formats.registry import open_source
from .options import LoadOptions
from .records import DataSet, Source


def location_of(place: NamedSplit) -> Location:
    """Return where a data set of a config is stored, as readers take it."""
    return Location(Path(place.img_folder), None if place.ann_file is None else Path(place.ann_file))


def load_split(data: DomainConfig, split: Split, options: LoadOptions) -> DataSet:
    """Return a split of a domain to learn, checked.

    Raises:
        UserError: as :func:`load_data`, or the config has no such split.
    """
    place = data.split(split)
    if place is None:
        prefix = {"train": "train", "valid": "val", "test": "test"}[split]
        raise UserError(
            f"domain '{data.name}' has no {split} split: set its {prefix}_img_folder under dataset", "data.no-split"
        )
    return load_data(place, options)


def load_data(place: NamedSplit, options: LoadOptions) -> DataSet:
    """Return the videos and images of a data set, once all of it is checked or known from an earlier check.

    Damage that ``skip_bad`` leaves out is listed in the run's ``skipped.json``.

    Raises:
        UserError: it cannot be read, holds nothing usable, or is damaged.
    """
    source = open_data(place, options)
    report = check(source, options.workers, cache=cache_file(place, options))
    data = data_set(source, report, options.skip_bad)
    list_skipped(place, options.output_dir, report.skipped)
    return data


def open_data(place: NamedSplit, options: LoadOptions) -> Source:
    """Return a data set of a config as its format's reader has indexed it.

    Raises:
        UserError: as :func:`~src.data.formats.registry.open_source`.
    """
    wanted = wanted_videos(place.videos)
    opening = OpenOptions(
        name=place.name,
        max_objects=options.max_objects,
        videos=wanted,
        follow_links=options.follow_links,
        mask_threshold=place.mask_threshold,
        categories=place.categories,
        ignore_categories=place.ignore_categories,
    )
    return open_source(location_of(place), opening, place.format)


def wanted_videos(videos: str | list[str] | None) -> list[str] | None:
    """Return the names of videos that a config gives as a list, or as a text file with one a line; None: all.

    In DAVIS-2016's lists a line is a frame and its mask, ``/JPEGImages/480p/bear/00000.jpg /Annotations/…``: they name
    the videos that have such frames, each once.

    Raises:
        UserError: the file is missing, no text, or empty.
    """
    if not isinstance(videos, str):
        return videos
    refuse_irregular(videos)
    try:
        names = [line.strip() for line in Path(videos).read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"{videos}: the list of videos cannot be read: {error.strerror}", "data.video-list") from None
    except UnicodeDecodeError:
        raise UserError(f"{videos}: the list of videos is not a text file", "data.video-list") from None
    if not any(names):
        raise UserError(f"{videos}: the list of videos is empty", "data.video-list")
    return list(dict.fromkeys(_video_of_frame(name) for name in names if name))


def _video_of_frame(line: str) -> str:
    """Return the video of a line of DAVIS-2016's lists; another line as it is."""
    frame = re.fullmatch(rf"/{FRAMES}/(?:(?:{'|'.join(LEVELS)})/)?(\S+)/[^/\s]+\.\w+(?:\s+/{MASKS}/\S+)?", line)
    return line if frame is None else frame[1]
