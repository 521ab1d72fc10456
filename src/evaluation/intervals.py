"""Bootstrap intervals: how much scores would vary with other videos of the same kind.

Videos are resampled with replacement, and the scores of their objects aggregated. The interval holds the middle 95 % of
the results (percentile method; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Objects of
one video are alike, so videos are resampled, not objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .metrics import ObjectScores

DRAWS = 2000
SEED = 0
PERCENTILES = (2.5, 97.5)

Draws = dict[str, np.ndarray]
"""Score → its values on all draws, float64 (DRAWS,)."""


def resample(count: int) -> Iterator[np.ndarray]:
    """Yield for each draw the numbers of as many units, with replacement; int64 (count,).

    They depend on the count alone. So for two models on the same units draws are paired.
    """
    rng = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        yield rng.integers(count, size=count)


def bootstrap(videos: Sequence[Sequence[ObjectScores]]) -> Draws | None:
    """Return J, F and J&F on draws of the videos; None with fewer than two videos.

    The draws depend on the number of videos alone. So for two models on the same videos they are paired: the difference
    of scores compares the models on the same draw.

    Args:
        videos: the scores of each video's objects.
    """
    videos = [objects for objects in videos if objects]
    if len(videos) < 2:
        return None
    totals_V3 = np.array([(sum(o.J for o in objects), sum(o.F for o in objects), len(objects)) for objects in videos])
    drawn_D3 = np.array([totals_V3[drawn].sum(axis=0) for drawn in resample(len(videos))])
    J_D, F_D = drawn_D3[:, 0] / drawn_D3[:, 2], drawn_D3[:, 1] / drawn_D3[:, 2]
    return {"J": J_D, "F": F_D, "J&F": (J_D + F_D) / 2}


def intervals(draws: Draws | None) -> dict[str, tuple[float, float]] | None:
    """Return for each score the ends of its 95 % interval; None without draws."""
    if draws is None:
        return None
    ends = {score: np.percentile(values_D, PERCENTILES) for score, values_D in draws.items()}
    return {score: (float(low), float(high)) for score, (low, high) in ends.items()}


def change(base: Draws | None, adapted: Draws | None) -> Draws | None:
    """Return the adapted model's scores less the base's, draw by draw."""
    if base is None or adapted is None:
        return None
    return {score: adapted[score] - base[score] for score in base}
