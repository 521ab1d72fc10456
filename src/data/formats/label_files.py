"""Stills with a label file each, as YOLO and LabelMe write them: what their readers share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pycocotools import mask as coco_mask

from ...core.errors import UserError
from ...core.files import refuse_unreadable
from ..decode.segmentation import FLAT_PARTS, check_segmentation, parse_segmentation, reaches_outside
from ..decode.video import is_image, natural
from ..records import RLE, Issue, VideoRecord
from .file_names import utf8_name
from .parsing import Bounds, Categories, IssueLog, choose_videos, make_objects, open_frames, with_void
from .reader import Location, OpenOptions


@dataclass(frozen=True)
class Shape:
    """A part of an object.

    Attributes:
        entry: what messages call it, such as ``line 3``.
        instance: shapes of the same instance are one object.
        category: name of the class; None where it has none.
        segmentation: polygons in pixels, COCO's RLE, or a mask.
    """

    entry: str
    instance: Hashable
    category: str | None
    segmentation: list[list[float]] | RLE


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label file; None: it has none."""

    name: str
    image: Path
    labels: Path | None


@dataclass
class LabelFileSource(ABC):
    """Images with label files; see :class:`src.data.records.Source`. Subclasses parse one."""

    name: str
    files: list[Path]
    images: list[LabelledImage]
    max_objects: int
    bounds: Bounds
    chosen: Categories = field(default_factory=Categories)
    issues: list[Issue] = field(default_factory=list)

    @abstractmethod
    def shapes(self, image: LabelledImage, size: tuple[int, int], log: IssueLog) -> list[Shape]:
        """Return the shapes of an image with a label file and this (height, width).

        Raises:
            UserError: the file as a whole cannot be read.
        """

    def labelled_size(self, image: LabelledImage) -> tuple[int, int] | None:
        """Return the (height, width) that labels say they were drawn at, which decides about EXIF rotation."""
        return None

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> str:
        return self.images[index].name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        image = self.images[index]
        log = IssueLog(str(image.labels or image.image))
        if image.labels is None:
            log.repaired("", "images without a label file")
            return None, log.issues
        try:
            self.bounds.check(image.labels)
            (frame,), size = open_frames([image.image], self.labelled_size(image), log, self.bounds)
            if frame is None or size is None:
                return None, log.issues
            shapes = self.shapes(image, size, log)
        except UserError as error:
            log.refused(image.labels, error)
            return None, log.issues
        tracks, categories = _objects(shapes, size, log)
        kept, areas = self.chosen.select(tracks, categories, log)
        objects = make_objects(kept, self.max_objects, log, categories)
        if not objects:
            log.repaired("", "images without objects")
            return None, log.issues
        return VideoRecord(image.name, *size, [frame], objects, void=with_void({}, areas, objects)), log.issues


SourceT = TypeVar("SourceT", bound=LabelFileSource)


def label_file_source(
    source: type[SourceT],
    images: list[LabelledImage],
    location: Location,
    options: OpenOptions,
    categories: Iterable[str] | None,
    log: IssueLog,
    **facts: Any,
) -> SourceT:
    """Return a source of the wanted images.

    Args:
        source: class of the format.
        images: all images of the data set.
        location: image folder, and the folder of label files, or the one file for all images.
        options: what is read of it.
        categories: names of all classes; None: not known.
        log: what was met in listing them.
        facts: what the class has beside :class:`LabelFileSource`.

    Raises:
        UserError: there is no image, or no category, of a wanted name.
    """
    folder, labels = location.folder, location.annotations or location.folder
    chosen = choose_videos([image.name for image in images], options.videos, folder)
    return source(
        name=options.name,
        files=list(dict.fromkeys([folder, labels])),
        images=[images[index] for index in chosen],
        max_objects=options.max_objects,
        chosen=Categories.of(options, categories, log),
        issues=log.issues if options.videos is None else [],
        bounds=Bounds.of(options.follow_links, folder, labels if labels.is_dir() else labels.parent),
        **facts,
    )


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it, in natural order; hidden ones are left out."""
    for at, folders, files in os.walk(folder, onerror=refuse_unreadable):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        yield from (Path(at) / name for name in sorted(files, key=natural) if not name.startswith("."))


def images_below(folder: Path) -> dict[str, Path]:
    """Return the images of a folder and of those in it, by relative path without extension."""
    return {
        utf8_name(path.relative_to(folder).with_suffix("").as_posix()): path
        for path in files_below(folder)
        if is_image(path)
    }


def _objects(
    shapes: Sequence[Shape], size: tuple[int, int], log: IssueLog
) -> tuple[dict[int, list[RLE]], dict[int, str | None]]:
    """Return the objects of an image by number, from 1 in the file's order, and their categories."""
    parts: dict[Hashable, list[RLE]] = {}
    names: dict[Hashable, str | None] = {}
    for shape in shapes:
        if (mask := _mask(shape, size, log)) is not None:
            parts.setdefault(shape.instance, []).append(mask)
            names.setdefault(shape.instance, shape.category)
    tracks = {number: [_union(masks)] for number, masks in enumerate(parts.values(), start=1)}
    return tracks, dict(enumerate(names.values(), start=1))


def _mask(shape: Shape, size: tuple[int, int], log: IssueLog) -> RLE | None:
    if isinstance(shape.segmentation, RLE):
        mask = shape.segmentation
    elif all(len(part) < 6 and len(part) % 2 == 0 for part in shape.segmentation):
        log.repaired(shape.entry, FLAT_PARTS)
        return None
    else:
        problem = check_segmentation(shape.segmentation, *size)
        if problem is not None:
            log.error(shape.entry, problem)
            return None
        if reaches_outside(shape.segmentation, *size):
            log.repaired(shape.entry, "polygons that reach out of the image", "clipped")
        mask = parse_segmentation(shape.segmentation, *size)
    if not mask.area():
        log.repaired(shape.entry, "annotations that cover no pixel")
        return None
    return mask


def _union(masks: list[RLE]) -> RLE:
    return masks[0] if len(masks) == 1 else RLE(coco_mask.merge([mask.rle for mask in masks]))
