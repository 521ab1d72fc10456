"""Find phrases on pictures that have nothing to do with each other, or in a video, and write what is found.

Into the output folder, NAME being the input's: ``NAME.json``, COCO with categories and scores; ``Annotations/NAME/``,
palette images of instance numbers, where instances overlap the one with the higher score; ``Overlays/NAME/``, the
pictures with masks, phrases and scores drawn on them. Of a video, instances keep their numbers, and the overlay is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...config import Config
from ...core.console import progress_bar
from ...core.device import evaluating, pick_device
from ...core.errors import UserError
from ...core.files import write_text
from ...data.concepts.phrases import as_phrase
from ...data.decode.images import read_image
from ...data.decode.video import FrameStream, frame_paths, is_image
from ...data.formats.json_files import read_json
from ...data.formats.parsing import IssueLog
from ...data.writers import write_image, write_palette_png
from ...evaluation.concepts.matching import SCORE_THRESHOLD
from ...evaluation.concepts.records import ConceptPrediction
from ...evaluation.concepts.sheets import draw_answer
from ...models.build import build_model
from ...models.checkpoint import load_trained
from ...models.spec import model_spec, spec_of
from ..tracking.track_video import Overlay, PredictionWriter
from .answers import answer
from .evaluation import encoded

OVERLAY_QUALITY = 92

MOST_INSTANCES = 255
"""Numbers that a palette image holds."""


def read_categories(path: Path, phrases: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the phrases of a COCO file's categories, with the categories' ids.

    Args:
        path: the file.
        phrases: ``dataset.phrases``: category → its phrases, of which the first is asked; others are their own names.

    Raises:
        UserError: the file cannot be read, or has no categories with names and ids.
    """
    categories = read_json(path, IssueLog(str(path))).get("categories")
    entries = categories if isinstance(categories, list) else []
    found = {
        as_phrase(phrases.get(entry["name"], [entry["name"]])[0]): entry["id"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("id"), int)
    }
    if not entries or len(found) < len(entries) or not all(found):
        raise UserError(
            f"{path}: 'categories' is not a list of different names with ids, as COCO has it; ask with --phrase",
            "predict.no-categories",
        )
    return found


def is_video(path: Path) -> bool:
    """Return whether phrases are asked of a video: a file that is there, and no image."""
    return path.is_file() and not is_image(path)


def load_video_model(config: Config, checkpoint: str | None) -> nn.Module:
    """Return SAM 3 for videos on the run's device, with the adapters of a checkpoint or folder in its detector.

    Raises:
        UserError: the base has no tracker, or the adapters do not fit.
    """
    room: Any = model_spec(config.model.name).load()
    model: Any = room.build_video_model(config.model)
    if checkpoint is not None:
        load_trained(model.detector_model, checkpoint)
    moved: nn.Module = model.to(pick_device(config.training.device))
    return moved


def predict_video(
    model: nn.Module, footage: FrameStream, phrases: Mapping[str, int], output: Path, overlay: Overlay
) -> tuple[int, dict[str, set[int]]]:
    """Find phrases in a video, and write masks, COCO JSON with categories and track ids, and an overlay as it comes.

    Args:
        model: of :func:`load_video_model`.
        footage: the video.
        phrases: phrase → the id that its category has in the JSON.
        output: the folder to write into.
        overlay: as :class:`~src.tasks.tracking.track_video.PredictionWriter` takes it.

    Returns:
        The number of frames, and phrase → the numbers of its instances.

    Raises:
        UserError: a frame cannot be read, there are more instances than a palette has colours, or a file cannot be
            written.
    """
    room: Any = spec_of(model.detector_model).load()
    instances: dict[str, set[int]] = {phrase: set() for phrase in phrases}
    with PredictionWriter(output, footage, overlay, phrases) as writer:
        found = room.track_phrases(model, footage, list(phrases))
        for each in progress_bar(found, total=footage.count, desc=footage.name, unit="frame"):
            if max(each.phrases, default=0) > MOST_INSTANCES:
                raise UserError(
                    f"{footage.name}: more than {MOST_INSTANCES} instances by frame {each.prediction.frame}, for which "
                    "masks have no numbers: ask for fewer phrases, or cut it with --frames",
                    "predict.too-many-instances",
                )
            writer.add(each.frame_HWC, each.prediction, each.phrases)
            for number, phrase in each.phrases.items():
                instances[phrase].add(number)
    return writer.frames, instances


def open_pictures(path: Path) -> list[Path]:
    """Return the pictures of a folder, or the one that is named. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder", "predict.no-input")
    return frame_paths(path) if path.is_dir() else [path]


def load_model(config: Config, checkpoint: str | None) -> nn.Module:
    """Return the run's model on its device, with the adapters of a checkpoint or adapter folder if one is given."""
    torch.manual_seed(config.training.seed)
    model = build_model(config.model)
    if checkpoint is not None:
        load_trained(model, checkpoint)
    return model.to(pick_device(config.training.device))


def predict_phrases(
    model: nn.Module, pictures: Sequence[Path], phrases: Mapping[str, int], output: Path, name: str,
    masks: bool = True, overlays: bool = True,
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """Find phrases on pictures, and write everything; the JSON comes last.

    Args:
        model: with adapters or without.
        pictures: files.
        phrases: phrase → the id that its category has in the JSON.
        output: the folder to write into.
        name: what the files are called after.
        masks: whether the model has masks; boxes alone if not.
        overlays: whether pictures are drawn.

    Returns:
        Phrase → the numbers of instances, and of pictures that show it.

    Raises:
        UserError: a picture cannot be read, or a file cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts = dict.fromkeys(phrases, (0, 0))
    with evaluating(model):
        for path in progress_bar(pictures, desc=name, unit="picture"):
            picture_HW3 = read_image(path)
            height, width = picture_HW3.shape[:2]
            images.append({"id": len(images) + 1, "file_name": path.name, "height": height, "width": width})
            found = answer(model, picture_HW3, list(phrases), path.stem, SCORE_THRESHOLD, masks=masks)
            for prediction in found:
                count = len(prediction.scores)
                instances, shown = counts[prediction.phrase]
                counts[prediction.phrase] = instances + count, shown + bool(count)
                place = {"image_id": len(images), "category_id": phrases[prediction.phrase]}
                annotations += [{"id": 0, **place, **entry} for entry in _entries(prediction)]
            if masks:
                write_palette_png(output / "Annotations" / name / f"{path.stem}.png", _numbers(found, height, width))
            if overlays:
                write_image(
                    output / "Overlays" / name / f"{path.stem}.jpg", _overlay(picture_HW3, found), OVERLAY_QUALITY
                )
    content = {
        "categories": [{"id": number, "name": phrase} for phrase, number in phrases.items()],
        "images": images,
        "annotations": [entry | {"id": number} for number, entry in enumerate(annotations, 1)],
    }
    write_text(output / f"{name}.json", json.dumps(content) + "\n")
    return counts


def _entries(prediction: ConceptPrediction) -> list[dict[str, Any]]:
    """Return the instances of a phrase as COCO's annotations."""
    entries = []
    for i, (x0, y0, x1, y1) in enumerate(prediction.boxes.tolist()):
        box = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
        area = prediction.masks[i].area() if prediction.masks else round(box[2] * box[3], 2)
        entry = {"score": round(float(prediction.scores[i]), 4), "bbox": box, "area": area, "iscrowd": 0}
        entries.append({**entry, "segmentation": encoded(prediction.masks[i])} if prediction.masks else entry)
    return entries


def _numbers(found: Sequence[ConceptPrediction], height: int, width: int) -> np.ndarray:
    """Return instance numbers, int64 (H, W), counted from 1 in the order of the JSON; the higher score is on top."""
    masks = [(score, mask) for p in found for score, mask in zip(p.scores.tolist(), p.masks, strict=True)]
    numbers_HW = np.zeros((height, width), np.int64)
    for number, (_, mask) in sorted(enumerate(masks, 1), key=lambda numbered: numbered[1][0]):
        numbers_HW[mask.decode()] = number
    return numbers_HW


def _overlay(picture_HW3: np.ndarray, found: Sequence[ConceptPrediction]) -> np.ndarray:
    """Draw all instances, each in its colour, with phrases and scores."""
    first = 0
    for prediction in found:
        picture_HW3 = draw_answer(picture_HW3, prediction, first=first)
        first += len(prediction.scores)
    return picture_HW3
