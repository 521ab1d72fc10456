"""LabelMe's format: a JSON an image, with its shapes.

Polygons, rectangles, circles and masks are areas, and so are X-AnyLabeling's turned rectangles. Shapes of one
``group_id`` and label are one object.

Format: https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import UserError
from ..decode.segmentation import FLAT_PARTS
from ..records import RLE
from .file_names import FITTING, renamed
from .json_files import holds_keys, read_json
from .label_files import LabelFileSource, LabelledImage, Shape, files_below, images_below, label_file_source
from .parsing import IssueLog, as_id, declared_size, leaves_folder, shown
from .reader import Location, OpenOptions

_KEYS = "shapes", "imagePath"
_LOOKED_AT = 20  # JSON files from which a data set is recognised
_CIRCLE = 72  # corners of the polygon that stands for a circle
_LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2}
_NO_AREA = ("point", "points", "line", "linestrip")


@dataclass
class LabelmeSource(LabelFileSource):
    """Images with LabelMe's JSON files."""

    def labelled_size(self, image: LabelledImage) -> tuple[int, int] | None:
        """Return ``imageHeight`` and ``imageWidth``."""
        assert image.labels is not None
        content = read_json(image.labels, IssueLog(str(image.labels)))
        size = as_id(content.get("imageHeight")), as_id(content.get("imageWidth"))
        return declared_size({"height": size[0], "width": size[1]})

    def shapes(self, image: LabelledImage, size: tuple[int, int], log: IssueLog) -> list[Shape]:
        """Return the shapes that enclose something."""
        labels = image.labels
        assert labels is not None
        entries = read_json(labels, log).get("shapes")
        if not isinstance(entries, list):
            raise UserError(f"{labels}: has no list 'shapes'", "labelme.shapes")
        declared = self.labelled_size(image)
        if declared not in (None, size):
            raise UserError(
                f"{labels}: says that the image has {declared[1]}×{declared[0]} pixels, it has {size[1]}×{size[0]}",
                "labelme.size",
            )
        found = (_shape(f"shapes[{place}]", entry, size, log) for place, entry in enumerate(entries))
        return [shape for shape in found if shape is not None]


class LabelmeReader:
    """JSON files with ``shapes`` and ``imagePath``, beside the images or in a folder of their own."""

    name = "labelme"
    order = 10
    looks_for = "LabelMe's *.json, one an image"

    def recognise(self, location: Location) -> Location | None:
        place = location.annotations or location.folder
        if not place.is_dir():
            return None
        return location if any(_is_labelme(path) for path in islice(_json_files(place), _LOOKED_AT)) else None

    def open(self, location: Location, options: OpenOptions) -> LabelmeSource:
        """List the images that the JSON files name.

        ``location.folder`` holds the images, ``location.annotations`` the JSON files; without it they are beside the
        images. An image is the file that ``imagePath`` names, seen from the JSON or from the folder of images, or else
        the image that is called like the JSON. Images are called by the JSONs' paths, without extension.

        Raises:
            UserError: a folder is missing, no JSON file is LabelMe's, or there is no image of a wanted name.
        """
        folder, place = location.folder, location.annotations or location.folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        log, images = IssueLog(str(place)), images_below(folder)
        paths = {path.relative_to(place).with_suffix("").as_posix(): path for path in _json_files(place)}
        listed, claimed, labels = [], set(), set()
        for name, path in paths.items():
            content = _read(path, log) if _is_labelme(path) else None
            if content is None:
                continue
            labels |= _labels(content)
            image = _image_of(content.get("imagePath"), path, name, folder, images, log)
            if image is not None:
                claimed.add(image)
                listed.append(LabelledImage(name, image, path))
        if not listed and not log.issues:
            raise UserError(f"{place}: no LabelMe files: no *.json with 'shapes' and 'imagePath'", "labelme.no-files")
        for path in images.values():
            if path not in claimed:
                log.repaired(str(path.relative_to(folder)), "images without a label file")
        return label_file_source(LabelmeSource, listed, location, options, sorted(labels), log)


READER = LabelmeReader()


def _json_files(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder) if path.suffix.lower() == ".json")


def _is_labelme(path: Path) -> bool:
    try:
        return holds_keys(path, *_KEYS)
    except OSError:
        return False


def _read(path: Path, log: IssueLog) -> dict[str, Any] | None:
    """Return what a JSON file holds; None, and an issue, where it cannot be read."""
    try:
        return read_json(path, log)
    except UserError as error:
        log.refused(path, error)
        return None


def _labels(content: dict[str, Any]) -> set[str]:
    """Return the labels of a file's shapes."""
    shapes = content.get("shapes")
    found = (shape.get("label") for shape in shapes if isinstance(shape, dict)) if isinstance(shapes, list) else ()
    return {str(label) for label in found if isinstance(label, (str, int))}


def _image_of(named: Any, path: Path, name: str, folder: Path, images: dict[str, Path], log: IssueLog) -> Path | None:
    """Return the image that a JSON file names; None, and an issue, where there is none."""
    entry = path.name
    if isinstance(named, str) and named:
        relative = named.replace("\\", "/")
        base = PurePosixPath(relative).name
        places = (
            [folder / base] if leaves_folder(relative) else [path.parent / relative, folder / relative, folder / base]
        )
        for place in places:
            if os.path.isfile(place):  # Path.is_file raises where a name is too long
                return images.get(_key(place, folder), place)
    wanted = PurePosixPath(named.replace("\\", "/")).stem if isinstance(named, str) else ""
    fits = renamed([wanted], [key for key in images if "/" not in key]) if wanted else {}
    if wanted in fits:
        log.repaired(entry, FITTING, f"read with {shown(fits[wanted])}")
        return images[fits[wanted]]
    if name in images:
        if named:
            log.repaired(entry, "images found by the name of the label file", "imagePath names another")
        return images[name]
    log.error(entry, f"there is no image {shown(named)!r}, nor one called {name}", "put the image beside it")
    return None


def _key(path: Path, folder: Path) -> str:
    return path.with_suffix("").relative_to(folder).as_posix() if path.is_relative_to(folder) else ""


def _shape(entry: str, content: Any, size: tuple[int, int], log: IssueLog) -> Shape | None:
    if not isinstance(content, dict):
        log.error(entry, "is not an object")
        return None
    kind, label, group = content.get("shape_type") or "polygon", content.get("label"), as_id(content.get("group_id"))
    category = str(label) if isinstance(label, (str, int)) else None
    instance = entry if group is None else (group, category)
    if kind in _NO_AREA:
        log.repaired(entry, "points and lines, which enclose nothing")
        return None
    points = _points(content.get("points"))
    if points is None:
        log.error(entry, "its points are not pairs of numbers")
        return None
    if kind == "mask":
        mask = _pasted(content.get("mask"), points, size)
        if mask is None:
            log.error(entry, "its mask is not a picture, or reaches out of the image")
            return None
        return Shape(entry, instance, category, mask)
    polygon = _polygon(str(kind), points)
    if polygon is None and kind in _LEAST_POINTS and len(points) < _LEAST_POINTS[kind]:
        log.repaired(entry, FLAT_PARTS)
        return None
    if polygon is None:
        log.error(entry, f"is a {shown(kind)} of {len(points)} points", "draw it as a polygon of at least 3")
        return None
    return Shape(entry, instance, category, [polygon])


def _points(content: Any) -> list[tuple[float, float]] | None:
    try:
        points = [(float(x), float(y)) for x, y in content]
    except (TypeError, ValueError, OverflowError):
        return None
    return points if all(math.isfinite(value) for point in points for value in point) else None


def _polygon(kind: str, points: list[tuple[float, float]]) -> list[float] | None:
    """Return the outline of a shape: x, y, x, y, …; None where the points make none."""
    if kind in ("polygon", "rotation") and len(points) > 2:  # X-AnyLabeling's turned rectangle, by its corners
        return [value for point in points for value in point]
    if kind == "rectangle" and len(points) in (2, 4):
        xs, ys = zip(*points, strict=True)
        x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist(points[0], edge)
        angles = [2 * math.pi * place / _CIRCLE for place in range(_CIRCLE)]
        return [value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a))]
    return None


def _pasted(content: Any, points: list[tuple[float, float]], size: tuple[int, int]) -> RLE | None:
    """Return a shape's own mask, a PNG in base64 whose upper left corner is the first point, on the whole image."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
            inside_hw = np.array(image.convert("L")) > 0
    except (TypeError, ValueError, OSError, Image.DecompressionBombError):
        return None
    if not points:
        return None
    x, y = (round(value) for value in points[0])
    height, width = inside_hw.shape
    if x < 0 or y < 0 or y + height > size[0] or x + width > size[1]:
        return None
    mask_HW = np.zeros(size, dtype=bool)
    mask_HW[y : y + height, x : x + width] = inside_hw
    return RLE.encode(mask_HW)
