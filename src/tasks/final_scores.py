"""The scores that a run's logs end with: each domain's, gain and forgetting, and the domain gate's rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation.report import summary_markdown
from ..evaluation.results import Comparison
from ..evaluation.tables import gate_rates
from .base import FinalScores


def final_results(comparisons: Sequence[Comparison], learned: Sequence[str], text: str = "") -> FinalScores:
    """Return what a run's logs end with, given base and adapted model, domain by domain.

    Args:
        comparisons: of all domains.
        learned: names of the domains that the run learned.
        text: tables for the screen.
    """
    scalars = final_scores(comparisons, learned) | gate_scores(comparisons, learned)
    return FinalScores(scalars, summary_markdown(comparisons), text)


def final_scores(comparisons: Sequence[Comparison], learned: Sequence[str]) -> dict[str, float]:
    """Return the headline score of each domain, the gain on learned ones and the loss on others.

    Of the base alone there is only its score. A domain without the headline score counts in neither: of it stand the
    scores that it has.
    """
    names = comparisons[0].base.names
    headline = names.headline
    scored = [c for c in comparisons if headline in c.base.scores]
    by_domain = {c.domain.name: (c.adapted or c.base).scores[headline] for c in scored}
    scores = {f"final/{headline}/{name}": value for name, value in by_domain.items()}
    for c in comparisons:
        if headline not in c.base.scores:
            own = (c.adapted or c.base).scores
            scores |= {f"final/{score}/{c.domain.name}": own[score] for score in names.table if score in own}
    if any(c.adapted is None for c in comparisons):
        return scores
    changes = {c.domain.name: by_domain[c.domain.name] - c.base.scores[headline] for c in scored}
    return scores | {f"final/{name}": value for name, value in _gain_and_forgetting(changes, learned).items()}


def gate_scores(comparisons: Sequence[Comparison], learned: Sequence[str]) -> dict[str, float]:
    """Return what becomes of all domains with the domain gate deciding.

    These are its rates, the shares of known videos, and gain and loss of the headline score.
    """
    gated = {c.domain.name: (c, c.gated) for c in comparisons if c.gated is not None}
    if not gated:
        return {}
    headline = comparisons[0].base.names.headline
    changes = {
        name: of.result.scores[headline] - c.base.scores[headline]
        for name, (c, of) in gated.items()
        if headline in c.base.scores
    }
    known = {f"gate/known/{name}": of.known / of.result.size for name, (_, of) in gated.items()}
    rates = gate_rates(list(comparisons)) | _gain_and_forgetting(changes, learned)
    return known | {f"gate/{name}": value for name, value in rates.items()}


def _gain_and_forgetting(changes: Mapping[str, float], learned: Sequence[str]) -> dict[str, float]:
    """``gain``, the mean change of learned domains, and where there are others ``forgetting``, their mean loss."""
    gains = [change for name, change in changes.items() if name in learned]
    losses = [-change for name, change in changes.items() if name not in learned]
    return {"gain": float(np.mean(gains)), **({"forgetting": float(np.mean(losses))} if losses else {})}
