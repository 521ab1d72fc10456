"""Prompts from the command line or a JSON file.

On the command line a prompt may name its object and frame: ``2@30:120,80`` is a click for object 2 on frame 30.
``2:…`` is on frame 0, and a prompt without prefix is for object 1 on frame 0. JSON holds a list of entries::

    [{"object": 1, "frame": 0, "box": [10, 20, 110, 220]},
     {"object": 2, "frame": 30, "points": [[120, 80], [140, 90]], "labels": [1, 0]},
     {"object": 3, "mask": "first_frame.png"}]

``object`` and ``frame`` may be left out as above, and ``labels`` where every click is on the object (1). An entry may
name the object's ``category``, and for unrelated pictures the ``image``, by its file name. A box may stand with points.
A mask is an image file (relative to the JSON file) or COCO's RLE. Objects are numbered 1 to 255, frames from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..core.errors import UserError
from .decode.labels import label_tracks, read_label_image
from .decode.segmentation import check_segmentation, parse_segmentation

MAX_OBJECT_ID = 255  # masks are written as palette images, in which 0 is the background


@dataclass(frozen=True)
class Prompt:
    """A prompt for one object on one frame.

    It is a mask, or a box and clicks.

    Attributes:
        object_id: which object; one not seen before is added.
        points: clicks (x, y), in pixels of the frame.
        labels: one a click: 1 on the object, 0 beside it.
        box: (x0, y0, x1, y1), in pixels of the frame.
        mask: bool (H, W) of the frame.
        category: name of the object's class, for what is written; None: it has none.

    Raises:
        ValueError: nothing is pointed at, a mask stands with something else, or labels and clicks differ in number.
    """

    object_id: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = field(default=None, repr=False)
    category: str | None = None

    def __post_init__(self) -> None:
        if len(self.points) != len(self.labels):
            raise ValueError(f"object {self.object_id}: {len(self.points)} points, but {len(self.labels)} labels")
        others = bool(self.points) + (self.box is not None)
        if self.mask is None and not others:
            raise ValueError(f"object {self.object_id}: a prompt needs points, a box or a mask")
        if self.mask is not None and others:
            raise ValueError(f"object {self.object_id}: a mask prompt takes neither points nor a box")


PromptsByFrame = dict[int, list[Prompt]]
"""Frame number → the prompts on it, one an object."""

PromptsByImage = dict[str | None, list[Prompt]]
"""File name of a picture → the prompts on it, one an object; None: the prompts on every picture without its own."""

_Key = tuple[str | None, int, int]  # image, frame, object


class _Entry(BaseModel):
    """One entry of the JSON."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    object: int = Field(1, ge=1, le=MAX_OBJECT_ID)
    frame: int = Field(0, ge=0)
    box: tuple[float, float, float, float] | None = None
    points: list[tuple[float, float]] = []
    labels: list[int] | None = None
    mask: str | dict[str, Any] | None = None
    image: str | None = None
    category: str | None = None


def parse_prompts(
    boxes: Iterable[str] = (),
    points: Iterable[str] = (),
    masks: Iterable[str] = (),
    file: str | Path | None = None,
    mask_threshold: float | None = None,
) -> PromptsByFrame:
    """Return the prompts of a command line and a JSON file, by frame and object.

    Args:
        boxes: ``[object[@frame]:]x0,y0,x1,y1``.
        points: ``[object[@frame]:]x,y[,label]``.
        masks: ``[object[@frame]:]file``. A mask file is read as those of data sets are (:func:`read_mask`). Of several
            objects in it the prefix names one; a single one is the object that the prefix names.
        file: the JSON file.
        mask_threshold: ``dataset.mask_threshold``, for mask files that are not labels.

    Raises:
        UserError: a prompt cannot be understood, a file cannot be read, an object has two masks or boxes on a frame,
            or there are no prompts.
    """
    gathered: PromptsByFrame = {}
    for (image, frame, _), prompt in _gather(boxes, points, masks, file, mask_threshold):
        if image is not None:
            raise UserError(f"{file}: an entry is for the picture {image}: add --stills", "prompt.image")
        gathered.setdefault(frame, []).append(prompt)
    return gathered


def parse_still_prompts(
    boxes: Iterable[str] = (),
    points: Iterable[str] = (),
    masks: Iterable[str] = (),
    file: str | Path | None = None,
    mask_threshold: float | None = None,
) -> PromptsByImage:
    """Return the prompts for unrelated pictures, whose frames are all number 0.

    Args:
        boxes, points, masks, file, mask_threshold: as of :func:`parse_prompts`. What the command line says, and entries
            without an ``image``, are for every picture that has no prompts of its own.

    Raises:
        UserError: as of :func:`parse_prompts`, or a prompt is for a later frame.
    """
    gathered: PromptsByImage = {}
    for (image, frame, object_id), prompt in _gather(boxes, points, masks, file, mask_threshold):
        if frame:
            raise UserError(
                f"object {object_id} on frame {frame}: with --stills a picture has frame 0 only", "prompt.frame"
            )
        gathered.setdefault(image, []).append(prompt)
    return gathered


def _gather(
    boxes: Iterable[str], points: Iterable[str], masks: Iterable[str], file: str | Path | None, threshold: float | None
) -> Iterator[tuple[_Key, Prompt]]:
    """Yield prompts, one an object on a frame of an image, in their order."""
    found: dict[_Key, list[Prompt]] = {}

    def add(frame: int, prompt: Prompt, image: str | None = None) -> None:
        found.setdefault((image, frame, prompt.object_id), []).append(prompt)

    for text in boxes:
        object_id, frame, values = _numbers("--box", text, "x0,y0,x1,y1", 4, 4)
        add(frame, Prompt(object_id or 1, box=(values[0], values[1], values[2], values[3])))
    for text in points:
        object_id, frame, values = _numbers("--point", text, "x,y or x,y,label", 2, 3)
        label = values[2] if len(values) == 3 else 1
        add(frame, Prompt(object_id or 1, ((values[0], values[1]),), (_label(label, f"--point {text}"),)))
    for text in masks:
        object_id, frame, path = _prefix("--mask", text)
        for prompt in _mask_file(Path(path), object_id, threshold):
            add(frame, prompt)
    if file is not None:
        for entry, prompt in _read_json(Path(file), threshold):
            add(entry.frame, replace(prompt, category=entry.category), entry.image)
    if not found:
        raise UserError("nothing is pointed at: give --box, --point, --mask or --prompts", "prompt.none")
    for key in sorted(found, key=lambda key: (key[0] or "", *key[1:])):
        image, frame, object_id = key
        place = f"object {object_id} on frame {frame}" if image is None else f"{image}: object {object_id}"
        yield key, _together(found[key], place)


def check_prompts(prompts: PromptsByFrame, height: int, width: int) -> None:
    """Refuse prompts that do not fit the frames.

    These are points outside them, boxes without area, and masks of another size or empty.
    """
    for frame, on_frame in prompts.items():
        for prompt in on_frame:
            place = f"object {prompt.object_id} on frame {frame}"
            for x, y in prompt.points:
                _check_inside(place, "point", (x, y), height, width)
            if prompt.box is not None:
                x0, y0, x1, y1 = prompt.box
                _check_inside(place, "box", prompt.box, height, width)
                if x0 >= x1 or y0 >= y1:
                    raise UserError(
                        f"{place}: the box {_listed(prompt.box)} has no area: write it as x0,y0,x1,y1",
                        "prompt.empty-box",
                    )
            if prompt.mask is not None and prompt.mask.shape != (height, width):
                mask_height, mask_width = prompt.mask.shape
                raise UserError(
                    f"{place}: the mask is {mask_width}×{mask_height} pixels, the frames are {width}×{height}",
                    "prompt.mask-size",
                )
            if prompt.mask is not None and not prompt.mask.any():
                raise UserError(f"{place}: the mask is empty", "prompt.empty-mask")


def read_mask(path: str | Path, threshold: float | None = None) -> dict[int, np.ndarray]:
    """Read a mask file as those of data sets are read (:func:`~src.data.decode.labels.read_label_image`).

    Args:
        path: the file.
        threshold: ``dataset.mask_threshold``; None: values are labels.

    Returns:
        Object's number → mask, bool (H, W). Numbers are the file's own where all are 1 to 255, else counted from 1.

    Raises:
        UserError: the file is missing, damaged, or its values are no labels.
    """
    tracks, _ = label_tracks([read_label_image(Path(path), threshold)])
    found = {key: area.decode() for key, (area,) in tracks.items() if area is not None}
    if all(isinstance(key, int) and 1 <= key <= MAX_OBJECT_ID for key in found):
        return {int(key): mask_HW for key, mask_HW in found.items()}
    if len(found) > MAX_OBJECT_ID:
        raise UserError(
            f"{path}: {len(found)} objects, at most {MAX_OBJECT_ID} can be prompted", "prompt.object-number"
        )
    return dict(enumerate(found.values(), start=1))


def _prefix(option: str, text: str) -> tuple[int | None, int, str]:
    """Split ``[object[@frame]:]rest`` into the object (None: not said), the frame and the rest."""
    match = re.match(r"(?:(\d{1,9})(?:@(\d{1,9}))?:)?(.*)", text, re.DOTALL)
    assert match is not None, "every part of the pattern may be empty"
    object_id = int(match[1]) if match[1] else None
    if object_id is not None and not 1 <= object_id <= MAX_OBJECT_ID:
        raise UserError(f"{option} {text}: objects are numbered 1 to {MAX_OBJECT_ID}", "prompt.object-number")
    return object_id, int(match[2] or 0), match[3]


def _numbers(option: str, text: str, form: str, least: int, most: int) -> tuple[int | None, int, list[float]]:
    object_id, frame, rest = _prefix(option, text)
    try:
        values = [float(value) for value in rest.split(",")]
    except ValueError:
        values = []
    if not least <= len(values) <= most or not np.isfinite(values).all():
        raise UserError(f"{option} {text}: write it as [object[@frame]:]{form}", "prompt.form")
    return object_id, frame, values


def _label(value: float, place: str) -> int:
    if value not in (0, 1):
        raise UserError(f"{place}: a label is 1 (on the object) or 0 (beside it), not {value:g}", "prompt.label")
    return int(value)


def _mask_file(path: Path, object_id: int | None, threshold: float | None) -> list[Prompt]:
    """Return the objects of a mask file, or only ``object_id``."""
    masks = read_mask(path, threshold)
    if not masks:
        raise UserError(f"{path}: the mask is empty", "prompt.empty-mask")
    if object_id is None:
        return [Prompt(number, mask=mask_HW) for number, mask_HW in masks.items()]
    if len(masks) == 1:
        return [Prompt(object_id, mask=next(iter(masks.values())))]
    if object_id not in masks:
        raise UserError(
            f"{path}: there is no object {object_id} in this mask; it holds {_listed(masks)}", "prompt.no-such-object"
        )
    return [Prompt(object_id, mask=masks[object_id])]


def _read_json(path: Path, threshold: float | None) -> list[tuple[_Entry, Prompt]]:
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "file.missing") from None
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        lines = [f"  entry {'.'.join(map(str, e['loc'])) or 'list'}: {e['msg']}" for e in mistakes[:5]]
        raise UserError(
            f"{path}: {len(mistakes)} mistakes in the prompts\n" + "\n".join(lines), "prompt.json"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}", "prompt.json") from None
    return [
        (entry, prompt)
        for n, entry in enumerate(entries)
        for prompt in _from_entry(entry, f"{path}: entry {n}", path, threshold)
    ]


def _from_entry(entry: _Entry, place: str, path: Path, threshold: float | None) -> list[Prompt]:
    if isinstance(entry.mask, str):
        if entry.points or entry.box:
            raise UserError(f"{place}: a mask takes neither points nor a box", "prompt.combination")
        named = entry.object if "object" in entry.model_fields_set else None
        return _mask_file(path.parent / entry.mask, named, threshold)
    labels = [1] * len(entry.points) if entry.labels is None else entry.labels
    try:
        return [
            Prompt(
                entry.object,
                tuple(entry.points),
                tuple(_label(label, place) for label in labels),
                entry.box,
                None if entry.mask is None else _decoded(entry.mask, place),
            )
        ]
    except ValueError as error:
        raise UserError(f"{place}: {error}", "prompt.combination") from None


def _decoded(segmentation: dict[str, Any], place: str) -> np.ndarray:
    """Return a mask from COCO's RLE, whose size is taken from itself."""
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise UserError(
            f"{place}: a mask is a file name or COCO's RLE, {{'size': [height, width], 'counts': …}}", "prompt.rle"
        )
    if problem := check_segmentation(segmentation, *size):
        raise UserError(f"{place}: {problem}", "prompt.rle")
    return parse_segmentation(segmentation, *size).decode()


def _together(prompts: list[Prompt], place: str) -> Prompt:
    """Return clicks and a box for one object on one frame as one prompt."""
    masks = [p for p in prompts if p.mask is not None]
    boxes = [p for p in prompts if p.box is not None]
    if len(masks) > 1 or len(boxes) > 1 or (masks and len(prompts) > 1):
        raise UserError(f"{place}: give one mask, or one box with any number of points", "prompt.combination")
    points = tuple(point for p in prompts for point in p.points)
    labels = tuple(label for p in prompts for label in p.labels)
    categories = [p.category for p in prompts if p.category is not None]
    if len(set(categories)) > 1:
        raise UserError(f"{place}: has the categories {' and '.join(categories)}; give one", "prompt.combination")
    category = categories[0] if categories else None
    return replace((masks + boxes + prompts)[0], points=points, labels=labels, category=category)


def _check_inside(place: str, what: str, values: tuple[float, ...], height: int, width: int) -> None:
    xs, ys = values[0::2], values[1::2]
    if not all(0 <= x <= width for x in xs) or not all(0 <= y <= height for y in ys):
        raise UserError(
            f"{place}: the {what} {_listed(values)} is outside the frame, which is {width}×{height} pixels",
            "prompt.outside",
        )


def _listed(values: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
