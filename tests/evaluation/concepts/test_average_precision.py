"""AP by category: equal to pycocotools, also where images are drawn several times."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.evaluation.concepts.average_precision import average_precision, match_phrases, precision_curve
from tests.evaluation.concepts.made import SIZE, drawn, found, true

SQUARE, OTHER = (0, 0, 10, 10), (20, 20, 30, 30)


def official(predictions, truths, images: Sequence[str]) -> COCOeval:
    """pycocotools from the first step to the last."""
    phrases = {t.phrase: t.category_id for t in truths}

    def coco(entries):
        data = COCO()
        data.dataset = {
            "images": [{"id": i, "height": SIZE, "width": SIZE} for i in range(1, len(images) + 1)],
            "categories": [{"id": i} for i in phrases.values()],
            "annotations": [entry | {"id": i} for i, entry in enumerate(entries, 1)],
        }
        data.createIndex()
        return data

    def entry(image, of, rle):
        place = {"image_id": images.index(image) + 1, "category_id": phrases[of], "area": rle.area()}
        return place | {"segmentation": rle.rle, "iscrowd": 0}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco([entry(t.image_id, t.phrase, m) for t in truths for m in t.masks])
        results = coco(
            [
                entry(p.image_id, p.phrase, m) | {"score": s}
                for p in predictions
                for m, s in zip(p.masks, p.scores, strict=True)
            ]
        )
        evaluation = COCOeval(truth, results, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_pycocotools(seed):
    predictions, truths, images = drawn(seed)
    matches = match_phrases(predictions, truths, images)
    expected = official(predictions, truths, images)
    scores = average_precision(matches)
    assert [scores[name][0] for name in ("AP", "AP50", "AP75")] == pytest.approx(expected.stats[:3].tolist())
    assert precision_curve(matches) == pytest.approx(expected.eval["precision"][0, :, :, 0, -1].mean(axis=1))


def test_weights_are_images_taken_so_often():
    predictions, truths, images = drawn(7)
    weights = np.array([2, 0, 1, 3, 0, 1])
    copies, expected_images = ([], []), []
    for image, count in zip(images, weights.tolist(), strict=True):
        for copy in range(count):
            name = f"{image}, copy {copy}"
            expected_images.append(name)
            for kind, target in zip((predictions, truths), copies, strict=True):
                target.extend(replace(each, image_id=name) for each in kind if each.image_id == image)
    expected = official(*copies, expected_images).stats[:3]
    both = average_precision(match_phrases(predictions, truths, images), np.stack([np.ones(6), weights]))
    assert [both[name][1] for name in ("AP", "AP50", "AP75")] == pytest.approx(expected.tolist())
    assert both["AP"][0] == average_precision(match_phrases(predictions, truths, images))["AP"][0]


def test_phrases_of_a_category_count_as_one():
    """Of one category one of two phrases finds all, of the other category its only phrase: (0.5 + 1) / 2."""
    asked = {"crack": (1, [SQUARE]), "fissure": (1, []), "rust": (2, [SQUARE])}
    predictions = [found("a", phrase, at, [0.9] * len(at)) for phrase, (_, at) in asked.items()]
    truths = [true("a", phrase, [SQUARE], category) for phrase, (category, _) in asked.items()]
    assert average_precision(match_phrases(predictions, truths, ["a"]))["AP"][0] == pytest.approx(0.75)


def test_a_phrase_that_is_nowhere_counts_nowhere():
    predictions = [found("a", "x", [SQUARE], [0.9]), found("a", "y", [SQUARE], [0.9])]
    truths = [true("a", "x", [SQUARE], 1), true("a", "y", [], 2)]
    assert average_precision(match_phrases(predictions, truths, ["a"]))["AP"][0] == pytest.approx(1)
    assert np.isnan(average_precision(match_phrases(predictions[1:], truths[1:], ["a"]))["AP"][0])
    assert precision_curve(match_phrases(predictions[1:], truths[1:], ["a"])) is None


def test_ignored_areas_and_half_labelled_pairs_are_left_out():
    wrong = found("a", "x", [SQUARE, OTHER], [0.9, 0.8])
    right = true("a", "x", [OTHER])
    assert average_precision(match_phrases([wrong], [right], ["a"]))["AP50"][0] == pytest.approx(0.5)
    crowd = replace(right, ignored=true("a", "x", [SQUARE]).masks[0])
    assert average_precision(match_phrases([wrong], [crowd], ["a"]))["AP50"][0] == pytest.approx(1)
    half = [replace(right, image_id="b", exhaustive=False), right]
    both = match_phrases([replace(wrong, image_id="b"), found("a", "x", [OTHER], [0.1])], half, ["a", "b"])
    assert average_precision(both)["AP50"][0] == pytest.approx(1)
