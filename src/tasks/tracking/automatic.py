"""Segment everything on pictures, without prompts, by SAM 2's automatic mask generator."""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...config import NamedSplit
from ...core.console import progress_bar
from ...core.device import evaluating
from ...core.errors import UserError
from ...core.files import write_text
from ...data.drawing import draw_labels, draw_masks
from ...data.records import RLE
from ...data.summary import object_categories
from ...models.spec import spec_of
from .stills import Stills
from .track_video import DEFAULT_CATEGORY, write_picture

logger = logging.getLogger(__name__)


OPTIONS: Mapping[str, type] = {
    "points_per_side": int, "points_per_batch": int, "pred_iou_thresh": float, "stability_score_thresh": float,
    "stability_score_offset": float, "mask_threshold": float, "box_nms_thresh": float, "crop_n_layers": int,
    "crop_nms_thresh": float, "crop_overlap_ratio": float, "crop_n_points_downscale_factor": int,
    "min_mask_region_area": int,
}  # fmt: skip
"""Arguments of sam2's ``SAM2AutomaticMaskGenerator`` that are numbers."""


def parse_options(pairs: Sequence[str]) -> dict[str, float]:
    """Return the generator's arguments of ``key=number`` pairs. Raises UserError for what is none."""
    options: dict[str, float] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in OPTIONS:
            near = difflib.get_close_matches(key, OPTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPTIONS)}"
            raise UserError(f"--auto {pair}: the mask generator has no such argument; {hint}", "auto.option")
        try:
            options[key] = OPTIONS[key](text)
        except ValueError:
            options[key] = math.nan
        if not 0 <= options[key] < 1e6 or (key.startswith("points") and not options[key]):
            raise UserError(f"--auto {pair}: '{text}' is no {OPTIONS[key].__name__} that it can be", "auto.option")
    return options


def only_category(place: NamedSplit) -> str | None:
    """Return the name of a data set's class where it has a single one; None too where the data are not here."""
    try:
        names = object_categories(place)
    except UserError:
        return None
    return names.pop() if len(names) == 1 else None


def write_automatic(
    model: nn.Module, stills: Stills, output: Path, category: str | None = None, overlays: bool = True, **options: Any
) -> int:
    """Find the masks of all pictures, and write ``NAME.json`` (COCO) and ``Overlays/NAME/``.

    Args:
        model: with adapters or without; a domain gate installed on it decides for each picture.
        stills: the pictures.
        output: the folder to write into.
        category: what all masks are called; None: ``object``.
        overlays: whether pictures are drawn.
        options: arguments of sam2's ``SAM2AutomaticMaskGenerator``.

    Returns:
        The number of masks.

    Raises:
        UserError: a picture cannot be read, or a file cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with evaluating(model):
        generator = spec_of(model).load().automatic_mask_generator(model, **options)
        for index, picture in enumerate(progress_bar(stills, total=stills.count, desc=stills.name, unit="picture")):
            file = stills.frame_file(index)
            height, width = picture.shape[:2]
            images.append({"id": index + 1, "file_name": file, "height": height, "width": width})
            found = sorted(generator.generate(picture), key=lambda each: -each["area"])
            annotations += [
                {"id": len(annotations) + number, "image_id": index + 1, "category_id": 1, **_annotation(each)}
                for number, each in enumerate(found, 1)
            ]
            if overlays:
                path = output / "Overlays" / stills.name / f"{Path(file).stem}.jpg"
                write_picture(path, _drawn(picture, found, category))
    content = {
        "categories": [{"id": 1, "name": category or DEFAULT_CATEGORY}],
        "images": images,
        "annotations": annotations,
    }
    write_text(output / f"{stills.name}.json", json.dumps(content) + "\n")
    return len(annotations)


def _annotation(found: dict[str, Any]) -> dict[str, Any]:
    rle = RLE.encode(found["segmentation"]).rle
    return {
        "score": round(float(found["predicted_iou"]), 4),
        "stability_score": round(float(found["stability_score"]), 4),
        "bbox": [float(value) for value in found["bbox"]],
        "area": int(found["area"]),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }


def _drawn(picture: np.ndarray, found: list[dict[str, Any]], category: str | None) -> np.ndarray:
    masks = {number: each["segmentation"] for number, each in enumerate(found, 1)}
    labels = (
        (number, f"{number}: {category or ''} {each['predicted_iou']:.2f}".replace("  ", " "), tuple(each["bbox"][:2]))
        for number, each in enumerate(found, 1)
    )
    return draw_labels(draw_masks(picture, masks), labels)
