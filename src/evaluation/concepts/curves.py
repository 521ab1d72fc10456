"""Precision over recall, drawn for both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..figures import save_figure
from .average_precision import PhraseMatches, precision_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_curves(domains: Mapping[str, Mapping[str, Sequence[PhraseMatches]]], path: Path) -> None:
    """Write :func:`precision_recall` as a PNG."""
    save_figure(precision_recall(domains), path)


def precision_recall(domains: Mapping[str, Mapping[str, Sequence[PhraseMatches]]]) -> Figure:
    """Plot precision over recall at IoU 0.5, the mean over phrases, for each domain.

    Args:
        domains: domain → model → its matches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(domains), 3.2), layout="constrained")
    for axes, (name, models) in zip(figure.subplots(1, len(domains), squeeze=False).flat, domains.items(), strict=True):
        for model, matches in models.items():
            curve = precision_curve(matches)
            if curve is not None:
                axes.plot(np.linspace(0, 1, len(curve)), curve, label=f"{model}, AP50 {curve.mean():.3f}")
        axes.set(title=name, xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend()
    return figure
