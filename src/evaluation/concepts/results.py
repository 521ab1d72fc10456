"""What a model answered on a domain's images, phrase by phrase, and the scores of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ...data.records import VideoRecord
from ..intervals import Draws, resample
from ..results import Comparison
from ..score_names import CONCEPTS, ScoreNames
from ..text_table import aligned
from .average_precision import AP_SCORES, PhraseMatches, average_precision, match_phrases
from .curves import write_curves
from .matching import PairCounts, count_pair
from .records import ConceptPrediction, ConceptTruth, Region
from .scores import MICRO_SCORES, image_counts, micro_scores, presence_auroc
from .sheets import answer_sheet

ALL_SCORES = (*MICRO_SCORES, *AP_SCORES, "presence_AUROC")
"""Scores of a domain whose images are labelled."""

AGREEMENT = "agreement"
"""Mean F1 of a model's answers with the base's, over all pairs; 1 where both find nothing."""


class AskedDomain(Protocol):
    """A domain whose images can be read again, to be drawn."""

    @property
    def name(self) -> str:
        """Name of the domain."""

    def record(self, image_id: str) -> tuple[VideoRecord, int]:
        """Return an image's record, and the number of its frame."""


@dataclass(frozen=True)
class ImageAnswers:
    """What a model answered on one image, and what is true: a prediction and a truth for each phrase, in one order."""

    image_id: str
    predictions: Sequence[ConceptPrediction]
    truths: Sequence[ConceptTruth]


@dataclass(frozen=True)
class ConceptResult:
    """A model's scores on a domain, with the answers that they come from.

    Attributes:
        images: in the domain's order; several processes: only the first one has those of all.
        region: whether masks or boxes are compared.
        shown: the scores that the domain has.
    """

    names: ClassVar[ScoreNames] = CONCEPTS
    images: Sequence[ImageAnswers]
    region: Region = "segm"
    shown: tuple[str, ...] = ALL_SCORES

    @cached_property
    def scores(self) -> dict[str, float]:
        """Score → value, of those that the domain has and that are defined on it."""
        values = {name: float(of[0]) for name, of in self._weighted(None).items()}
        values["presence_AUROC"] = presence_auroc(self._pairs)
        values[AGREEMENT] = float(np.mean([pair.f1 for pair in self._pairs])) if self._pairs else math.nan
        return {name: values[name] for name in (*ALL_SCORES, AGREEMENT) if self._has(name, values)}

    def _has(self, name: str, values: Mapping[str, float]) -> bool:
        return name in self.shown and not math.isnan(values[name])

    def defined(self) -> dict[str, float]:
        """Return the scores without those that are 0 because no phrase is there, or none is absent."""
        needed = {
            True: ("cgF1", "cgF1@50", "pmF1", "pmF1@50", "IL_MCC"),
            False: ("cgF1", "cgF1@50", "IL_MCC", "IL_FPR"),
        }
        kinds = {pair.present for pair in self._pairs}
        without = {name for kind, names in needed.items() if kind not in kinds for name in names}
        return {name: value for name, value in self.scores.items() if name not in without}

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def parts(self) -> int:
        """Number of different phrases."""
        return len({truth.phrase for image in self.images for truth in image.truths})

    @property
    def left_out(self) -> int:
        """Number of pairs that are not labelled exhaustively."""
        return sum(not truth.exhaustive for image in self.images for truth in image.truths)

    @cached_property
    def counts_by_image(self) -> dict[str, list[PairCounts]]:
        """The counts of each image's pairs that are labelled exhaustively."""
        return {
            image.image_id: [
                count_pair(prediction, truth, self.region)
                for prediction, truth in zip(image.predictions, image.truths, strict=True)
                if truth.exhaustive
            ]
            for image in self.images
        }

    @cached_property
    def _pairs(self) -> list[PairCounts]:
        return [pair for of in self.counts_by_image.values() for pair in of]

    @cached_property
    def matches(self) -> list[PhraseMatches]:
        """The instances of each phrase, matched as COCO does."""
        predictions = [prediction for image in self.images for prediction in image.predictions]
        truths = [truth for image in self.images for truth in image.truths]
        return match_phrases(predictions, truths, [image.image_id for image in self.images], self.region)

    @cached_property
    def _counts_IC(self) -> np.ndarray:
        return image_counts(self._pairs, [image.image_id for image in self.images])

    def _weighted(self, weights_DI: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return the scores with each image counted so often; None: once."""
        weights = np.ones((1, self.size)) if weights_DI is None else weights_DI
        scores = micro_scores(weights @ self._counts_IC)
        if any(name in self.shown for name in AP_SCORES):
            scores |= average_precision(self.matches, weights)
        return scores

    @cached_property
    def _draws(self) -> Draws | None:
        if self.size < 2:
            return None
        weights_DI = np.stack([np.bincount(drawn, minlength=self.size) for drawn in resample(self.size)]).astype(float)
        drawn = self._weighted(weights_DI)
        return {name: drawn[name] for name in self.names.main if name in self.scores}

    def draws(self) -> Draws | None:
        """Return the main scores on resampled images."""
        return self._draws

    def notes(self, domain: AskedDomain) -> list[str]:
        """Say how many pairs are left out, and where nothing is asked that is absent."""
        lines = []
        if self.left_out:
            pairs = "pairs of image and phrase are" if self.left_out > 1 else "pair of image and phrase is"
            lines.append(f"{domain.name}: {self.left_out} {pairs} not labelled exhaustively, and left out")
        if self.names.headline in self.scores and all(pair.present for pair in self._pairs):
            lines.append(
                f"{domain.name}: every phrase is on every image, which makes IL_MCC and cgF1 0; name absent things in "
                "training.concepts.foreign"
            )
        return lines

    def counts(self, domain: AskedDomain) -> dict[str, Any]:
        """Return the numbers of images, phrases, pairs, and true instances."""
        truths = [truth for image in self.images for truth in image.truths]
        return {
            "videos": self.size,
            "objects": sum(len(truth.masks) for truth in truths if truth.exhaustive),
            "phrases": self.parts,
            "pairs": len(truths),
            "pairs_not_scored": self.left_out,
            "region": self.region,
        }

    def per_unit(self, adapted: ConceptResult) -> list[dict[str, Any]]:
        """Return each image's pairs: what is there, and what each model found."""
        models = {"base": self.counts_by_image, "adapted": adapted.counts_by_image}
        return [
            {
                "video": image.image_id,
                **{model: {"F1@50": _mean_f1(of[image.image_id])} for model, of in models.items()},
                "phrases": [
                    {"phrase": truth.phrase, **{model: _pair_json(pairs[i]) for model, pairs in by_model.items()}}
                    for i, truth in enumerate(t for t in image.truths if t.exhaustive)
                ],
            }
            for image in self.images
            if (by_model := {model: of[image.image_id] for model, of in models.items()})
        ]

    def ranking(self) -> dict[str, float]:
        """Return each image's mean F1 at IoU 0.5 over its phrases; nothing of a domain without the headline score."""
        if self.names.headline not in self.scores:
            return {}
        means = {image_id: _mean_f1(pairs) for image_id, pairs in self.counts_by_image.items()}
        return {image_id: mean for image_id, mean in means.items() if mean is not None}

    def sheets(
        self, domain: AskedDomain, adapted: ConceptResult | None, chosen: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Draw images, a row for each of some phrases: truth, and what each model found."""
        of_adapted = {image.image_id: image.predictions for image in adapted.images} if adapted is not None else {}
        drawn = {}
        for image in self.images:
            if image.image_id in chosen:
                models = {"base": image.predictions}
                if adapted is not None:
                    models["adapted"] = of_adapted[image.image_id]
                video, frame = domain.record(image.image_id)
                drawn[image.image_id] = answer_sheet(video.frames[frame].read(), image.truths, models)
        return drawn

    def sections(self, folder: Path, comparisons: Sequence[Comparison]) -> list[str]:
        """Write precision over recall as a figure, and return it with the scores by phrase."""
        results = {c.domain.name: _models(c) for c in comparisons}
        curves = {
            name: {model: result.matches for model, result in models.items()}
            for name, models in results.items()
            if "AP50" in models["base"].scores
        }
        lines = ["By phrase:", "", phrase_table(results), ""]
        if curves:
            write_curves(curves, folder / "precision_recall.png")
            lines += ["![precision over recall](precision_recall.png)", ""]
        return lines

    def of_phrase(self, phrase: str) -> ConceptResult:
        """Return the result of one phrase alone."""
        images = []
        for image in self.images:
            pairs = zip(image.predictions, image.truths, strict=True)
            own = [pair for pair in pairs if pair[1].phrase == phrase]
            if own:
                images.append(ImageAnswers(image.image_id, [p for p, _ in own], [t for _, t in own]))
        return replace(self, images=images)


def phrase_table(results: Mapping[str, Mapping[str, ConceptResult]], scores: Sequence[str] = ()) -> str:
    """Return AP50, pmF1, IL_MCC and IL_FPR of each phrase of each domain, as Markdown."""
    scores = scores or ("AP50", "pmF1", "IL_MCC", "IL_FPR")
    rows = []
    for domain, models in results.items():
        phrases = dict.fromkeys(truth.phrase for image in models["base"].images for truth in image.truths)
        for phrase in phrases if AGREEMENT not in models["base"].scores else ():
            for model, result in models.items():
                own = result.of_phrase(phrase).defined()
                cells = [CONCEPTS.format(name, own[name]) if name in own else "-" for name in scores]
                rows.append([domain, phrase, model, *cells] if model == "base" else ["", "", model, *cells])
    return aligned(["domain", "phrase", "model", *scores], rows, {0, 1, 2}, markdown=True)


def _models(c: Comparison) -> dict[str, ConceptResult]:
    found = {"base": c.base} if c.adapted is None else {"base": c.base, "adapted": c.adapted}
    return {name: result for name, result in found.items() if isinstance(result, ConceptResult)}


def _mean_f1(pairs: Sequence[PairCounts]) -> float | None:
    return float(np.mean([pair.f1 for pair in pairs])) if pairs else None


def _pair_json(pair: PairCounts) -> dict[str, Any]:
    return {
        "present": pair.present,
        "presence": round(pair.presence, 4),
        "right@50": int(pair.tp_T[0]),
        "wrong@50": int(pair.fp_T[0]),
        "missing@50": int(pair.fn_T[0]),
    }
