"""YOLO's segmentation format: a text file an image, a line an object: ``class x1 y1 x2 y2 …`` in shares of the sides.

Images and label files are in folders ``images`` and ``labels`` of the same layout, or beside each other. The names of
the classes are in a YAML (``data.yaml``) in the folder or above it.

Format: https://docs.ultralytics.com/datasets/segment
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ...core.errors import UserError
from ...core.files import refuse_irregular
from .file_names import FITTING, renamed, utf8_name
from .label_files import LabelFileSource, LabelledImage, Shape, files_below, images_below, label_file_source
from .parsing import IssueLog, as_id, shown
from .reader import Location, OpenOptions

IMAGES, LABELS = "images", "labels"
NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""What the file with the classes' names is called."""

_LINE = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*")
_LOOKED_AT = 100  # label files from which a data set is recognised
_MOST_BYTES = 64 * 2**20
_ROUNDING = 0.01  # share of the side by which tools let polygons leave the image


@dataclass
class YoloSource(LabelFileSource):
    """Images with YOLO's label files; ``names`` are the classes' by number."""

    names: dict[int, str] = field(default_factory=dict)

    def shapes(self, image: LabelledImage, size: tuple[int, int], log: IssueLog) -> list[Shape]:
        """Return an object for every line."""
        assert image.labels is not None
        shapes = []
        for number, line in enumerate(_read_lines(image.labels), start=1):
            if line.strip() and (shape := self._shape(f"line {number}", line, size, log)) is not None:
                shapes.append(shape)
        return shapes

    def _shape(self, entry: str, line: str, size: tuple[int, int], log: IssueLog) -> Shape | None:
        key, *texts = line.split()
        try:
            kind, values = int(key), [float(text) for text in texts]
        except ValueError:
            log.error(entry, f"is not a class and numbers: {shown(line.strip(), 40)!r}")
            return None
        if len(values) == 4:
            log.error(entry, "is a box, which has no mask", "export the data set for segmentation, with polygons")
            return None
        if any(not math.isfinite(value) or not -_ROUNDING <= value <= 1 + _ROUNDING for value in values):
            log.error(entry, "holds coordinates outside 0–1", "write them as shares of the image's sides")
            return None
        if kind not in self.names:
            log.repaired(entry, "annotations of an unknown category", "kept without one")
        height, width = size
        polygon = [value * (height if place % 2 else width) for place, value in enumerate(values)]
        return Shape(entry, entry, self.names.get(kind), [polygon])


class YoloReader:
    """Label files of numbers, beside the images or in a folder of their own."""

    name = "yolo"
    order = 10
    looks_for = "YOLO's *.txt beside the images, or in a folder 'labels'"

    def recognise(self, location: Location) -> Location | None:
        found = _folders(location)
        if found is None or found.annotations is None:
            return None
        images, texts = images_below(found.folder), _texts(found.annotations)
        called = [*(texts.keys() & images.keys()), *renamed(texts, images)]
        return found if any(_looks_like_labels(texts[name]) for name in called[:_LOOKED_AT]) else None

    def open(self, location: Location, options: OpenOptions) -> YoloSource:
        """List the images of a folder with their label files, reading none yet.

        ``location.folder`` holds the images, or a folder of images and one of labels; ``location.annotations`` the
        label files, in the same layout. Images are called by their paths below the folder, without extension.

        Raises:
            UserError: a folder is missing, there are no label files, or there is no image of a wanted name.
        """
        if not location.folder.is_dir():
            raise UserError(f"{location.folder}: no such image folder", "data.missing-folder")
        found = _folders(location)
        if found is None or found.annotations is None:
            raise UserError(
                f"{location.folder}: no YOLO label files: neither *.txt beside the images nor a folder '{LABELS}'; "
                "name that folder as the ann_file",
                "yolo.no-labels",
            )
        labels = found.annotations
        images = images_below(found.folder)
        log = IssueLog(str(labels))
        texts = _texts(labels)
        for name, image in renamed(texts, images).items():
            texts[image] = texts.pop(name)
            log.repaired(f"{name}.txt", FITTING, f"read for {shown(image)}")
        listed = [LabelledImage(name, image, texts.get(name)) for name, image in images.items()]
        for name, path in texts.items():
            if name not in images and _looks_like_labels(path):
                log.repaired(f"{name}.txt", "label files without an image")
        names = _categories(found.folder, log)
        return label_file_source(YoloSource, listed, found, options, names.values() or None, log, names=names)


READER = YoloReader()


def _texts(labels: Path) -> dict[str, Path]:
    """Return the text files of a folder and of those in it, by relative path without extension."""
    return {
        utf8_name(path.relative_to(labels).with_suffix("").as_posix()): path
        for path in files_below(labels)
        if path.suffix == ".txt"
    }


def _folders(location: Location) -> Location | None:
    """Return the folders of images and of label files; None where none are clear."""
    folder, annotations = location.folder, location.annotations
    if annotations is not None:
        return location if annotations.is_dir() else None
    if (folder / IMAGES).is_dir() and (folder / LABELS).is_dir():
        return Location(folder / IMAGES, folder / LABELS)
    if (beside := _labels_beside(folder.absolute())) is not None:
        return Location(folder, beside)
    return Location(folder, folder) if any(folder.glob("*.txt")) else None


def _labels_beside(folder: Path) -> Path | None:
    """Return the folder of labels as YOLO looks for it: ``labels`` in place of the last ``images`` of the path."""
    parts = list(folder.parts)
    places = [place for place, part in enumerate(parts) if part == IMAGES]
    if not places:
        return None
    parts[places[-1]] = LABELS
    labels = Path(*parts)
    return labels if labels.is_dir() else None


def _categories(folder: Path, log: IssueLog) -> dict[int, str]:
    """Return the names of the classes by number, from the YAML in the folder or at most three above it."""
    for place in (folder, *list(folder.absolute().parents)[:3]):
        for path in (place / name for name in NAMES):
            if path.exists() and not path.is_dir():
                return _read_names(path)
    log.note("", f"no {NAMES[0]} with the classes' names", "objects have no category")
    return {}


def _read_names(path: Path) -> dict[int, str]:
    """Read ``names``: a list, or a mapping from numbers."""
    refuse_irregular(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {shown(' '.join(str(error).split()), 200)}", "yolo.names") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(
        isinstance(as_id(key), int) and isinstance(name, (str, int, float)) for key, name in names.items()
    ):
        raise UserError(
            f"{path}: has no list 'names' of the classes: write names: [cell, nucleus], in the order of their numbers",
            "yolo.names",
        )
    return {int(key): str(name) for key, name in names.items()}


def _read_lines(path: Path) -> list[str]:
    refuse_irregular(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: over {_MOST_BYTES} bytes, too long for labels of an image", "yolo.labels")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "yolo.labels") from None


def _looks_like_labels(path: Path) -> bool:
    """Return whether the first line that says something is a class and at least four numbers."""
    return next((_LINE.fullmatch(line) is not None for line in _head(path) if line.strip()), False)


def _head(path: Path) -> Iterator[str]:
    try:
        refuse_irregular(path)
        with open(path, encoding="utf-8-sig") as file:
            for _ in range(5):
                yield file.readline(1_000_000)
    except (OSError, ValueError, UserError):
        return
