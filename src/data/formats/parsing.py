"""What readers share: ids, frames, choice of videos, objects, links."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...core.errors import UserError
from ..decode.images import ImageFile, image_size
from ..records import RLE, Issue, ObjectTrack, Segmentation

if TYPE_CHECKING:
    from .reader import OpenOptions

FIX = "fix or delete it"


@dataclass
class IssueLog:
    """What a parser meets in one file or folder."""

    file: str
    issues: list[Issue] = field(default_factory=list)

    def error(self, entry: str, problem: str, action: str = FIX) -> None:
        self.issues.append(Issue("error", self.file, entry, problem, action))

    def repaired(self, entry: str, problem: str, action: str = "left out") -> None:
        self.issues.append(Issue("repaired", self.file, entry, problem, action))

    def note(self, entry: str, problem: str, action: str) -> None:
        self.issues.append(Issue("note", self.file, entry, problem, action))

    def refused(self, path: Path, error: UserError) -> None:
        """A file that could not be read."""
        self.issues.append(Issue("error", str(path), "", str(error).removeprefix(f"{path}: "), FIX))


def as_id(value: Any) -> int | str | None:
    """Return an id as it is compared: 7, 7.0 and "7" are one.

    Other text stays as it is. What cannot be an id is None.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"0|-?[1-9]\d{0,18}", value, re.ASCII) else value
    return value if isinstance(value, int) else None


def declared_size(entry: Mapping[str, Any], prefix: str = "") -> tuple[int, int] | None:
    """Return the (height, width) that an entry gives; None without a possible one."""
    height, width = as_id(entry.get(f"{prefix}height")), as_id(entry.get(f"{prefix}width"))
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    return None


def leaves_folder(file_name: str) -> bool:
    """Return whether a relative path leads out of its folder.

    Its separators are slashes.
    """
    absolute = file_name.startswith("/") or re.match(r"[A-Za-z]:", file_name) is not None
    return absolute or posixpath.normpath(file_name).split("/")[0] == ".."


@dataclass(frozen=True)
class Bounds:
    """Folders that a data set's files must be in, links followed.

    Without folders they may be anywhere. A folder that the config names may be a link itself. Below it, a link that
    leads out may be the user's own, or part of somebody's data, made to read files that are not theirs.
    ``dataset.follow_links`` says that it is the user's.
    """

    folders: tuple[Path, ...] = ()

    @classmethod
    def of(cls, follow_links: bool, *folders: Path) -> Bounds:
        """Return the folders of a data set, or none where links may lead anywhere."""
        return cls() if follow_links else cls(tuple(folder.resolve() for folder in folders))

    def check(self, path: Path) -> None:
        """Raise UserError if a link leads a path out of all of the folders."""
        if not self.folders:
            return
        try:
            real = Path(os.path.realpath(path)) if os.path.islink(path) else _resolved(path.parent.absolute())
        except ValueError:  # no file can be called so, as whoever reads it will say
            return
        if not any(real.is_relative_to(folder) for folder in self.folders):
            raise UserError(
                f"{path}: a link leads to it from the data set's folder to {real}; put the file itself there, or set "
                "dataset.follow_links=true if the link is yours",
                "data.link-leads-out",
            )


@lru_cache(maxsize=1024)
def _resolved(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def folder_of_both(images: Path, masks: Path) -> Path:
    """The innermost folder that holds two others, by their names."""
    return Path(os.path.commonpath([images.absolute(), masks.absolute()]))


def category_names(entries: Any) -> dict[int | str, str]:
    """Return COCO's ``categories``: id → name."""
    names: dict[int | str, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), (str, int, float)):
            key = as_id(entry.get("id"))
            if key is not None:
                names[key] = str(entry["name"])
    return names


def choose_videos(names: Sequence[str], wanted: Sequence[str] | None, place: str | Path) -> list[int]:
    """Return the indices of the wanted videos, in the data set's order; None wants all.

    Raises:
        UserError: there is none of a wanted name; the message lists near names.
    """
    if wanted is None:
        return list(range(len(names)))
    known, chosen = set(names), set(wanted)
    unknown = [name for name in dict.fromkeys(wanted) if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.5) or list(names[:3])
        more = f", nor {len(unknown) - 1} more of the names wanted" if len(unknown) > 1 else ""
        raise UserError(
            f"{place}: there is no video '{unknown[0]}'{more}; it holds {len(names)}, such as {', '.join(near)}",
            "data.no-such-video",
        )
    return [index for index, name in enumerate(names) if name in chosen]


def sides(size: tuple[int, int]) -> str:
    """Return (height, width) as people write it: ``640×480``."""
    return f"{size[1]}×{size[0]}"


def shown(value: object, length: int = 60) -> str:
    """Return a value from a file as messages quote it, cut to ``length`` characters."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def open_frames(
    paths: Sequence[Path], labelled: tuple[int, int] | None, log: IssueLog, bounds: Bounds
) -> tuple[list[ImageFile | None], tuple[int, int] | None]:
    """Open the frames of a video by their headers.

    Returns a source for each, None where it is damaged, and their (height, width).

    Tools differ in whether they heed EXIF orientation: ``labelled``, the size that labels were drawn at, decides. Where
    it cannot (a square frame, a half turn, None), they are taken to be upright. Frames must have the size of the first.
    """
    frames: list[ImageFile | None] = []
    size: tuple[int, int] | None = None
    orient = True
    for path in paths:
        try:
            bounds.check(path)
            stored, oriented = image_size(path)
        except UserError as error:
            log.refused(path, error)
            frames.append(None)
            continue
        if size is None:
            orient = labelled != stored or stored == oriented
            if not orient:
                log.repaired("", "frames labelled as stored", "read without their EXIF rotation")
            size = oriented if orient else stored
        if (oriented if orient else stored) == size:
            frames.append(ImageFile(path, orient))
        else:
            found = sides(oriented if orient else stored)
            log.issues.append(
                Issue("error", str(path), "", f"the frame is {found} pixels, those before it {sides(size)}", FIX)
            )
            frames.append(None)
    return frames, size


Track = Sequence[Segmentation | None]
Key = TypeVar("Key", bound="int | str")

IGNORED = re.compile(r"void|ignored?([ _-]regions?)?|(do[ _]?n'?t|do[ _]not)[ _-]?care", re.IGNORECASE)
"""What data sets call categories of areas that are not labelled."""

TRACKED_STILLS = "track ids without video ids"
LOOKS_LIKE_VOID = "categories that look like void"


@dataclass(frozen=True)
class Categories:
    """Which categories are objects, and which are void; in a format without names, numbers or colours of masks.

    Attributes:
        wanted: those whose objects are read; None: all.
        ignored: those whose areas are void.
    """

    wanted: frozenset[str] | None = None
    ignored: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        options: OpenOptions,
        names: Iterable[str] | None = None,
        log: IssueLog | None = None,
        numbered: bool = False,
    ) -> Categories:
        """Return those of the options.

        Args:
            options: what is read of a data set.
            names: all categories that the data set names; None: not known before all is parsed.
            log: takes a note of categories that look like void and are not ignored.
            numbered: the data set has masks alone, where numbers or colours stand for names.

        Raises:
            UserError: the data set has no such category.
        """
        chosen = cls(
            None if options.categories is None else frozenset(options.categories), frozenset(options.ignore_categories)
        )
        known = None if names is None else list(dict.fromkeys(names))
        for key, values in (("categories", options.categories or ()), ("ignore_categories", options.ignore_categories)):
            for value in values:
                if known is not None and value not in known:
                    near = difflib.get_close_matches(value, known, n=3, cutoff=0.5) or known[:8]
                    there = ", ".join(near) or "none"
                    raise UserError(
                        f"{options.name}: {key}: there is no category {value!r} in it; there are {there}",
                        "data.no-such-category",
                    )
        for value in [*(options.categories or ()), *options.ignore_categories] if numbered else []:
            if not re.fullmatch(r"\d{1,9}|#[0-9a-f]{6}", value):
                raise UserError(
                    f"{options.name}: there is no category {value!r} in masks, whose objects are called by their "
                    "number (12) or colour (#00ff00)",
                    "data.no-such-category",
                )
        for name in known or ():
            if log is not None and IGNORED.fullmatch(name) and chosen.takes(name):
                log.note(name, LOOKS_LIKE_VOID, "trained on, unless dataset.ignore_categories has them")
        return chosen

    def takes(self, category: str | None) -> bool:
        """Return whether things of a category are objects."""
        return category not in self.ignored and (self.wanted is None or category in self.wanted)

    def select(
        self, tracks: Mapping[Key, Track], names: Mapping[Key, str | None] | None, log: IssueLog
    ) -> tuple[dict[Key, Track], dict[int, list[Segmentation]]]:
        """Return the tracks that are objects, and areas that are void by frame.

        Args:
            tracks: areas by frame, of everything that is labelled.
            names: their categories; None: they are called by their keys.
            log: takes what is not an object.
        """
        kept: dict[Key, Track] = {}
        areas: dict[int, list[Segmentation]] = {}
        for key, track in tracks.items():
            name = str(key) if names is None else names.get(key)
            if self.takes(name):
                kept[key] = track
            elif name in self.ignored:
                log.repaired(f"object {key}", "objects of ignored categories", VOIDED)
                for t, segmentation in enumerate(track):
                    if segmentation is not None:
                        areas.setdefault(t, []).append(segmentation)
            else:
                log.repaired(f"object {key}", "objects of categories that are not wanted")
        return kept, areas


VOIDED = "void: neither trained on nor scored"


def with_void(
    void: Mapping[int, Segmentation], areas: Mapping[int, Sequence[Segmentation]], objects: Sequence[ObjectTrack]
) -> dict[int, Segmentation]:
    """Return void areas by frame, more areas added to those that are known; what is an object's is not void."""
    found = dict(void)
    for t, more in areas.items():
        masks = [each.decode() for each in ([void[t]] if t in void else []) + list(more)]
        shown = [s.decode() for o in objects if (s := o.segmentations[t]) is not None]
        void_HW = np.logical_or.reduce(masks) & ~np.logical_or.reduce([np.zeros_like(masks[0]), *shown])
        if void_HW.any():
            found[t] = RLE.encode(void_HW)
    return found


def make_objects(
    tracks: Mapping[Key, Track],
    limit: int,
    log: IssueLog,
    categories: Mapping[Key, str | None] | None = None,
    keep_ids: bool = True,
) -> list[ObjectTrack]:
    """Number the objects of a video that are seen, at most ``limit``.

    The ids are the objects' numbers if all of them are positive integers and ``keep_ids``; else objects are numbered in
    their order, from 1. More than ``limit`` objects are cut to those with the largest area on any frame.
    """
    categories = categories or {}
    areas = {key: max((s.area() for s in track if s is not None), default=0) for key, track in tracks.items()}
    for key in [key for key, area in areas.items() if area == 0]:
        log.repaired(f"object {key}", "objects that are never seen")
        del areas[key]
    largest = sorted(areas, key=lambda key: -areas[key])
    for key in largest[limit:]:
        log.repaired(f"object {key}", f"objects beyond the {limit} largest of their video")
        del areas[key]
    own = keep_ids and all(isinstance(key, int) and key > 0 for key in tracks)
    return [
        ObjectTrack(
            object_id=key if own and isinstance(key, int) else number,
            segmentations=tracks[key],
            category=categories.get(key),
            original_id=None if own else key,
        )
        for number, key in enumerate(tracks, start=1)
        if key in areas
    ]
