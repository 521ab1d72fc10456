"""J, F, Dice and mIoU against hand-computed cases, and F against DAVIS' own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter

from src.evaluation.metrics import Scores, boundary_measure, dice, region_similarity

EMPTY = np.zeros((100, 100), bool)


def square(x0: int, y0: int, side: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def davis_outline(mask: np.ndarray) -> np.ndarray:
    """DAVIS' ``_seg2bmap`` at full size: a pixel unlike its eastern, southern or south-eastern neighbour."""
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1, :] = mask[1:, :]
    south_east[:-1, :-1] = mask[1:, 1:]
    outline = mask ^ east | mask ^ south | mask ^ south_east
    outline[-1, :] = mask[-1, :] ^ east[-1, :]
    outline[:, -1] = mask[:, -1] ^ south[:, -1]
    outline[-1, -1] = False
    return outline


def davis_f(predicted: np.ndarray, true: np.ndarray, tolerance: float = 0.008) -> float:
    """DAVIS' ``f_measure`` (Perazzi et al., 2016): precision and recall of outlines, each dilated by a disk."""
    reach = int(np.ceil(tolerance * np.linalg.norm(true.shape)))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = x**2 + y**2 <= reach**2
    found, wanted = davis_outline(predicted), davis_outline(true)
    found_near_wanted = found & binary_dilation(wanted, disk)
    wanted_near_found = wanted & binary_dilation(found, disk)
    if not found.any() and wanted.any():
        precision, recall = 1.0, 0.0
    elif found.any() and not wanted.any():
        precision, recall = 0.0, 1.0
    elif not found.any() and not wanted.any():
        precision, recall = 1.0, 1.0
    else:
        precision = found_near_wanted.sum() / found.sum()
        recall = wanted_near_found.sum() / wanted.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


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

    @pytest.mark.parametrize("seed", range(25))
    def test_it_equals_davis_own(self, seed):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(20, 150, 2))
        true = blob(rng, shape)
        predicted = np.roll(true, rng.integers(-6, 7, 2), (0, 1)) if seed % 2 else blob(rng, shape)
        predicted &= rng.random(shape) < rng.uniform(0.9, 1)
        for tolerance in (0.008, 0.03):
            assert abs(boundary_measure(predicted, true, tolerance) - davis_f(predicted, true, tolerance)) < 1e-9

    @pytest.mark.parametrize("true", [~EMPTY, square(0, 0, 100), square(0, 0, 40), square(60, 60, 40)])
    def test_it_equals_davis_own_at_the_border(self, true):
        for predicted in (true, square(1, 1, 99), square(50, 50, 50), EMPTY):
            assert abs(boundary_measure(predicted, true) - davis_f(predicted, true)) < 1e-9


class TestScores:
    def test_j_and_f_are_means_over_objects_of_means_over_frames(self):
        scores = Scores()
        here, half = square(20, 20, 20), square(30, 20, 20)  # half of each lies in the other: IoU 1/3, Dice 1/2
        assert scores.add_object([here], [here]) == 1
        assert scores.add_object([here, half, EMPTY, EMPTY], [here, here, here, here]) == pytest.approx(1 / 3)
        f_half = davis_f(half, here)
        summary = scores.summary()
        assert summary["J"] == pytest.approx((1 + 1 / 3) / 2)
        assert summary["F"] == pytest.approx((1 + (1 + f_half) / 4) / 2)
        assert summary["J&F"] == pytest.approx((summary["J"] + summary["F"]) / 2)
        # these pool all object-frames: five of them, with IoU 1, 1, 1/3, 0, 0
        assert summary["mIoU"] == pytest.approx((2 + 1 / 3) / 5)
        assert summary["Dice"] == pytest.approx(2.5 / 5)

    def test_frames_on_which_the_object_is_absent_count_in_j_and_f_alone(self):
        scores = Scores()
        here = square(20, 20, 20)
        assert scores.add_object([here, EMPTY, here], [here, None, None]) == pytest.approx(2 / 3)
        assert scores.summary() == pytest.approx({"J": 2 / 3, "F": 2 / 3, "J&F": 2 / 3, "mIoU": 1.0, "Dice": 1.0})

    def test_an_empty_mask_is_as_good_as_none(self):
        absent, empty = Scores(), Scores()
        absent.add_object([square(0, 0, 5), EMPTY], [None, None])
        empty.add_object([square(0, 0, 5), EMPTY], [EMPTY, EMPTY])
        for score, value in absent.summary().items():
            assert value == pytest.approx(empty.summary()[score], nan_ok=True)

    def test_predictions_and_truth_must_be_as_many(self):
        with pytest.raises(ValueError, match="zip"):
            Scores().add_object([EMPTY], [EMPTY, EMPTY])

    def test_nothing_scored_is_not_a_number(self):
        assert all(math.isnan(value) for value in Scores().summary().values())
