"""Bootstrap intervals: what they hold, that videos are drawn and not objects, and that a change is paired."""

from __future__ import annotations

import numpy as np
import pytest

from src.evaluation.intervals import DRAWS, bootstrap, change, intervals
from src.evaluation.metrics import ObjectScores


def scored(J: float, F: float = 0.5) -> ObjectScores:
    return ObjectScores(np.array([J]), np.array([F]), np.array([J]), np.array([True]))


def test_videos_that_score_alike_leave_no_doubt():
    assert intervals(bootstrap([[scored(0.7)]] * 5)) == {
        score: pytest.approx((value, value)) for score, value in {"J": 0.7, "F": 0.5, "J&F": 0.6}.items()
    }


def test_the_width_is_that_of_the_mean():
    """Of 100 videos with deviation 0.1 the mean has deviation 0.01: 95 % lie within 1.96 of them."""
    J_V = np.random.default_rng(1).normal(0.5, 0.1, 100)
    low, high = intervals(bootstrap([[scored(J)] for J in J_V]))["J"]
    assert low == pytest.approx(J_V.mean() - 1.96 * J_V.std() / 10, abs=0.002)
    assert high == pytest.approx(J_V.mean() + 1.96 * J_V.std() / 10, abs=0.002)


def test_objects_are_aggregated_as_in_the_score():
    """A quarter of the draws is twice the one video, a quarter twice the other; the first has 3 of the 4 objects."""
    values, counts = np.unique(bootstrap([[scored(1.0)] * 3, [scored(0.0)]])["J"], return_counts=True)
    assert values == pytest.approx([0, 3 / 4, 1])
    assert counts / DRAWS == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)


def test_objects_of_a_video_are_drawn_together():
    many = intervals(bootstrap([[scored(1.0)] * 50, [scored(0.0)] * 50]))["J"]
    assert many == (0, 1)


def test_a_change_is_paired():
    J_V = np.random.default_rng(2).random(30)
    base = bootstrap([[scored(J)] for J in J_V])
    adapted = bootstrap([[scored(J + 0.1)] for J in J_V])
    assert intervals(change(base, adapted))["J"] == pytest.approx((0.1, 0.1))
    low, high = intervals(base)["J"]
    assert high - low > 0.1
    assert change(base, None) is None


def test_it_is_the_same_every_time():
    videos = [[scored(J)] for J in np.random.default_rng(3).random(9)]
    assert intervals(bootstrap(videos)) == intervals(bootstrap(videos))


def test_one_video_says_nothing_about_others():
    assert bootstrap([[scored(0.5)]]) is None
    assert bootstrap([[scored(0.5)], []]) is None, "a video without scored objects does not count"
    assert intervals(None) is None
