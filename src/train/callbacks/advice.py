"""What people should know of a run: a line an epoch, warnings, and what to change where it did not help."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from ...lora.adapter import iter_adapter_layers
from ...models.checkpoint import ADAPTER_FOLDER
from ..safety import check_loss_plateau, check_unused_datasets, dead_experts
from .base import Callback, EpochReport

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)


class EpochSummary(Callback):
    """Logs each epoch's mean losses and speed, after warnings of what did not take part in learning."""

    def on_epoch_end(self, trainer: Trainer, report: EpochReport) -> None:
        """Log an epoch."""
        state, names = trainer.state, trainer.task.domain_names
        use = {layer: torch.tensor(use) for layer, use in report.expert_use.items()}
        learns = state.best_score > state.base_score
        for warning in (
            dead_experts(use, trainer.config.lora.experts),
            check_unused_datasets(names if len(names) > 1 else [], report.clips),
            None if learns else check_loss_plateau(state.history),
        ):
            if warning:
                logger.warning(f"warning: epoch {report.epoch}: {warning}")
        losses = ", ".join(f"{name} {value:.4g}" for name, value in report.losses.items())
        skipped = f"; {report.skipped} of {report.steps} steps skipped" if report.skipped else ""
        logger.info(f"epoch {report.epoch}, step {report.step}: {losses} ({report.speed}){skipped}")


class FinalAdvice(Callback):
    """Logs the best score at the end, and advice where it is no better than the base's."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Log the end."""
        state, headline = trainer.state, trainer.task.headline
        logger.info(
            f"done: best {headline} {state.best_score:.3f} on the validation set, base {state.base_score:.3f}; "
            f"checkpoints in {trainer.checkpoints}"
        )
        if state.best_score <= state.base_score:
            logger.warning(f"warning: {no_better_than_the_base(trainer)}")


def no_better_than_the_base(trainer: Trainer) -> str:
    """Return what the run's weights are then good for, and what another run should change."""
    state, training, headline = trainer.state, trainer.config.training, trainer.task.headline
    written = trainer.folder / ADAPTER_FOLDER if any(iter_adapter_layers(trainer.model)) else trainer.best
    advice = trainer.task.advice()
    if advice is None and state.since_best:
        half = training.learning_rate / 2
        advice = f"{headline} did not rise to the end: try training.learning_rate={half:g}, half of it"
    elif advice is None:
        advice = f"{headline} was best at the end: try a training.max_epochs above {training.max_epochs}"
    return (
        f"training got no better than the base ({headline} {state.best_score:.3f}, base {state.base_score:.3f}): use "
        f"the base itself; {written} holds what came closest. {advice}"
    )
