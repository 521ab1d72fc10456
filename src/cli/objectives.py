"""Objectives that a command adds to a run: baselines from the studies, which the library does not import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Config
    from ..train.setup import ObjectiveFactory


def extra_objectives(config: Config) -> list[ObjectiveFactory]:
    """Return what makes the objectives that a config asks for beside its task's own."""
    if not config.training.penalty.weight:
        return []
    from ..studies.weight_penalty import weight_penalty

    return [weight_penalty]
