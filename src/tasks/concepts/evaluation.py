"""Evaluation of concepts: ask every phrase of a domain on its images, and score the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...core.console import progress_bar
from ...core.device import evaluating
from ...core.distributed import ALL, Shard
from ...core.errors import UserError
from ...core.files import inside, write_text
from ...data.concepts.phrases import Vocabulary
from ...data.records import RLE, DataSet, VideoRecord
from ...evaluation.concepts.matching import SCORE_THRESHOLD
from ...evaluation.concepts.records import ConceptPrediction, ConceptTruth, Region
from ...evaluation.concepts.results import ALL_SCORES, ConceptResult, ImageAnswers
from .answers import answer

LEAST_SCORE = 0.01
"""Instances below it are not kept: they come last in AP."""

Truths = Callable[[VideoRecord, int], list[ConceptTruth]]
"""A record and the number of its frame → what is asked of it, with what is true."""


@dataclass(frozen=True)
class AskedImages:
    """Images of a data set, and what is asked of each.

    Attributes:
        name: name of the domain.
        data: its images.
        vocabulary: phrases of its categories.
        ask: phrases with their truth, of an image; images without any are left out.
        shown: the scores that the answers have.
        agrees: whether the answers of the model that is asked first are the truth.
    """

    name: str
    data: DataSet
    vocabulary: Vocabulary
    ask: Truths
    shown: tuple[str, ...] = ALL_SCORES
    agrees: bool = False
    _first: dict[str, list[ConceptTruth]] = field(default_factory=dict, repr=False, compare=False)

    def images(self, first: int = 0, step: int = 1) -> Iterator[tuple[int, VideoRecord, int]]:
        """Yield every ``step``-th image from number ``first`` on: its number, its record, the frame's number.

        Of a video that is the first frame that shows an object.
        """
        for number in range(first, len(self.data), step):
            video = self.data.videos[number]
            yield number, video, shown_frame(video)

    def record(self, image_id: str) -> tuple[VideoRecord, int]:
        """Return an image's record, and the number of its frame."""
        video = next(video for video in self.data.videos if video.video_id == image_id)
        return video, shown_frame(video)

    def judged(self, video: VideoRecord, answers: list[ConceptPrediction], truths: list[ConceptTruth]) -> ImageAnswers:
        """Return answers with what they are compared with."""
        if self.agrees:
            first = [_as_truth(prediction, video.height, video.width) for prediction in answers]
            truths = self._first.setdefault(video.video_id, first)
        return ImageAnswers(video.video_id, answers, truths)


def shown_frame(video: VideoRecord) -> int:
    """Return the first frame that shows an object, 0 where none does."""
    frames = range(len(video))
    return next((t for t in frames if any(o.segmentations[t] is not None for o in video.objects)), 0)


def evaluate_domain(
    model: nn.Module,
    domain: AskedImages,
    masks: bool = True,
    label: str = "",
    save: Path | None = None,
    images: int | None = None,
    least: float = LEAST_SCORE,
    shard: Shard = ALL,
) -> ConceptResult:
    """Ask a domain's phrases of its images, and score the answers.

    Args:
        model: with adapters or without; its train or eval mode comes back afterwards.
        domain: the images.
        masks: whether masks are compared; boxes if not.
        label: of the progress bar; the domain's name if empty.
        save: the file to write all answers into, as COCO's results; None: they are not saved.
        images: the number of images to stop after; None: all of them.
        least: the least score of an instance that is kept.
        shard: the images that this process takes.

    Returns:
        The result; only the first process has the answers on all images.

    Raises:
        UserError: an image cannot be read, or nothing is asked of any.
    """
    own: list[tuple[int, ImageAnswers]] = []
    count = len(range(shard.rank, len(domain.data), shard.size))
    with evaluating(model):
        numbered = domain.images(shard.rank, shard.size)
        total = min(count, images or count)
        for number, video, frame in progress_bar(numbered, total=total, desc=label or domain.name, leave=False):
            truths = domain.ask(video, frame)
            if truths:
                phrases = [truth.phrase for truth in truths]
                picture = read_picture(video, frame)
                found = answer(model, picture, phrases, video.video_id, least, masks=masks)
                own.append((number, domain.judged(video, found, truths)))
            if len(own) == images:
                break
    answered = [of for _, of in sorted(shard.collect(own), key=lambda numbered: numbered[0])]
    if not answered and shard.rank == 0:
        raise UserError(f"{domain.name}: nothing can be asked of its images", code="evaluation.nothing-to-score")
    region: Region = "segm" if masks else "bbox"
    result = ConceptResult(answered, region, domain.shown)
    if save is not None and shard.rank == 0:
        save_answers(save, result)
    return result


def read_picture(video: VideoRecord, frame: int) -> np.ndarray:
    """Return an image, RGB uint8 (H, W, 3). Raises UserError where it is not of its record's size."""
    picture = video.frames[frame].read()
    if picture.shape[:2] != (video.height, video.width):
        height, width = picture.shape[:2]
        raise UserError(
            f"{video.frames[frame].name}: the image is {width}×{height} pixels, its annotations say "
            f"{video.width}×{video.height}",
            code="image.size",
        )
    return picture


def save_answers(path: Path, result: ConceptResult) -> None:
    """Write all answers as COCO's results: a list of image, phrase, score, box and mask."""
    entries: list[dict[str, Any]] = [
        {
            "image_id": image.image_id,
            "category": prediction.phrase,
            "score": round(float(score), 6),
            "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
            **({"segmentation": encoded(prediction.masks[i])} if prediction.masks else {}),
        }
        for image in result.images
        for prediction in image.predictions
        for i, (score, (x0, y0, x1, y1)) in enumerate(zip(prediction.scores, prediction.boxes.tolist(), strict=True))
    ]
    write_text(inside(path.parent, path.name), json.dumps(entries))


def encoded(mask: RLE) -> dict[str, Any]:
    """Return a mask as JSON has it."""
    return {"size": list(mask.rle["size"]), "counts": mask.rle["counts"].decode("ascii")}


def _as_truth(prediction: ConceptPrediction, height: int, width: int) -> ConceptTruth:
    """Return a model's answers as the truth for another one; without masks boxes become filled rectangles."""
    masks = []
    for i in np.flatnonzero(prediction.scores >= SCORE_THRESHOLD).tolist():
        if prediction.masks:
            masks.append(prediction.masks[i])
        else:
            x0, y0, x1, y1 = prediction.boxes[i].round().astype(int).tolist()
            mask_HW = np.zeros((height, width), bool)
            mask_HW[y0:y1, x0:x1] = True
            masks.append(RLE.encode(mask_HW))
    return ConceptTruth(prediction.image_id, prediction.phrase, 0, masks)
