"""COCO's AP over phrases that were asked on every image, without any ground-truth prompt.

Instances are matched by pycocotools. Precision is accumulated here, with a weight for each image, so that a bootstrap
need not match again: with all weights 1 the result is that of pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .records import ConceptPrediction, ConceptTruth, Region

MOST_INSTANCES = 100
"""Instances of a phrase on an image that count, the best first; COCO's value."""

AP_SCORES = ("AP", "AP50", "AP75")

_NUMBERS_AT_ONCE = 2**22
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class PhraseMatches:
    """The instances of one phrase on all images, best score first; thresholds are COCO's ten.

    Attributes:
        category_id: the category that the phrase asks for.
        image_N: the number of each instance's image.
        right_TN, wrong_TN: bool; neither is set where an instance is in an ignored area.
        true_I: true instances of each image.
    """

    category_id: int
    image_N: np.ndarray
    right_TN: np.ndarray
    wrong_TN: np.ndarray
    true_I: np.ndarray


def match_phrases(
    predictions: Sequence[ConceptPrediction],
    truths: Sequence[ConceptTruth],
    images: Sequence[str],
    region: Region = "segm",
) -> list[PhraseMatches]:
    """Match instances with true ones as COCO does, phrase by phrase; pairs not labelled exhaustively are left out.

    Args:
        predictions, truths: pairs of image and phrase, in one order.
        images: the order of images in the results.
        region: whether masks or boxes are compared.
    """
    pairs = [pair for pair in zip(predictions, truths, strict=True) if pair[1].exhaustive]
    phrases = {phrase: i for i, phrase in enumerate(dict.fromkeys(truth.phrase for _, truth in pairs), 1)}
    numbers = {image_id: i for i, image_id in enumerate(images, 1)}
    evaluation = COCOeval(iouType=region)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its steps
        evaluation.cocoGt = _as_coco([_true(t, numbers, phrases, region) for _, t in pairs], numbers, phrases)
        evaluation.cocoDt = _as_coco([_found(p, numbers, phrases, region) for p, _ in pairs], numbers, phrases)
        evaluation.params.imgIds, evaluation.params.catIds = list(numbers.values()), list(phrases.values())
        evaluation.params.maxDets = [MOST_INSTANCES]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    categories = {phrases[truth.phrase]: truth.category_id for _, truth in pairs}
    by_phrase: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in evaluation.evalImgs:
        if entry is not None:
            by_phrase[entry["category_id"]].append(entry)
    return [_collect(category, by_phrase[phrase], len(images)) for phrase, category in categories.items()]


def average_precision(matches: Sequence[PhraseMatches], weights_DI: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return AP, AP50 and AP75, means over categories, for each of D sets of weights; float64 (D,).

    A category's value is the mean over its phrases. A phrase that is on no image counts nowhere, and where none is on
    any image, the value is NaN.

    Args:
        matches: of :func:`match_phrases`.
        weights_DI: how often each image counts, whole numbers; None: each counts once, and D is 1.
    """
    if weights_DI is None:
        weights_DI = np.ones((1, len(matches[0].true_I) if matches else 0))
    by_category: dict[int, list[np.ndarray]] = defaultdict(list)
    for phrase in matches:
        by_category[phrase.category_id].append(_phrase_precision(phrase, weights_DI))
    empty_TD = np.full((10, len(weights_DI)), np.nan)
    categories_CTD = [_mean_known(np.stack(phrases)) for phrases in by_category.values()]
    AP_TD = _mean_known(np.stack(categories_CTD)) if categories_CTD else empty_TD
    return {"AP": AP_TD.mean(axis=0), "AP50": AP_TD[0], "AP75": AP_TD[5]}


def precision_curve(matches: Sequence[PhraseMatches], threshold: int = 0) -> np.ndarray | None:
    """Return COCO's precision at 101 recalls from 0 to 1, the mean over phrases, at one of the ten IoU thresholds."""
    curves = [curve for phrase in matches if (curve := _curve(phrase, threshold)) is not None]
    return np.mean(curves, axis=0) if curves else None


def _curve(phrase: PhraseMatches, threshold: int) -> np.ndarray | None:
    if not phrase.true_I.sum():
        return None
    right_N = phrase.right_TN[threshold].cumsum()
    counted_N = right_N + phrase.wrong_TN[threshold].cumsum()
    precision_N = np.maximum.accumulate((right_N / np.maximum(counted_N, 1))[::-1])[::-1]
    places = np.searchsorted(right_N / phrase.true_I.sum(), _RECALLS, side="left")
    curve: np.ndarray = np.append(precision_N, 0.0)[places]
    return curve


def _mean_known(values_NTD: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis without NaN; NaN where nothing is known."""
    known_NTD = ~np.isnan(values_NTD)
    mean_TD: np.ndarray = np.where(known_NTD, values_NTD, 0).sum(axis=0)
    count_TD = known_NTD.sum(axis=0)
    return np.where(count_TD > 0, mean_TD / np.maximum(count_TD, 1), np.nan)


def _phrase_precision(phrase: PhraseMatches, weights_DI: np.ndarray) -> np.ndarray:
    """Return a phrase's interpolated precision at each IoU threshold, (10, D); NaN where it is on no image.

    COCO takes the mean over 101 recalls of the best precision at that recall or more. An instance covers those recalls
    that are reached by it and by none before.
    """
    thresholds, count = phrase.right_TN.shape
    true_D = weights_DI @ phrase.true_I
    result_TD = np.full((thresholds, len(weights_DI)), np.nan)
    rows = max(1, _NUMBERS_AT_ONCE // max(count, 1))
    for start in range(0, len(weights_DI), rows):
        chunk = slice(start, start + rows)
        weights_DN = weights_DI[chunk][:, phrase.image_N]
        total_D1 = np.maximum(true_D[chunk], 1)[:, None]
        for threshold in range(thresholds):
            right_DN = (weights_DN * phrase.right_TN[threshold]).cumsum(axis=1)
            counted_DN = right_DN + (weights_DN * phrase.wrong_TN[threshold]).cumsum(axis=1)
            precision_DN = right_DN / np.maximum(counted_DN, 1)
            precision_DN = np.maximum.accumulate(precision_DN[:, ::-1], axis=1)[:, ::-1]
            reached_DN = np.searchsorted(_RECALLS, right_DN / total_D1, side="right")
            reached_DN[right_DN == 0] = 0
            covered_DN = np.diff(reached_DN, axis=1, prepend=0)
            result_TD[threshold, chunk] = (covered_DN * precision_DN).sum(axis=1) / len(_RECALLS)
    return np.where(true_D > 0, result_TD, np.nan)


def _collect(category_id: int, entries: Sequence[dict[str, Any]], images: int) -> PhraseMatches:
    """Put a phrase's matches on all images together, by falling score; ties stay in the order of images."""
    true_I = np.zeros(images, np.int64)
    for entry in entries:
        true_I[entry["image_id"] - 1] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    if not entries:
        nothing = np.zeros((10, 0), bool)
        return PhraseMatches(category_id, np.zeros(0, np.int64), nothing, nothing, true_I)
    order_N = np.argsort(-np.concatenate([entry["dtScores"] for entry in entries]), kind="mergesort")
    matched_TN = np.concatenate([entry["dtMatches"] for entry in entries], axis=1)[:, order_N] > 0
    ignored_TN = np.concatenate([entry["dtIgnore"] for entry in entries], axis=1)[:, order_N] > 0
    image_N = np.concatenate([[entry["image_id"] - 1] * len(entry["dtScores"]) for entry in entries])
    return PhraseMatches(
        category_id, image_N[order_N].astype(np.int64), matched_TN & ~ignored_TN, ~matched_TN & ~ignored_TN, true_I
    )


def _as_coco(of_pairs: list[list[dict[str, Any]]], numbers: dict[str, int], phrases: dict[str, int]) -> COCO:
    entries = [entry for pair in of_pairs for entry in pair]
    data = COCO()
    data.dataset = {
        "images": [{"id": i, "height": 1, "width": 1} for i in numbers.values()],
        "categories": [{"id": i} for i in phrases.values()],
        "annotations": [entry | {"id": i} for i, entry in enumerate(entries, 1)],
    }
    data.createIndex()
    return data


def _entries(
    regions: list[dict[str, object]] | np.ndarray, image: int, phrase: int, region: Region
) -> list[dict[str, Any]]:
    key = "segmentation" if region == "segm" else "bbox"
    return [{"image_id": image, "category_id": phrase, "iscrowd": 0, "area": 1, key: each} for each in regions]


def _true(
    truth: ConceptTruth, numbers: dict[str, int], phrases: dict[str, int], region: Region
) -> list[dict[str, Any]]:
    place = numbers[truth.image_id], phrases[truth.phrase]
    entries = _entries(truth.regions(region), *place, region)
    if truth.ignored is not None:
        crowd = ConceptTruth(truth.image_id, truth.phrase, truth.category_id, [truth.ignored])
        entries += [entry | {"iscrowd": 1} for entry in _entries(crowd.regions(region), *place, region)]
    return entries


def _found(
    prediction: ConceptPrediction, numbers: dict[str, int], phrases: dict[str, int], region: Region
) -> list[dict[str, Any]]:
    place = numbers[prediction.image_id], phrases[prediction.phrase]
    entries = _entries(prediction.regions(region), *place, region)
    return [entry | {"score": float(score)} for entry, score in zip(entries, prediction.scores, strict=True)]
