"""When ``last.pt`` is written between epochs, and the checkpoints that are kept of epochs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .base import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer


class Checkpoints(Callback):
    """Asks for ``last.pt`` while an epoch is under way, and keeps ``epoch_*.pt``.

    Args:
        steps: ``last.pt`` at least every so many steps; None: at the end of epochs.
        minutes: ``last.pt`` at least every so many minutes; None: at the end of epochs.
        epochs: an ``epoch_*.pt`` every so many epochs; 0: none.
    """

    def __init__(self, steps: int | None, minutes: float | None, epochs: int) -> None:
        self.steps, self.minutes, self.epochs = steps, minutes, epochs
        self._saved_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Count time from here."""
        self._saved_at = time.monotonic()

    def wants_save(self, trainer: Trainer) -> bool:
        """Whether ``last.pt`` is as many steps or minutes old as is allowed."""
        return (self.steps is not None and trainer.state.step - trainer.saved_step >= self.steps) or (
            self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        )

    def after_save(self, trainer: Trainer) -> None:
        """Count time from here."""
        self._saved_at = time.monotonic()

    def on_epoch_saved(self, trainer: Trainer) -> None:
        """Keep a checkpoint of the epoch."""
        state = trainer.state
        if self.epochs and state.clips == 0 and state.epoch % self.epochs == 0:
            trainer.write_checkpoint(f"epoch_{state.epoch:03d}.pt")
