"""The progress bar of training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...core.console import progress_bar
from .base import Callback, StepReport

if TYPE_CHECKING:
    from ..trainer import Trainer


class ProgressBar(Callback):
    """Shows the steps done, the epoch's mean loss, the best score and the learning rate."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Show the bar."""
        self._bar = progress_bar(total=trainer.run.last_step, initial=trainer.state.step, desc="training")

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Move it on."""
        if self._bar is None:
            return
        state = trainer.state
        best = f"{state.best_score:.3f}" if math.isfinite(state.best_score) else "not yet validated"
        shown = {
            "loss": f"{state.epoch_means().get('total', math.nan):.3f}",
            trainer.task.headline: best,
            "lr": f"{report.learning_rate:.1e}",
        }
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: Trainer) -> None:
        """Close it, before other bars come."""
        self.on_fit_end(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
