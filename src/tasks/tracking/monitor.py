"""What validation shows beside the scores that choose the best weights: other prompts, retention domains, pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, get_args

import numpy as np
from torch import nn

from ...config import Config, Prompt
from ...data.records import RLE, VideoRecord
from ...evaluation.domains import Domain
from ...evaluation.metrics import aggregate
from ...evaluation.results import DomainResult
from ...evaluation.sheets import overlay_sheet, shown_frames, true_masks
from .evaluation import evaluate_domain

SCORES = ("J", "J&F")
"""The scores that are monitored, and that stand beside the base's."""

Masks = dict[str, dict[int, list[str | None]]]
"""Tag of a picture → object id → its mask on each frame, as pycocotools' text; None on frames that are not drawn."""


@dataclass(frozen=True)
class View:
    """A domain and a prompt to score; views of one tag are averaged."""

    tag: str
    domain: Domain
    prompt: Prompt


class ValidationMonitor:
    """Scores a model in training on a few clips of each view, and draws its masks.

    Args:
        config: the run; ``training.monitor_clips`` says on how many clips of each domain.
        learned: the validation sets.
        retention: what must not be forgotten.
    """

    def __init__(self, config: Config, learned: Sequence[Domain], retention: Sequence[Domain]) -> None:
        self.clips = config.training.monitor_clips
        self.prompt, self.learned = config.evaluation.prompt, learned
        others = [prompt for prompt in get_args(Prompt) if prompt != self.prompt]
        self.views = [View(f"prompts/{prompt}", domain, prompt) for prompt in others for domain in learned]
        self.views += [View(f"retention/{domain.name}", domain, self.prompt) for domain in retention]
        if not self.clips:
            self.views = []

    def extra_scores(self, model: nn.Module, results: Sequence[DomainResult]) -> dict[str, float]:
        """Score the model on all views.

        Args:
            model: the model in training; its mode comes back afterwards.
            results: of this validation, one for each validation set. The same clips of these are taken, so that prompts
                can be compared.

        Returns:
            ``prompts/<prompt>/<score>``, of several validation sets their mean, and ``retention/<domain>/<score>``.

        Raises:
            UserError: as :func:`~src.tasks.tracking.evaluation.evaluate_domain`.
        """
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        for result in results if self.views else ():
            scored = [list(video.scores.values()) for video in result.videos if video.scores][: self.clips]
            found[f"prompts/{self.prompt}"].append(aggregate([scores for video in scored for scores in video]))
        for view in self.views:
            result = evaluate_domain(model, view.domain, view.prompt, view.tag, clips=self.clips)
            found[view.tag].append(result.scores)
        return {
            f"{tag}/{score}": float(np.mean([scores[score] for scores in of]))
            for tag, of in found.items()
            for score in SCORES
        }

    def prompt_tags(self) -> list[str]:
        """Return the groups of score tags that say whether the model learns, prompt by prompt."""
        return [f"prompts/{prompt}" for prompt in get_args(Prompt)] if self.clips else []

    def retention_tags(self) -> list[str]:
        """Return the groups of score tags that say whether the model forgets."""
        return [view.tag for view in self.views if view.tag.startswith("retention/")]

    def masks(self, results: Sequence[DomainResult]) -> Masks:
        """Return the masks that pictures need, as plain data, to be drawn beside later ones."""
        return {
            tag: {
                object_id: [_as_text(mask) if t in shown_frames(video) else None for t, mask in enumerate(masks)]
                for object_id, masks in predicted.items()
            }
            for tag, video, predicted in self._drawn(results)
        }

    def sheets(self, results: Sequence[DomainResult], base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the same clips at the same frames every time: truth, base, adapted.

        Args:
            results: as of :meth:`extra_scores`.
            base: :meth:`masks` of the base; pictures that it lacks have no such row.

        Yields:
            The tag, ``overlays/<video>`` or of several sets ``overlays/<set>/<video>``, and RGB uint8 (H, W, 3).
        """
        for tag, video, predicted in self._drawn(results):
            rows = {"truth": true_masks(video)}
            if tag in base:
                size = (video.height, video.width)
                rows["base"] = {i: [_from_text(text, size) for text in masks] for i, masks in base[tag].items()}
            yield tag, overlay_sheet(video, rows | {"adapted": predicted})

    def workload(self) -> list[Domain]:
        """Return about what is scored: each view's domain with as many of its clips."""
        return [
            replace(view.domain, data=replace(view.domain.data, videos=view.domain.data.videos[: self.clips]))
            for view in self.views
        ]

    def _drawn(self, results: Sequence[DomainResult]) -> Iterator[tuple[str, VideoRecord, dict[int, list[RLE]]]]:
        for domain, result in zip(self.learned, results, strict=True):
            prefix = f"{domain.name}/" if len(self.learned) > 1 else ""
            for video, found in islice(zip(domain.videos(), result.videos, strict=True), self.clips):
                yield f"overlays/{prefix}{video.video_id}", video, found.predicted


def monitors_alike(one: Config, other: Config) -> bool:
    """Whether scores and pictures of two runs on the same data are of the same clips, prompted and scored alike."""

    def monitored(config: Config) -> tuple[object, ...]:
        return config.training.monitor_clips, config.evaluation.model_dump(exclude={"clicks", "overlays"})

    return monitored(one) == monitored(other)


def _as_text(mask: RLE) -> str:
    return str(mask.rle["counts"], "ascii")


def _from_text(text: str | None, size: tuple[int, int]) -> RLE | None:
    return None if text is None else RLE({"size": list(size), "counts": text.encode("ascii")})
