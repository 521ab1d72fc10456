"""Label Studio's own JSON: a list of tasks, an image each, with regions in percent of the image.

Brush strokes, polygons, rectangles and ellipses are areas, and each region is an object. Of a task with several
annotations the ground truth is read, or else the newest one.

Format: https://labelstud.io/guide/export#JSON
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...core.errors import UserError
from ..decode.brush_rle import decode_brush
from ..decode.video import is_image
from ..records import RLE
from .file_names import FileNames
from .json_files import annotation_json, find_json, holds_keys, read_json_list
from .label_files import LabelFileSource, LabelledImage, Shape, label_file_source
from .parsing import IssueLog, declared_size, shown
from .reader import Location, OpenOptions

_ELLIPSE = 72  # corners of the polygon that stands for an ellipse
_UPLOAD = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


@dataclass
class LabelStudioSource(LabelFileSource):
    """Images with the regions of their tasks, by the images' names."""

    regions: dict[str, list[Any]] = field(default_factory=dict)

    def labelled_size(self, image: LabelledImage) -> tuple[int, int] | None:
        """Return the size that the first region says its image has."""
        sizes = (declared_size(r, "original_") for r in self.regions[image.name] if isinstance(r, dict))
        return next((size for size in sizes if size is not None), None)

    def shapes(self, image: LabelledImage, size: tuple[int, int], log: IssueLog) -> list[Shape]:
        """Return the regions that enclose something."""
        declared = self.labelled_size(image)
        if declared not in (None, size):
            raise UserError(
                f"{image.labels}: {image.name}: says that the image has {declared[1]}×{declared[0]} pixels, it has "
                f"{size[1]}×{size[0]}",
                "label-studio.size",
            )
        regions = self.regions[image.name]
        named = {region["id"]: name for region in regions if (name := _category(region)) and "id" in region}
        found = (_shape(f"{image.name}, result[{n}]", region, named, size, log) for n, region in enumerate(regions))
        return [shape for shape in found if shape is not None]


class LabelStudioReader:
    """A JSON file of tasks with ``annotations``, exported by Label Studio as "JSON"."""

    name = "label_studio"
    order = 0
    looks_for = "Label Studio's export as JSON"

    def recognise(self, location: Location) -> Location | None:
        file, _ = find_json(location)
        tasks = file is not None and holds_keys(file, "annotations", "data", "was_cancelled")
        return Location(location.folder, file) if tasks else None

    def open(self, location: Location, options: OpenOptions) -> LabelStudioSource:
        """Read the tasks; ``location.folder`` holds the images, by the names that Label Studio gave them or had.

        Raises:
            UserError: the file or folder cannot be read, or there is no image of a wanted name.
        """
        folder, path = location.folder, annotation_json(location)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        log, files = IssueLog(str(path)), FileNames(folder)
        images, regions = [], {}
        for place, task in enumerate(read_json_list(path, log)):
            entry = f"task {task['id']}" if isinstance(task, dict) and "id" in task else f"tasks[{place}]"
            result = _result(entry, task, log)
            if result is None:
                continue
            name = _image_of(entry, task, files, log)
            if name in regions:
                log.error(entry, f"is a second task of the image {name}", "keep one of them")
            elif name is not None:
                regions[name] = result
                images.append(LabelledImage(name, folder / name, path))
        if not images and not log.issues:
            raise UserError(f"{path}: no tasks in it", "label-studio.no-tasks")
        categories = sorted({name for result in regions.values() for each in result if (name := _category(each))})
        return label_file_source(LabelStudioSource, images, location, options, categories, log, regions=regions)


READER = LabelStudioReader()


def _result(entry: str, task: Any, log: IssueLog) -> list[Any] | None:
    """Return the regions of a task's ground truth or newest annotation; None, and an issue, where there is none."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    if not isinstance(annotations, list):
        log.error(entry, "has no list 'annotations'", 'export the project as "JSON", not as "JSON-MIN"')
        return None
    finished = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    if not finished:
        log.repaired(entry, "tasks without an annotation")
        return None
    if len(finished) > 1:
        log.repaired(entry, "tasks with several annotations", "read the ground truth, or else the newest")
    chosen = max(finished, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at") or "")))
    result = chosen.get("result")
    if not isinstance(result, list):
        log.error(entry, "its annotation has no list 'result'")
        return None
    return result


def _image_of(entry: str, task: dict[str, Any], files: FileNames, log: IssueLog) -> str | None:
    """Return the relative path of a task's image; None, and an issue, where it is not found."""
    data = task.get("data")
    values = [task.get("file_upload"), *(data.values() if isinstance(data, dict) else ())]
    names = [each for each in values if isinstance(each, str) and _names_image(each)]
    for name in names:
        base = PurePosixPath(name.replace("\\", "/")).name
        for each in (name, _UPLOAD.sub("", base, count=1) if _UPLOAD.match(base) else name):
            if (found := files.find(each)) is not None:
                return found
    listed = shown(names[-1]) if names else "none"
    log.error(entry, f"there is no image {listed!r} in {files.folder}", "put it there, by its own name or this one")
    return None


def _names_image(text: str) -> bool:
    """Return whether a path or an address, with or without a query, is an image's."""
    return is_image(Path(text)) or is_image(Path(text.partition("?")[0]))


def _category(region: Any) -> str | None:
    """Return the first label of a region; None where it has none."""
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(value, dict):
        return None
    labels = value.get(str(region.get("type"))) or value.get("labels")
    return str(labels[0]) if isinstance(labels, list) and labels else None


def _shape(entry: str, region: Any, named: dict[Any, str], size: tuple[int, int], log: IssueLog) -> Shape | None:
    """Return a region as a shape; ``named`` has labels by region, since a label may be a result of its own."""
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(value, dict):
        log.error(entry, "is not a region with a 'value'")
        return None
    kind = str(region.get("type", ""))
    if not kind.startswith(("brush", "polygon", "rectangle", "ellipse", "labels")):
        log.repaired(entry, "results that enclose nothing, such as points and choices")
        return None
    if region.get("image_rotation"):
        log.error(entry, "its image was turned in Label Studio", "turn it back there, or the file itself")
        return None
    try:
        area = RLE.encode(decode_brush(value["rle"], *size)) if "rle" in value else [_outline(value, size)]
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"its value is not that of a {kind}"
        log.error(entry, reason)
        return None
    key = region.get("id", entry)
    return Shape(entry, key, named.get(key, _category(region)), area)


def _outline(value: dict[str, Any], size: tuple[int, int]) -> list[float]:
    """Return a polygon, an ellipse or a rectangle in pixels: x, y, x, y, …

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    height, width = size
    if "points" in value:
        return [float(part) / 100 * side for x, y in value["points"] for part, side in ((x, width), (y, height))]
    x, y = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
    if "radiusX" in value:
        across, down = float(value["radiusX"]) / 100 * width, float(value["radiusY"]) / 100 * height
        angles = np.linspace(0, 2 * math.pi, _ELLIPSE, endpoint=False)
        corners = np.stack([across * np.cos(angles), down * np.sin(angles)], axis=1)
    else:
        across, down = float(value["width"]) / 100 * width, float(value["height"]) / 100 * height
        corners = np.array([[0, 0], [across, 0], [across, down], [0, down]])
    turn = math.radians(float(value.get("rotation") or 0))  # clockwise, about the upper left corner or the centre
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    outline: list[float] = (corners @ rotation + (x, y)).reshape(-1).tolist()
    return outline
