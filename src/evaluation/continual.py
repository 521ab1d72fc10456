"""Measures of continual learning, from the matrix of scores over stages and domains.

``R[i, j]`` is the score on domain j after stage i. Stage 0 is the base; stage i learns domain i. Domain 0 is the base's
source. So R is square, with T + 1 rows for T learned domains.

Average accuracy, backward and forward transfer are those of Lopez-Paz & Ranzato, "Gradient Episodic Memory for
Continual Learning", NeurIPS 2017. The forgetting measure is that of Chaudhry et al., "Riemannian Walk for Incremental
Learning", ECCV 2018. Two things differ: R may hold any score, such as J&F, in place of accuracy. And the first row is
the base, not an untrained model: the base is a first learned task, and can be forgotten too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Continual:
    """Measures of one sequence of domains; all are differences of scores but ``average``.

    Attributes:
        gain: R[j, j] − R[0, j], right after learning; the mean over learned domains.
        final_gain: R[T, j] − R[0, j], at the end; the mean over learned domains.
        average: average accuracy, the mean of R[T, j] over the source and all learned domains.
        forgetting: the forgetting measure, max of R[i, j] over j ≤ i < T, less R[T, j]; the mean over all but the last.
        backward: backward transfer, R[T, j] − R[j, j], the mean over all but the last.
        forward: forward transfer, R[j − 1, j] − R[0, j], the mean over learned domains but the first; 0 for one domain.
        source: R[T, 0] − R[0, 0].
    """

    gain: float
    final_gain: float
    average: float
    forgetting: float
    backward: float
    forward: float
    source: float


def continual(R: np.ndarray) -> Continual:
    """Return the measures of a matrix of scores.

    Args:
        R: (T + 1, T + 1), T ≥ 1; scores by stage and domain, the source first, then the order of learning.

    Raises:
        ValueError: R is not square, or smaller than 2 × 2.
    """
    if R.ndim != 2 or R.shape[0] != R.shape[1] or len(R) < 2:
        raise ValueError(f"scores must be (T + 1, T + 1) with T of 1 or more, not {R.shape}")
    last = len(R) - 1
    learned, earlier = np.arange(1, last + 1), np.arange(last)
    return Continual(
        gain=float(np.mean([R[j, j] - R[0, j] for j in learned])),
        final_gain=float(np.mean(R[last, 1:] - R[0, 1:])),
        average=float(np.mean(R[last])),
        forgetting=float(np.mean([R[j:last, j].max() - R[last, j] for j in earlier])),
        backward=float(np.mean([R[last, j] - R[j, j] for j in earlier])),
        forward=float(np.mean([R[j - 1, j] - R[0, j] for j in learned[1:]])) if last > 1 else 0.0,
        source=float(R[last, 0] - R[0, 0]),
    )
