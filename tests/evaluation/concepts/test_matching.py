"""cgF1 and its parts: equal to the definitions, and what counts neither as right nor as wrong."""

from __future__ import annotations

import numpy as np
import pytest

from src.evaluation.concepts.matching import count_pair
from src.evaluation.concepts.scores import image_counts, micro_scores, presence_auroc
from tests.evaluation.concepts.made import drawn, found, mask, true
from tests.evaluation.concepts.reference import auroc, cgf1

SQUARE = (0, 0, 10, 10)


def counted(predictions, truths):
    return [count_pair(*pair) for pair in zip(predictions, truths, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_the_definitions(seed):
    predictions, truths, images = drawn(seed)
    pairs = counted(predictions, truths)
    scores = micro_scores(image_counts(pairs, images).sum(axis=0)[None])
    expected = cgf1(
        [
            (
                [m.decode() for m, score in zip(p.masks, p.scores, strict=True) if score >= 0.5],
                [m.decode() for m in t.masks],
            )
            for p, t in zip(predictions, truths, strict=True)
        ]
    )
    assert scores.keys() == expected.keys()
    for name, value in expected.items():  # Meta's small numbers in denominators are 1e-4
        assert scores[name][0] == pytest.approx(value, abs=0.03 if name.startswith("cgF1") else 3e-4), name
    presence = {kind: [p.presence for p in pairs if p.present == kind] for kind in (True, False)}
    assert presence_auroc(pairs) == pytest.approx(auroc(presence[True], presence[False]))


def test_instances_are_matched_for_the_best_sum():
    """The better of two is the only match of the second true one: taking it greedily would leave one unmatched."""
    truth = true("a", "x", [(0, 0, 10, 10), (0, 0, 10, 14)])
    pair = count_pair(found("a", "x", [(0, 0, 10, 12), (0, 0, 10, 9)], [0.9, 0.9]), truth)
    assert (pair.tp_T[0], pair.fp_T[0], pair.fn_T[0]) == (2, 0, 0)


def test_a_score_of_a_half_is_an_answer():
    assert count_pair(found("a", "x", [SQUARE], [0.5]), true("a", "x", [])).answered
    assert not count_pair(found("a", "x", [SQUARE], [0.499]), true("a", "x", [])).answered


def test_what_is_in_an_ignored_area_is_no_answer():
    crowd = (0, 0, 12, 12)
    inside = found("a", "x", [SQUARE], [0.9])
    assert not count_pair(inside, true("a", "x", [], ignored=crowd)).answered
    assert count_pair(inside, true("a", "x", [], ignored=(0, 0, 4, 10))).answered, "most of it is outside"
    pair = count_pair(inside, true("a", "x", [SQUARE], ignored=crowd))
    assert (pair.tp_T[0], pair.fn_T[0]) == (1, 0), "a true instance stays one"


def test_boxes_are_compared_where_there_are_no_masks():
    prediction = found("a", "x", [(0, 0, 10, 9)], [0.9])
    boxes = count_pair(prediction, true("a", "x", [SQUARE]), region="bbox")
    assert boxes.tp_T.tolist() == [1] * 9 + [0], "the boxes' IoU is 0.9"
    assert np.count_nonzero(mask((0, 0, 10, 9)) & mask(SQUARE)) / 100 == 0.9


def test_without_a_presence_head_the_best_score_stands_for_it():
    assert count_pair(found("a", "x", [SQUARE] * 2, [0.2, 0.7]), true("a", "x", [])).presence == 0.7
    assert count_pair(found("a", "x", [], []), true("a", "x", [])).presence == 0


def test_a_pair_has_an_f1_of_its_own():
    both = true("a", "x", [SQUARE, (20, 20, 30, 30)])
    assert count_pair(found("a", "x", [SQUARE], [0.9]), both).f1 == pytest.approx(2 / 3)
    assert count_pair(found("a", "x", [], []), true("a", "x", [])).f1 == 1
    assert count_pair(found("a", "x", [SQUARE], [0.9]), true("a", "x", [])).f1 == 0
