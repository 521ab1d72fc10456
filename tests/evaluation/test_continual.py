"""Measures of continual learning, on matrices where every number can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from src.evaluation.continual import continual

# rows: base, after the first domain, after the second; columns: source, first, second
R = np.array(
    [
        [0.8, 0.3, 0.4],
        [0.7, 0.6, 0.5],
        [0.75, 0.5, 0.9],
    ]
)


def test_every_number_by_hand():
    found = continual(R)
    assert found.gain == pytest.approx((0.3 + 0.5) / 2)
    assert found.final_gain == pytest.approx((0.2 + 0.5) / 2)
    assert found.average == pytest.approx((0.75 + 0.5 + 0.9) / 3)
    assert found.forgetting == pytest.approx((0.05 + 0.1) / 2)  # the source's best was before anything was learned
    assert found.backward == pytest.approx((-0.05 - 0.1) / 2)
    assert found.forward == pytest.approx(0.1)
    assert found.source == pytest.approx(-0.05)


def test_forgetting_counts_from_the_best_stage_and_backward_transfer_from_the_own():
    scores = np.array([[0.5, 0.1, 0.1], [0.7, 0.4, 0.1], [0.6, 0.4, 0.3]])
    assert continual(scores).forgetting == pytest.approx((0.1 + 0.0) / 2)
    assert continual(scores).backward == pytest.approx((0.1 + 0.0) / 2)


def test_a_domain_that_is_not_learned_yet_cannot_be_forgotten():
    scores = R.copy()
    scores[0, 1] = 0.99  # before it was learned
    assert continual(scores).forgetting == continual(R).forgetting


def test_one_domain_has_no_forward_transfer():
    found = continual(R[:2, :2])
    assert found.forward == 0.0
    assert found.forgetting == pytest.approx(0.1)


@pytest.mark.parametrize("scores", [np.zeros((3, 2)), np.zeros((1, 1)), np.zeros(4)])
def test_other_shapes_are_refused(scores):
    with pytest.raises(ValueError, match="scores must be"):
        continual(scores)
