"""What validation shows beside the scores that choose the best weights: retention domains, false alarms, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ...config import Config
from ...data.records import RLE
from ...evaluation.concepts.matching import SCORE_THRESHOLD
from ...evaluation.concepts.records import ConceptPrediction
from ...evaluation.concepts.results import ConceptResult
from ...evaluation.concepts.scores import MICRO_SCORES
from ...evaluation.concepts.sheets import answer_sheet
from ..base import Validation
from .evaluation import AskedImages, evaluate_domain


def monitored(domain: AskedImages) -> AskedImages:
    """Return a domain with the scores that need only answers, and no ranking of all instances."""
    return replace(domain, shown=tuple(name for name in domain.shown if name in MICRO_SCORES))


class ConceptMonitor:
    """Scores a model in training on a few images of each domain, and draws its answers.

    Args:
        config: the run; ``training.monitor_clips`` says on how many images of each domain.
        learned: the validation sets.
        others: what must not be forgotten, and what must not be found.
    """

    def __init__(self, config: Config, learned: Sequence[AskedImages], others: Sequence[AskedImages]) -> None:
        self.images, self.learned = config.training.monitor_clips, learned
        self.masks = config.training.enable_segmentation
        self.others = [monitored(domain) for domain in others if self.images and not domain.agrees]

    def extra_scores(self, model: nn.Module) -> dict[str, float]:
        """Return ``retention/<domain>/<score>``; the model's mode comes back afterwards."""
        return {
            f"retention/{domain.name}/{name}": value
            for domain in self.others
            for name, value in self._score(model, domain).scores.items()
        }

    def retention_tags(self) -> list[str]:
        """Return the groups of score tags that say whether the model forgets."""
        return [f"retention/{domain.name}" for domain in self.others]

    def answers(self, validation: Validation) -> dict[str, Any]:
        """Return the answers that pictures need, as plain data: tag → a record for each phrase."""
        return {tag: [_plain(p) for p in image.predictions] for tag, _, image in self._drawn(validation)}

    def sheets(self, validation: Validation, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the same images every time: truth, base, adapted.

        Args:
            validation: its details are the results of the validation sets.
            base: :meth:`answers` of the base; pictures that it lacks have no such column.

        Yields:
            The tag, ``overlays/<image>`` or of several sets ``overlays/<set>/<image>``, and RGB uint8 (H, W, 3).
        """
        for tag, domain, image in self._drawn(validation):
            video, frame = domain.record(image.image_id)
            models: dict[str, Sequence[ConceptPrediction]] = {}
            if tag in base:
                size = video.height, video.width
                models["base"] = [_from_plain(image.image_id, record, size) for record in base[tag]]
            yield tag, answer_sheet(video.frames[frame].read(), image.truths, models | {"adapted": image.predictions})

    def _score(self, model: nn.Module, domain: AskedImages) -> ConceptResult:
        return evaluate_domain(model, domain, self.masks, images=self.images, least=SCORE_THRESHOLD)

    def _drawn(self, validation: Validation) -> Iterator[tuple[str, AskedImages, Any]]:
        for domain, result in zip(self.learned, validation.details, strict=True):
            prefix = f"{domain.name}/" if len(self.learned) > 1 else ""
            for image in result.images[: self.images]:
                yield f"overlays/{prefix}{image.image_id}", domain, image


def _plain(prediction: ConceptPrediction) -> dict[str, Any]:
    return {
        "phrase": prediction.phrase,
        "scores": prediction.scores.tolist(),
        "boxes": prediction.boxes.tolist(),
        "masks": [str(mask.rle["counts"], "ascii") for mask in prediction.masks],
    }


def _from_plain(image_id: str, record: Mapping[str, Any], size: tuple[int, int]) -> ConceptPrediction:
    masks = [RLE({"size": list(size), "counts": counts.encode("ascii")}) for counts in record["masks"]]
    scores, boxes = np.array(record["scores"]), np.array(record["boxes"]).reshape(-1, 4)
    return ConceptPrediction(image_id, record["phrase"], scores, boxes, masks, None)
