"""J, F, Dice and mIoU against hand-computed cases, and J, F, recall and decay against DAVIS' definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.ndimage import gaussian_filter

from src.evaluation.metrics import (
    aggregate,
    boundary_measure,
    decay,
    dice,
    recall,
    region_similarity,
    score_object,
)
from tests.evaluation import reference

EMPTY = np.zeros((100, 100), bool)


def square(x0: int, y0: int, side: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def blob(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    field = gaussian_filter(rng.normal(size=shape), rng.uniform(1, 8))
    return field > np.quantile(field, rng.uniform(0.3, 0.97))


@pytest.mark.parametrize(
    ("predicted", "true", "j", "d"),
    [
        (square(0, 0, 10), square(0, 0, 10), 1.0, 1.0),
        (square(0, 0, 10), square(50, 50, 10), 0.0, 0.0),
        (square(0, 0, 10), square(5, 0, 10), 50 / 150, 100 / 200),
        (square(0, 0, 10), square(0, 0, 20), 0.25, 200 / 500),
        (EMPTY, EMPTY, 1.0, 1.0),
        (EMPTY, square(0, 0, 10), 0.0, 0.0),
        (square(0, 0, 10), EMPTY, 0.0, 0.0),
    ],
)
def test_region_similarity_and_dice(predicted, true, j, d):
    assert region_similarity(predicted, true) == pytest.approx(j)
    assert dice(predicted, true) == pytest.approx(d)


class TestBoundary:
    """At 100 × 100 pixels outlines match within ceil(0.008 × 141.4) = 2 pixels."""

    @pytest.mark.parametrize(
        ("predicted", "true", "f"),
        [
            (EMPTY, EMPTY, 1.0),
            (EMPTY, square(20, 20, 30), 0.0),
            (square(20, 20, 30), EMPTY, 0.0),
            (square(20, 20, 30), square(20, 20, 30), 1.0),
            (square(20, 20, 30), square(21, 20, 30), 1.0),
            (square(20, 20, 30), square(22, 20, 30), 1.0),
            (square(20, 20, 30), square(60, 60, 30), 0.0),
            (square(10, 10, 10), square(60, 60, 30), 0.0),
        ],
    )
    def test_by_hand(self, predicted, true, f):
        assert boundary_measure(predicted, true) == pytest.approx(f)

    def test_beyond_the_tolerance_it_falls(self):
        assert boundary_measure(square(20, 20, 30), square(23, 20, 30)) < 1

    def test_a_missing_half_halves_recall_only(self):
        """Of two far squares one is found: precision 1, recall 1/2."""
        true = square(10, 10, 20) | square(60, 60, 20)
        assert boundary_measure(square(10, 10, 20), true) == pytest.approx(2 * 1 * 0.5 / 1.5)
        assert boundary_measure(true, square(10, 10, 20)) == pytest.approx(2 * 0.5 * 1 / 1.5)

    def test_the_tolerance_is_rounded_up_to_whole_pixels(self):
        """At 10 × 10 pixels it is ceil(0.11) = 1."""
        assert boundary_measure(square(2, 2, 4, 10), square(3, 2, 4, 10)) == 1
        assert boundary_measure(square(2, 2, 4, 10), square(4, 2, 4, 10)) < 1

    @pytest.mark.parametrize("seed", range(16))
    def test_it_equals_davis_own(self, seed):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(20, 130, 2))
        true = blob(rng, shape)
        predicted = np.roll(true, rng.integers(-6, 7, 2), (0, 1)) if seed % 2 else blob(rng, shape)
        predicted &= rng.random(shape) < rng.uniform(0.9, 1)
        for tolerance in (0.008, 0.03):
            assert (
                abs(boundary_measure(predicted, true, tolerance) - reference.f(predicted, true, None, tolerance)) < 1e-9
            )

    @pytest.mark.parametrize("true", [~EMPTY, square(0, 0, 100), square(0, 0, 40), square(60, 60, 40)])
    def test_it_equals_davis_own_at_the_border(self, true):
        for predicted in (true, square(1, 1, 99), square(50, 50, 50), EMPTY):
            assert abs(boundary_measure(predicted, true) - reference.f(predicted, true)) < 1e-9

    @pytest.mark.parametrize("true", ["row", "column", "dots", "grid", "corner"])
    def test_it_equals_davis_own_on_thin_masks(self, true):
        mask = np.zeros((60, 45), bool)
        mask[{
            "row": np.s_[30, :], "column": np.s_[:, -1], "dots": np.s_[::9, ::9], "grid": np.s_[::2, ::3],
            "corner": np.s_[-1, -1],
        }[true]] = True  # fmt: skip
        for predicted in (np.roll(mask, 1, 0), np.roll(mask, 3, 1), ~mask, mask[::-1]):
            assert abs(boundary_measure(predicted, mask) - reference.f(predicted, mask)) < 1e-9

    @settings(max_examples=60, deadline=None)
    @given(
        st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
            lambda shape: st.tuples(*[st_numpy.arrays(bool, shape)] * 3)
        ),
        st.sampled_from([0.008, 0.1, 0.3]),
    )
    def test_any_small_masks_score_as_the_definitions_say(self, masks, tolerance):
        predicted, true, void = masks
        assert abs(boundary_measure(predicted, true, tolerance) - reference.f(predicted, true, None, tolerance)) < 1e-9
        assert abs(region_similarity(predicted, true) - reference.j(predicted, true)) < 1e-9
        scored = score_object([predicted], [true], [void])
        assert abs(scored.J - reference.j(predicted, true, void)) < 1e-9
        assert abs(scored.F - reference.f(predicted, true, void)) < 1e-9

    def test_what_is_empty_or_full(self):
        full = ~EMPTY
        for predicted, true in ((full, full), (full, EMPTY), (EMPTY, full), (full, square(0, 0, 50))):
            assert boundary_measure(predicted, true) == reference.f(predicted, true)


class TestOverTime:
    def test_recall_is_the_share_above_a_half(self):
        assert recall(np.array([0.5, 0.51, 0.2, 1.0])) == 0.5

    def test_decay_is_the_first_quarter_less_the_last(self):
        """Of 9 frames the quarters are 0 to 2, 2 to 4, 4 to 6 and 6 to 8."""
        assert decay(np.array([1.0, 1.0, 0.7, 0, 0, 0, 0.3, 0.2, 0.1])) == pytest.approx(0.9 - 0.2)
        assert decay(np.array([0.4])) == 0
        assert decay(np.array([0.9, 0.1])) == pytest.approx(0.8)

    @pytest.mark.parametrize("frames", [*range(1, 30), 100, 256])
    def test_they_equal_davis_own(self, frames):
        values = np.random.default_rng(frames).random(frames)
        mean, expected_recall, expected_decay = reference.statistics(values.tolist())
        assert (recall(values), decay(values)) == pytest.approx((expected_recall, expected_decay), abs=1e-9)
        assert mean == pytest.approx(values.mean())

    def test_decay_of_a_long_video(self):
        assert decay(np.linspace(1, 0, 1001)) == pytest.approx(0.75)


class TestPooled:
    def test_j_and_f_are_means_over_objects_of_means_over_frames(self):
        here, half = square(20, 20, 20), square(30, 20, 20)  # half of each overlaps the other: IoU 1/3, Dice 1/2
        scores = aggregate(
            [score_object([here], [here]), score_object([here, half, EMPTY, EMPTY], [here, here, here, here])]
        )
        f_half = reference.f(half, here)
        assert scores["J"] == pytest.approx((1 + 1 / 3) / 2)
        assert scores["F"] == pytest.approx((1 + (1 + f_half) / 4) / 2)
        assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2)
        # these pool all object-frames: five of them, with IoU 1, 1, 1/3, 0, 0
        assert scores["mIoU"] == pytest.approx((2 + 1 / 3) / 5)
        assert scores["Dice"] == pytest.approx(2.5 / 5)
        # the second object is above 1/2 on one frame of four; its quarters meet on frames 1, 2, 2 (rounded) and 3
        assert scores["J_recall"] == pytest.approx((1 + 1 / 4) / 2)
        assert scores["J_decay"] == pytest.approx((0 + (1 + 1 / 3) / 2 - 0) / 2)

    def test_frames_on_which_the_object_is_absent_count_in_j_and_f_alone(self):
        here = square(20, 20, 20)
        scored = score_object([here, EMPTY, here], [here, None, None])
        assert scored.J_T.tolist() == [1, 1, 0]
        scores = aggregate([scored])
        assert [scores[name] for name in ("J", "F", "J&F", "mIoU", "Dice")] == pytest.approx(
            [2 / 3, 2 / 3, 2 / 3, 1, 1]
        )

    def test_an_empty_mask_is_as_good_as_none(self):
        absent = aggregate([score_object([square(0, 0, 5), EMPTY], [None, None])])
        empty = aggregate([score_object([square(0, 0, 5), EMPTY], [EMPTY, EMPTY])])
        assert absent == pytest.approx(empty, nan_ok=True)

    def test_the_void_is_left_out_of_both_masks(self):
        true, wrong = square(20, 20, 20), square(20, 20, 20) | square(60, 60, 20)
        assert score_object([wrong], [true], [square(60, 60, 20)]).J == 1
        assert score_object([wrong], [true], [None]).J == 0.5
        gone = score_object([wrong], [true], [wrong])
        assert (gone.J, gone.F, gone.visible_T.tolist()) == (1, 1, [False])

    def test_predictions_and_truth_must_be_as_many(self):
        with pytest.raises(ValueError, match="zip"):
            score_object([EMPTY], [EMPTY, EMPTY])

    def test_nothing_scored_is_not_a_number(self):
        assert all(math.isnan(value) for value in aggregate([]).values())
