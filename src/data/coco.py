"""COCO annotations → records: every image with its annotations becomes a video of one frame.

Reads COCO as it ships (images elsewhere) and as labelling tools export it (Roboflow's ``_annotations.coco.json`` beside
the images, CVAT, Label Studio). What is harmless is left out or mended, and counted in ``DataSet.notes``; what is
damaged is a :class:`Finding`. Masks are kept run-length encoded and decoded on demand; pixels are read on demand.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from src.data.images import ImageFile, image_size
from src.data.parsing import Log, as_id, category_names, declared_size, leaves_folder, read_json
from src.data.records import RLE, DataSet, FrameSource, ObjectTrack, VideoRecord
from src.data.segmentation import check_segmentation, is_empty, parse_segmentation, reaches_outside
from src.errors import UserError

_REPORTED = 5
"""Findings that one error message quotes."""


@dataclass(frozen=True)
class Finding:
    """Something damaged in a data set: where it is, and what is wrong there. One line as text."""

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def load_coco(img_folder: str | Path, ann_file: str | Path, name: str = "coco", max_ann_per_img: int = 200) -> DataSet:
    """The images of a COCO file that have objects, each as a video of one frame, in the file's order.

    Args:
        img_folder: what the file's ``file_name`` entries are relative to.
        ann_file: the COCO JSON.
        name: of the resulting data set.
        max_ann_per_img: objects kept per image, the largest by mask area.

    Object ids are 1, 2, … in the file's order. Crowds are left out, unless the file has nothing else.

    Raises:
        UserError: the file or the folder cannot be read, nothing usable is in it, or entries are damaged (the first
            few of them are quoted, one a line).
    """
    dataset, findings = scan_coco(img_folder, ann_file, name, max_ann_per_img)
    if findings:
        raise UserError(_summary(ann_file, findings))
    if not dataset.videos:
        reasons = ", ".join(f"{count} {kind}" for kind, count in dataset.notes.items())
        raise UserError(f"{ann_file}: no image with a usable annotation: {reasons or 'the file lists no images'}")
    return dataset


def scan_coco(
    img_folder: str | Path, ann_file: str | Path, name: str = "coco", max_ann_per_img: int = 200
) -> tuple[DataSet, list[Finding]]:
    """As :func:`load_coco`, but going on past damaged entries: the data set without them, and all of them.

    Raises:
        UserError: the file or the folder as a whole cannot be read.
    """
    folder = Path(img_folder)
    content = _read_coco(Path(ann_file))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder")
    log = _Log()
    images = _index_images(content["images"], log)
    annotations = _group_by_image(content["annotations"], images, log)
    categories = category_names(content.get("categories"))
    videos: list[VideoRecord] = []
    taken: set[str] = set()
    for key, image in images.items():
        if key not in annotations:
            log.notes["images without usable annotations left out"] += 1
            continue
        frame = _open_frame(folder, image, log)
        if frame is None:
            continue
        source, height, width = frame
        objects = _objects(annotations[key], image, height, width, categories, max_ann_per_img, log)
        if not objects:
            log.notes["images without usable annotations left out"] += 1
            continue
        frames: list[FrameSource] = [source]
        videos.append(VideoRecord(_unique(Path(image.file_name).stem, taken), height, width, frames, objects))
    return DataSet(name, videos, dict(log.notes)), log.findings


@dataclass
class _Log:
    """What the scan has met so far."""

    notes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def damaged(self, place: str, problem: str) -> None:
        self.findings.append(Finding(place, problem))


@dataclass(frozen=True)
class _Image:
    """An entry of ``images``; ``size`` is its (height, width), None where the file does not say."""

    file_name: str
    size: tuple[int, int] | None


def _summary(ann_file: str | Path, findings: list[Finding]) -> str:
    if len(findings) == 1:
        return f"{ann_file}: {findings[0]}; fix or delete it"
    first = f", the first {_REPORTED}" if len(findings) > _REPORTED else ""
    lines = "".join(f"\n  {finding}" for finding in findings[:_REPORTED])
    return f"{ann_file}: {len(findings)} damaged entries to fix or delete{first}:{lines}"


def _read_coco(path: Path) -> dict[str, Any]:
    """The COCO object of a file: a dict whose ``images`` and ``annotations`` are lists."""
    content = read_json(path, Log(str(path)))
    missing = [key for key in ("images", "annotations") if not isinstance(content.get(key), list)]
    if missing:
        keys = ", ".join(repr(key) for key in list(content)[:8]) or "none"
        raise UserError(f"{path}: not a COCO file: no list {' and '.join(map(repr, missing))} (its keys: {keys})")
    return content


def _index_images(entries: list[Any], log: _Log) -> dict[int | str, _Image]:
    """``images`` by id, in the file's order; an id that two files share is left out."""
    images: dict[int | str, _Image] = {}
    shared: set[int | str] = set()
    for position, entry in enumerate(entries):
        place = f"images[{position}]"
        if not isinstance(entry, dict):
            log.damaged(place, "is not an object")
            continue
        key = as_id(entry.get("id", entry.get("image_id")))
        if key is None:
            log.damaged(place, "has no id")
            continue
        place = f"image {key}"
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            log.damaged(place, "has no file_name")
            continue
        # Annotation tools on Windows write its separators.
        image = _Image(file_name.replace("\\", "/"), declared_size(entry))
        if leaves_folder(image.file_name):
            log.damaged(place, f"file_name {file_name!r} is absolute or leaves the image folder")
        elif key not in images:
            images[key] = image
        elif images[key].file_name == image.file_name:
            log.notes["images listed more than once"] += 1
        else:
            log.damaged(place, f"two files have this id: {images[key].file_name} and {image.file_name}")
            shared.add(key)
    return {key: image for key, image in images.items() if key not in shared}


def _group_by_image(
    entries: list[Any], images: Iterable[int | str], log: _Log
) -> dict[int | str, list[tuple[str, dict[str, Any]]]]:
    """The annotations that have a segmentation and count as objects: image id → (place for messages, annotation)."""
    objects = [entry for entry in entries if isinstance(entry, dict) and not is_empty(entry.get("segmentation"))]
    # CVAT flags every mask that was painted as a crowd. A file of nothing but crowds means objects.
    crowds_only = bool(objects) and all(_is_crowd(entry) for entry in objects)
    known = set(images)
    grouped: dict[int | str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            log.damaged(f"annotations[{position}]", "is not an object")
            continue
        key = as_id(entry.get("image_id"))
        if key is None or key not in known:
            log.notes["annotations of unknown images left out"] += 1
        elif is_empty(entry.get("segmentation")):
            log.notes["annotations without a segmentation left out"] += 1
        elif _is_crowd(entry) and not crowds_only:
            log.notes["crowd annotations left out"] += 1
        else:
            if crowds_only:
                log.notes["crowd annotations used as objects, as there are no others"] += 1
            if not entry.get("bbox"):
                log.notes["annotations without a box (none is needed)"] += 1
            grouped[key].append((f"annotation {entry.get('id', f'at [{position}]')}", entry))
    return grouped


def _open_frame(folder: Path, image: _Image, log: _Log) -> tuple[ImageFile, int, int] | None:
    """The image's file, turned as the annotator saw it, with height and width; None, and a finding, if it is damaged.

    Tools differ in whether they heed EXIF orientation. The size in the JSON tells which pixels the annotations were
    drawn on; where it cannot (a square image, a half turn, no size) they are taken to be upright.
    """
    path = folder / image.file_name
    try:
        stored, oriented = image_size(path)
    except UserError as error:
        log.damaged(str(path), str(error).removeprefix(f"{path}: "))
        return None
    if image.size in (None, oriented):
        return ImageFile(path), *oriented
    if image.size == stored:
        log.notes["images annotated as stored, so read without their EXIF rotation"] += 1
        return ImageFile(path, orient=False), *stored
    (height, width), (json_height, json_width) = oriented, image.size
    log.damaged(str(path), f"the image is {width}×{height} pixels, the JSON says {json_width}×{json_height}")
    return None


def _objects(
    annotations: list[tuple[str, dict[str, Any]]],
    image: _Image,
    height: int,
    width: int,
    categories: dict[int | str, str],
    limit: int,
    log: _Log,
) -> list[ObjectTrack]:
    """The objects of one image, at most ``limit``, numbered from 1 in the file's order."""
    found: list[tuple[int, RLE, str | None]] = []
    for place, annotation in annotations:
        segmentation = annotation["segmentation"]
        problem = check_segmentation(segmentation, height, width)
        if problem is not None:
            log.damaged(f"{place} ({image.file_name})", problem)
            continue
        if isinstance(segmentation, list) and reaches_outside(segmentation, height, width):
            log.notes["polygons that reach out of the image clipped"] += 1
        mask = parse_segmentation(segmentation, height, width)
        # From the mask: the JSON's area is missing or that of the box in the exports of several tools.
        area = int(coco_mask.area(mask.rle))
        if area == 0:
            log.notes["annotations that cover no pixel left out"] += 1
            continue
        key = as_id(annotation.get("category_id"))
        category = None if key is None else categories.get(key)
        if category is None:
            log.notes["annotations of an unknown category kept without one"] += 1
        found.append((area, mask, category))
    if len(found) > limit:
        log.notes[f"annotations beyond the {limit} largest of their image left out"] += len(found) - limit
    largest = sorted(range(len(found)), key=lambda index: -found[index][0])[:limit]
    kept = [found[index] for index in sorted(largest)]
    return [ObjectTrack(number, [mask], category) for number, (_, mask, category) in enumerate(kept, start=1)]


def _is_crowd(annotation: dict[str, Any]) -> bool:
    return as_id(annotation.get("iscrowd")) not in (None, 0)


def _unique(stem: str, taken: set[str]) -> str:
    """``stem``, or ``stem_2``, ``stem_3``, … if that is taken; the result is taken from then on."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name
