"""COCO's panoptic format: an RGB PNG an image, whose colours number segments, and a JSON that names them.

Every segment is an object, also a stretch of "stuff" such as sky. Crowds, and pixels of no segment, are void.

Format: https://cocodataset.org/#format-data (4. Panoptic Segmentation)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import UserError
from ..decode.images import open_image
from ..packed import PackedList
from ..records import RLE, Issue, VideoRecord
from .file_names import FITTING, FileNames, said_otherwise
from .json_files import annotation_json, find_json, holds_keys, read_json
from .parsing import (
    Bounds,
    Categories,
    IssueLog,
    as_id,
    category_names,
    choose_videos,
    declared_size,
    leaves_folder,
    make_objects,
    open_frames,
    shown,
    sides,
    with_void,
)
from .reader import Location, OpenOptions

_KEY = "segments_info"


class _Entry(NamedTuple):
    """An image with its segments: (id, category, whether it is a crowd)."""

    name: str
    image: str
    mask: str
    size: tuple[int, int] | None
    segments: list[tuple[int, int | str | None, bool]]


@dataclass
class PanopticSource:
    """Images with panoptic masks; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    folder: Path
    masks: Path
    entries: PackedList
    categories: dict[int | str, str]
    max_objects: int
    bounds: Bounds
    chosen: Categories = field(default_factory=Categories)
    issues: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    def name_of(self, index: int) -> str:
        name: str = _Entry(*self.entries[index]).name
        return name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        entry = _Entry(*self.entries[index])
        log = IssueLog(str(self.files[0]))
        mask = self.masks / entry.mask
        try:
            self.bounds.check(mask)
            numbers_HW = _read_numbers(mask)
        except UserError as error:
            log.refused(mask, error)
            return None, log.issues
        return self._record(entry, numbers_HW, log), log.issues

    def _record(self, entry: _Entry, numbers_HW: np.ndarray, log: IssueLog) -> VideoRecord | None:
        drawn = (numbers_HW.shape[0], numbers_HW.shape[1])
        (frame,), size = open_frames([self.folder / entry.image], drawn, log, self.bounds)
        if frame is None or size is None:
            return None
        place = f"image {shown(entry.image, 160)}"
        if drawn != size:
            log.error(place, f"the mask is {sides(drawn)} pixels, the image is {sides(size)}")
            return None
        void_HW = numbers_HW == 0
        tracks, names = {}, {}
        for number, category, crowd in entry.segments:
            area_HW = numbers_HW == number
            if crowd:
                log.repaired(f"{place} segment {number}", "crowd segments", "left out of loss and score")
                void_HW |= area_HW
            elif not area_HW.any():
                log.error(f"{place} segment {number}", f"is not drawn in {entry.mask}")
            else:
                if category not in self.categories:
                    log.repaired(f"{place} segment {number}", "annotations of an unknown category", "kept without one")
                tracks[number] = [RLE.encode(area_HW)]
                names[number] = None if category is None else self.categories.get(category)
        strays = set(np.unique(numbers_HW).tolist()) - {0} - {number for number, _, _ in entry.segments}
        if strays:
            log.error(place, f"{entry.mask} holds number {min(strays)}, which no segment has")
        kept, areas = self.chosen.select(tracks, names, log)
        objects = make_objects(kept, self.max_objects, log, names)
        void = {0: RLE.encode(void_HW)} if void_HW.any() else {}
        if not objects:
            log.repaired(place, "images without objects")
            return None
        return VideoRecord(entry.name, *size, [frame], objects, void=with_void(void, areas, objects))


class PanopticReader:
    """A JSON with ``segments_info``, and the folder of PNGs that is called like it."""

    name = "panoptic"
    order = 0
    looks_for = "COCO's panoptic_NAME.json"

    def recognise(self, location: Location) -> Location | None:
        file, _ = find_json(location)
        return Location(location.folder, file) if file is not None and holds_keys(file, _KEY) else None

    def open(self, location: Location, options: OpenOptions) -> PanopticSource:
        """Index a panoptic file; ``location.folder`` is what its images' file names are relative to.

        The PNGs are in the folder beside the JSON that is called like it, without ``.json``, or beside the JSON.

        Raises:
            UserError: the file or a folder cannot be read, or there is no image of a wanted name.
        """
        folder, path = location.folder, annotation_json(location)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        log = IssueLog(str(path))
        content = read_json(path, log)
        missing = [key for key in ("images", "annotations") if not isinstance(content.get(key), list)]
        if missing:
            raise UserError(
                f"{path}: not COCO's panoptic format: no list {' and '.join(map(repr, missing))}", "panoptic.keys"
            )
        beside = path.with_suffix("")
        masks = beside if beside.is_dir() else path.parent
        entries = _entries(content["images"], content["annotations"], log, (FileNames(folder), FileNames(masks)))
        names = category_names(content.get("categories"))
        chosen = choose_videos([entry.name for entry in entries], options.videos, path)
        return PanopticSource(
            name=options.name,
            files=[path, masks],
            folder=folder,
            masks=masks,
            entries=PackedList(tuple(entries[index]) for index in chosen),
            categories=names,
            chosen=Categories.of(options, names.values(), log),
            max_objects=options.max_objects,
            bounds=Bounds.of(options.follow_links, folder, masks),
            issues=log.issues if options.videos is None else [],
        )


READER = PanopticReader()


def _entries(
    images: list[Any], annotations: list[Any], log: IssueLog, names: tuple[FileNames, FileNames]
) -> list[_Entry]:
    """Return the images that have a mask, in the file's order."""
    masks: dict[int | str, dict[str, Any]] = {}
    for place, entry in enumerate(annotations):
        key = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
        if key is None:
            log.error(f"annotations[{place}]", "has no image_id")
        elif key in masks:
            log.error(f"annotations[{place}]", f"is a second mask of image {shown(key)}")
        else:
            masks[key] = entry
    entries = []
    for place, image in enumerate(images):
        key = as_id(image.get("id")) if isinstance(image, dict) else None
        if key is None:
            log.error(f"images[{place}]", "has no id")
        elif key not in masks:
            log.repaired(f"image {shown(key)}", "images without a mask")
        elif (made := _entry(image, masks.pop(key), f"image {shown(key)}", log, names)) is not None:
            entries.append(made)
    for key in masks:
        log.repaired(f"image {shown(key)}", "annotations of unknown images")
    return entries


def _entry(
    image: dict[str, Any], mask: dict[str, Any], place: str, log: IssueLog, names: tuple[FileNames, FileNames]
) -> _Entry | None:
    paths = []
    for entry, files in zip((image, mask), names, strict=True):
        if isinstance(listed := entry.get("file_name"), str) and listed:
            path, otherwise = files.resolve(listed.replace("\\", "/"))
            paths.append(path)
            if otherwise is not None:
                log.repaired(f"{place} ({shown(path, 160)}){said_otherwise(otherwise)}", FITTING, "read")
    if len(paths) < 2 or any(map(leaves_folder, paths)):
        log.error(place, "it or its mask has no file_name, or one that leaves the folder")
        return None
    segments = []
    listed = mask.get(_KEY)
    for segment in listed if isinstance(listed, list) else []:
        number = as_id(segment.get("id")) if isinstance(segment, dict) else None
        if not isinstance(number, int) or number < 1:
            log.error(place, "a segment has no positive id")
            return None
        segments.append((number, as_id(segment.get("category_id")), as_id(segment.get("iscrowd")) not in (None, 0)))
    stem = PurePosixPath(paths[0]).with_suffix("").as_posix()
    return _Entry(stem, paths[0], paths[1], declared_size(image), segments)


def _read_numbers(path: Path) -> np.ndarray:
    """Return the numbers R + 256 G + 256² B of a mask: int64 (H, W)."""
    with open_image(path) as image:
        if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
            raise UserError(
                f"{path}: a panoptic mask is an RGB PNG, this is {image.format} in {image.mode}", "panoptic.mask"
            )
        colours_HW3 = np.array(image.convert("RGB")).astype(np.int64)
    numbers_HW: np.ndarray = colours_HW3 @ np.array([1, 256, 65536])
    return numbers_HW
