"""The weights that validate best: ``best.pt``, the adapter folder and ``metrics.json``."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from ...tasks.base import Validation
from .base import Callback
from .run_folder import write_adapter, write_metrics

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)


class KeepBest(Callback):
    """Writes the model when its headline score, the mean over validation sets, is better than ever."""

    def on_validation_end(self, trainer: Trainer, validation: Validation) -> None:
        """Compare with the scores before; the first ones are of the model before training."""
        state, headline = trainer.state, trainer.task.headline
        score = validation.scores[headline]
        if math.isnan(state.base_score):
            state.base_score = score
            logger.info(
                f"base, before training: {headline} {score:.3f} on the validation set{each_set(validation, headline)}"
            )
            return
        state.history[-1] |= {f"val_{name}": value for name, value in validation.scores.items()}
        better = score > state.best_score
        state.since_best = 0 if better else state.since_best + 1
        state.best_score = max(state.best_score, score)
        rank = ", the best so far" if better else ""
        if better and score <= state.base_score:
            rank += ", but no better than the base"
        shown = ", ".join(f"{name} {validation.scores[name]:.3f}" for name in trainer.task.logged_scores)
        logger.info(
            f"epoch {state.epoch}, step {state.step}: {shown} "
            f"(base {headline} {state.base_score:.3f}){rank}{each_set(validation, headline)}"
        )
        if better:
            state.adapter_scale = None  # that of an earlier best, where the run goes on from it
            trainer.write_checkpoint(trainer.best.name)
            write_adapter(trainer)
        write_metrics(trainer)


def each_set(validation: Validation, headline: str) -> str:
    """Return the score of each set, where there are several, to be added to a line about their mean."""
    ending = f"/{headline}"
    found = {name.removesuffix(ending): value for name, value in validation.scores.items() if name.endswith(ending)}
    return "".join(f"; {name} {value:.3f}" for name, value in found.items())
