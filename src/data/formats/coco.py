"""COCO annotations, read as videos of one frame.

Reads COCO as it ships (images elsewhere) and as labelling tools export it (Roboflow's ``_annotations.coco.json`` beside
the images, CVAT, Label Studio). :class:`CocoReader` indexes a file in one pass over its JSON; an image's header and its
annotations are looked at when the image is asked for. Everything that was left out, repaired or is damaged is a
:class:`~src.data.records.Issue`. Masks are kept run-length encoded and decoded on demand; pixels are read on demand.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import gc
import pickle
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask

from ...core.errors import UserError
from ..decode.images import ImageFile, image_size
from ..decode.segmentation import (
    FLAT_PARTS,
    check_segmentation,
    holds_nested,
    is_empty,
    parse_segmentation,
    reaches_outside,
    without_flat_parts,
)
from ..packed import PackedList
from ..records import RLE, Issue, ObjectTrack, VideoRecord
from .file_names import FITTING, FileNames, said_otherwise
from .json_files import ROBOFLOW, annotation_json, find_json, read_json
from .parsing import (
    TRACKED_STILLS,
    VOIDED,
    Bounds,
    Categories,
    IssueLog,
    as_id,
    category_names,
    choose_videos,
    declared_size,
    leaves_folder,
    shown,
    sides,
    with_void,
)
from .reader import Location, OpenOptions
from .ytvis import track_of


class _Image(NamedTuple):
    """An entry of ``images``.

    ``size`` is its (height, width), None where the file does not give it. ``listed_as``: its name in the
    file, where that fits it though it differs. ``unsure`` and ``absent`` are LVIS's
    categories of which not all objects are labelled, and those that are known not to be there, None without a list.
    """

    key: int | str
    file_name: str
    size: tuple[int, int] | None
    backslashes: bool
    listed_as: str | None = None
    unsure: tuple[int | str, ...] = ()
    absent: tuple[int | str, ...] | None = None


class _Annotation(NamedTuple):
    """What is kept of an entry of ``annotations``.

    ``segmentation`` is None where it holds nothing.
    """

    key: int | str | None
    position: int
    category: int | str | None
    segmentation: Any
    crowd: bool
    boxed: bool

    @property
    def place(self) -> str:
        return f"annotations[{self.position}]" if self.key is None else f"annotation {shown(self.key)}"


_Fields = tuple[Any, ...]
"""An :class:`_Image` or :class:`_Annotation` as it is packed, which takes less room."""


@dataclass(frozen=True)
class CocoSource:
    """A COCO file, indexed; see :class:`src.data.records.Source`.

    The entries are packed in one block of memory.

    Attributes:
        folder: what the images' file names are relative to.
        entries: per image its video id, the image's entry and the fields of its annotations.
        categories: id → name.
        crowds_only: nothing but crowds is annotated, which then stand for objects.
        max_objects: objects kept per image, the largest by mask area.
        bounds: folders in which the images must be.
        chosen: which categories are objects, and which are void.
    """

    name: str
    files: list[Path]
    issues: list[Issue]
    folder: Path
    entries: PackedList
    categories: dict[int | str, str]
    crowds_only: bool
    max_objects: int
    bounds: Bounds
    chosen: Categories

    def __len__(self) -> int:
        return len(self.entries)

    def name_of(self, index: int) -> str:
        """Return an image's file name, since stems may repeat."""
        return _Image(*self.entries[index][1]).file_name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        video_id, image_fields, annotation_fields = self.entries[index]
        image, annotations = _Image(*image_fields), [_Annotation(*fields) for fields in annotation_fields]
        log = IssueLog(str(self.files[0]))
        return self._record(video_id, image, annotations, log), log.issues

    def _record(
        self, video_id: str, image: _Image, annotations: list[_Annotation], log: IssueLog
    ) -> VideoRecord | None:
        place = f"image {shown(image.key)} ({shown(image.file_name, 160)})"
        if image.backslashes:
            log.repaired(place, "file names with a Windows separator", "read with a slash")
        if image.listed_as is not None:
            log.repaired(f"{place}{said_otherwise(image.listed_as)}", FITTING, "read")
        drawn = [annotation for annotation in annotations if self._counts(annotation, image, log)]
        voided = [annotation for annotation in annotations if self._is_void(annotation)]
        if drawn:
            frame = _open_frame(self.folder, image, log, self.bounds)
            if frame is None:
                return None
            source, height, width = frame
            kept = self._kept(drawn, image, height, width, log)
            if kept:
                objects = [
                    ObjectTrack(number, [mask], self._category(annotation), annotation.key)
                    for number, (mask, annotation) in enumerate(kept, start=1)
                ]
                places = {annotation.position for _, annotation in kept}
                others = [
                    annotation
                    for annotation in annotations
                    if annotation.position not in places and self._category(annotation) not in self.chosen.ignored
                ]
                void = self._void(voided, image, height, width, log)
                crowds, unsure = self._crowds(others, height, width)
                return VideoRecord(
                    video_id, height, width, [source], objects, crowds=crowds, void=with_void({}, void, objects),
                    unsure=unsure | self._names(image.unsure),
                    absent=None if image.absent is None else self._names(image.absent),
                )  # fmt: skip
        log.repaired(place, "images without usable annotations")
        return None

    def _crowds(
        self, left_out: Sequence[_Annotation], height: int, width: int
    ) -> tuple[list[ObjectTrack], frozenset[str]]:
        """Return areas of the annotations that are no objects, and categories of those that have none."""
        areas: list[ObjectTrack] = []
        unsure: set[str] = set()
        for annotation in left_out:
            segmentation, category = without_flat_parts(annotation.segmentation), self._category(annotation)
            if segmentation is None or check_segmentation(segmentation, height, width) is not None:
                unsure |= set() if category is None else {category}
                continue
            mask = parse_segmentation(segmentation, height, width)
            if mask.area():
                areas.append(ObjectTrack(len(areas) + 1, [mask], category, annotation.key))
        return areas, frozenset(unsure)

    def _counts(self, annotation: _Annotation, image: _Image, log: IssueLog) -> bool:
        """Return whether an annotation stands for an object."""
        place = f"{annotation.place} ({shown(image.file_name, 160)})"
        if annotation.segmentation is None:
            log.repaired(place, "annotations without a segmentation")
            return False
        category = self._category(annotation)
        if category in self.chosen.ignored:
            log.repaired(place, "annotations of ignored categories", VOIDED)
            return False
        if not self.chosen.takes(category):
            log.repaired(place, "annotations of categories that are not wanted")
            return False
        if annotation.crowd and not self.crowds_only:
            log.repaired(place, "crowd annotations", VOIDED)
            return False
        if annotation.crowd:
            log.note(place, "crowd annotations", "used as objects, as there are no others")
        if not annotation.boxed:
            log.note(place, "annotations without a box", "none is needed")
        return True

    def _is_void(self, annotation: _Annotation) -> bool:
        """Return whether an annotation's area is neither an object nor background."""
        category = self._category(annotation)
        crowd = annotation.crowd and not self.crowds_only and self.chosen.takes(category)
        return annotation.segmentation is not None and (crowd or category in self.chosen.ignored)

    def _void(
        self, annotations: list[_Annotation], image: _Image, height: int, width: int, log: IssueLog
    ) -> dict[int, list[RLE]]:
        """Return the areas of annotations that are void, under the number of the only frame."""
        areas = []
        for annotation in annotations:
            segmentation = without_flat_parts(annotation.segmentation)
            problem = check_segmentation(segmentation, height, width)
            if problem is None:
                areas.append(parse_segmentation(segmentation, height, width))
            else:
                log.error(f"{annotation.place} ({shown(image.file_name, 160)})", problem)
        return {0: areas} if areas else {}

    def _kept(
        self, annotations: list[_Annotation], image: _Image, height: int, width: int, log: IssueLog
    ) -> list[tuple[RLE, _Annotation]]:
        """Return the masks of an image's objects, at most ``max_objects``, in the file's order."""
        found: list[tuple[int, RLE, _Annotation]] = []
        for annotation in annotations:
            place = f"{annotation.place} ({shown(image.file_name, 160)})"
            segmentation = without_flat_parts(annotation.segmentation)
            if segmentation is not annotation.segmentation:
                log.repaired(place, FLAT_PARTS)
            problem = check_segmentation(segmentation, height, width)
            if problem is not None:
                log.error(place, problem)
                continue
            if isinstance(segmentation, list) and reaches_outside(segmentation, height, width):
                log.repaired(place, "polygons that reach out of the image", "clipped")
            if isinstance(segmentation, list) and holds_nested(segmentation, height, width):
                log.note(place, "polygons inside polygons", "filled, as COCO does; masks as RLE can have holes")
            mask = parse_segmentation(segmentation, height, width)
            # From the mask: the JSON's area is missing or that of the box in the exports of several tools.
            area = int(coco_mask.area(mask.rle))
            if area == 0:
                log.repaired(place, "annotations that cover no pixel")
                continue
            if annotation.category not in self.categories:
                log.repaired(place, "annotations of an unknown category", "kept without one")
            found.append((area, mask, annotation))
        largest = sorted(range(len(found)), key=lambda index: -found[index][0])
        for index in largest[self.max_objects :]:
            log.repaired(
                f"{found[index][2].place} ({shown(image.file_name, 160)})",
                f"annotations beyond the {self.max_objects} largest of their image",
            )
        return [found[index][1:] for index in sorted(largest[: self.max_objects])]

    def _category(self, annotation: _Annotation) -> str | None:
        return None if annotation.category is None else self.categories.get(annotation.category)

    def _names(self, keys: Iterable[int | str]) -> frozenset[str]:
        """Return the names of categories; those that the file does not name are left out."""
        return frozenset(self.categories[key] for key in keys if key in self.categories)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's cycle collector.

    It would walk the millions of new lists again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class CocoReader:
    """COCO: any JSON of annotations that no other reader knows."""

    name = "coco"
    order = 20
    looks_for = (
        f"{ROBOFLOW}, instances_NAME.json (NAME being the image folder's) or one other .json in the folder, or in "
        "folders 'annotations' in it and above it"
    )

    def recognise(self, location: Location) -> Location | None:
        file, _ = find_json(location)
        return None if file is None else Location(location.folder, file)

    @_collector_paused()
    def open(self, location: Location, options: OpenOptions) -> CocoSource:
        """Index a COCO file: every image, with or without annotations, is a video of one frame, in the file's order.

        ``location.folder`` is what its ``file_name`` entries are relative to; wanted images are called by their
        ``file_name`` or its stem. Object ids are 1, 2, … in the file's order. Crowds are left out, unless the file has
        nothing else.

        Raises:
            UserError: the file or the folder as a whole cannot be read, or there is no image of a wanted name.
        """
        folder, path = location.folder, annotation_json(location)
        log = IssueLog(str(path))
        content = _read_coco(path, log)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        images = _index_images(content["images"], log, FileNames(folder))
        _note_odd_ids(content["images"], content["annotations"], log)
        _note_tracks(content["images"], content["annotations"], log)
        grouped = _group_by_image(content["annotations"], images, log)
        names = category_names(content.get("categories"))
        return CocoSource(
            name=options.name,
            files=[path],
            issues=log.issues,
            folder=folder,
            entries=_pack(_chosen(list(images.values()), options.videos, path), grouped),
            categories=names,
            crowds_only=_holds_only_crowds(content["annotations"]),
            max_objects=options.max_objects,
            bounds=Bounds.of(options.follow_links, folder),
            chosen=Categories.of(options, names.values(), log),
        )


READER = CocoReader()


def _read_coco(path: Path, log: IssueLog) -> dict[str, Any]:
    """Read a COCO file: a dict whose ``images`` and ``annotations`` are lists."""
    content = read_json(path, log)
    missing = [key for key in ("images", "annotations") if not isinstance(content.get(key), list)]
    if missing:
        keys = ", ".join(repr(shown(key)) for key in list(content)[:8]) or "none"
        raise UserError(
            f"{path}: not a COCO file: no list {' and '.join(map(repr, missing))} (its keys: {keys})", "coco.not-coco"
        )
    return content


def _index_images(entries: list[Any], log: IssueLog, files: FileNames) -> dict[int | str, _Image]:
    """Return ``images`` by id, in the file's order.

    An id that two files share is left out.
    """
    images: dict[int | str, _Image] = {}
    shared: set[int | str] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            log.error(f"images[{position}]", "is not an object")
            continue
        key = as_id(entry.get("id", entry.get("image_id")))
        if key is None:
            log.error(f"images[{position}]", "has no id")
            continue
        place = f"image {shown(key)}"
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            log.error(place, "has no file_name")
            continue
        # Annotation tools on Windows write its separators.
        slashed = file_name.replace("\\", "/")
        found, listed_as = files.resolve(slashed)
        image = _Image(
            key, found, declared_size(entry), "\\" in file_name and not listed_as, listed_as and file_name,
            _ids(entry.get("not_exhaustive_category_ids")) or (), _ids(entry.get("neg_category_ids")),
        )  # fmt: skip
        if leaves_folder(image.file_name):
            log.error(place, f"file_name {shown(file_name)!r} is absolute or leaves the image folder")
        elif key not in images:
            images[key] = image
        elif images[key].file_name == image.file_name:
            log.repaired(place, "images listed more than once", "read once")
        else:
            names = f"{shown(images[key].file_name)} and {shown(image.file_name)}"
            log.error(place, f"two files have this id: {names}", "give each its own")
            shared.add(key)
    return {key: image for key, image in _one_to_one(images, log).items() if key not in shared}


def _one_to_one(images: dict[int | str, _Image], log: IssueLog) -> dict[int | str, _Image]:
    """Return the images but for those that fit a file which another image has too."""
    counts = Counter(image.file_name for image in images.values())
    kept = {}
    for key, image in images.items():
        if image.listed_as is not None and counts[image.file_name] > 1:
            log.error(f"image {shown(key)}", f"{shown(image.listed_as)} fits {image.file_name}, as another image does")
        else:
            kept[key] = image
    return kept


def _ids(value: Any) -> tuple[int | str, ...] | None:
    """Return ids as they are compared; None of what is no list."""
    if not isinstance(value, list):
        return None
    return tuple(key for each in value if (key := as_id(each)) is not None)


def _holds_only_crowds(annotations: list[Any]) -> bool:
    """Return whether a file annotates nothing but crowds, which then stand for objects.

    CVAT flags every painted mask as a crowd.
    """
    drawn = (entry for entry in annotations if isinstance(entry, dict) and not is_empty(entry.get("segmentation")))
    crowds = [_is_crowd(entry) for entry in drawn]
    return bool(crowds) and all(crowds)


def _group_by_image(entries: list[Any], images: Iterable[int | str], log: IssueLog) -> dict[int | str, list[_Fields]]:
    """Return the annotations of each image, in the file's order."""
    known = set(images)
    grouped: dict[int | str, list[_Fields]] = defaultdict(list)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            log.error(f"annotations[{position}]", "is not an object")
            continue
        key, image = as_id(entry.get("id")), as_id(entry.get("image_id"))
        segmentation, category = entry.get("segmentation"), as_id(entry.get("category_id"))
        fields = (
            key,
            position,
            category,
            None if is_empty(segmentation) else segmentation,
            _is_crowd(entry),
            bool(entry.get("bbox")),
        )
        if image is None or image not in known:
            log.repaired(_Annotation(*fields).place, "annotations of unknown images")
        else:
            grouped[image].append(fields)
    return grouped


def _note_odd_ids(images: list[Any], annotations: list[Any], log: IssueLog) -> None:
    """Note ids that are text, and annotations that share one.

    They are harmless here, not in every program.
    """
    entries = [entry for entry in annotations if isinstance(entry, dict)]
    ids = [entry.get("id") for entry in images if isinstance(entry, dict)]
    ids += [entry.get(key) for key in ("id", "image_id") for entry in entries]
    text = next((value for value in ids if isinstance(value, str)), None)
    if text is not None:
        log.note("", "ids that are text", "compared as numbers where they are some")
    own = [key for entry in entries if (key := as_id(entry.get("id"))) is not None]
    if len(set(own)) < len(own):
        log.note("", "annotations that share an id", "objects are numbered from 1 in every image")


def _note_tracks(images: list[Any], annotations: list[Any], log: IssueLog) -> None:
    """Note objects that have an id from image to image, in a file that does not say which images are a video."""
    if any(isinstance(entry, dict) and "video_id" in entry for entry in images):
        return
    seen: dict[int | str, Any] = {}
    for entry in annotations:
        track = track_of(entry) if isinstance(entry, dict) else None
        if track is not None and seen.setdefault(track, entry.get("image_id")) != entry.get("image_id"):
            log.note("", TRACKED_STILLS, "read as stills; dataset.format=ytvis reads each folder's images as a video")
            return


def _chosen(images: list[_Image], videos: Sequence[str] | None, path: Path) -> list[_Image]:
    """Return the images of the wanted names, each the ``file_name`` or its stem."""
    if videos is None:
        return images
    wanted = set(videos)
    stems = [PurePosixPath(image.file_name).stem for image in images]
    names = [stem if stem in wanted else image.file_name for image, stem in zip(images, stems, strict=True)]
    return [images[index] for index in choose_videos(names, videos, path)]


def _pack(images: list[_Image], grouped: dict[int | str, list[_Fields]]) -> PackedList:
    def entries() -> Iterator[tuple[str, _Fields, list[_Fields]]]:
        counts: dict[str, int] = {}
        for image in images:
            stem = PurePosixPath(image.file_name).stem
            yield _unique(stem, counts), tuple(image), grouped.get(image.key, [])

    try:
        return PackedList(entries())
    except RecursionError:
        for annotations in grouped.values():
            annotations[:] = [_without_depth(fields) for fields in annotations]
        return PackedList(entries())


def _without_depth(fields: _Fields) -> _Fields:
    """Return an annotation that can be copied.

    A segmentation that is nested too deeply becomes a damaged one that is not.
    """
    try:
        pickle.dumps(fields)
    except RecursionError:
        annotation = _Annotation(*fields)
        return tuple(annotation._replace(segmentation=[[reprlib.repr(annotation.segmentation)]]))
    return fields


def _open_frame(folder: Path, image: _Image, log: IssueLog, bounds: Bounds) -> tuple[ImageFile, int, int] | None:
    """Return the image's file, turned as annotators saw it, with height and width.

    None, and an issue, if it is damaged.

    Tools differ in whether they heed EXIF orientation: the size in the JSON decides. Where it cannot (a square image, a
    half turn, no size), annotations are taken to be drawn on the upright image.
    """
    path = folder / image.file_name
    try:
        bounds.check(path)
        stored, oriented = image_size(path)
    except UserError as error:
        log.refused(path, error)
        return None
    if image.size in (None, oriented):
        return ImageFile(path), *oriented
    if image.size == stored:
        log.issues.append(Issue("repaired", str(path), "", "images annotated as stored", "read without EXIF rotation"))
        return ImageFile(path, orient=False), *stored
    assert image.size is not None
    problem = f"the image is {sides(oriented)} pixels, the JSON says {shown(sides(image.size))}"
    log.issues.append(Issue("error", str(path), "", problem, "correct the JSON's size, or put the right image there"))
    return None


def _is_crowd(annotation: dict[str, Any]) -> bool:
    return as_id(annotation.get("iscrowd")) not in (None, 0)


def _unique(stem: str, counts: dict[str, int]) -> str:
    """Return ``stem``, or ``stem_2``, ``stem_3``, … if that is taken.

    ``counts`` holds the names taken so far.
    """
    name = stem
    while name in counts:
        counts[stem] += 1
        name = f"{stem}_{counts[stem]}"
    counts[name] = 1
    return name
