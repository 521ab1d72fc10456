"""Steps whose loss or gradient is infinite or NaN: written down, then skipped or the end of the run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ...core import distributed
from ...core.errors import UserError
from ..resume import LAST
from ..safety import NotFinite
from .base import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)

MAX_DUMPS = 10
"""Bad batches that a run writes down."""


class NonFiniteGuard(Callback):
    """Lets a run skip bad steps, or stops it.

    A gradient that float16 overflowed in is no fault of the batch: its scale has become smaller, training goes on.

    Args:
        action: ``skip`` or ``stop``.
        max_skips: steps skipped in a row before the run stops all the same.
    """

    def __init__(self, action: str, max_skips: int) -> None:
        self.action, self.max_skips = action, max_skips

    def may_skip(self, trainer: Trainer, bad: NotFinite) -> bool:
        """Write the batch down, and allow the step to be skipped. Raises UserError where the run must stop."""
        bad = NotFinite.of_all(distributed.all_gather_object(bad))
        state, scaler = trainer.state, trainer.run.train_step.scaler  # type: ignore[union-attr]
        step = state.step + 1
        overflow = scaler.is_enabled() and bad.of_gradient
        allowed = overflow or self.action == "skip"
        state.skipped += 1
        state.epoch_skipped += 1
        stops = not allowed or state.skipped > self.max_skips
        problem = f"{bad.problem} at step {step} on {bad.names}"
        if stops or not overflow:
            problem += self._dump(trainer, bad, step)
        if stops:
            often = f" (training.max_skips is {self.max_skips})" if allowed else ""
            raise UserError(
                f"{problem}{often}; {trainer.checkpoints / LAST} is of step {trainer.saved_step}; try a lower "
                "training.learning_rate, training.use_amp=false, or training.on_non_finite=skip",
                "training.not-finite",
            )
        if overflow:
            problem = f"float16 overflowed at step {step}; the scale of its loss is now {scaler.get_scale():g}"
        logger.warning(f"warning: step skipped: {problem}")
        return True

    def _dump(self, trainer: Trainer, bad: NotFinite, step: int) -> str:
        """Write the batches down, unless there are many already; returns where, for the message."""
        folder = trainer.folder / f"bad_batch_{step}"
        dumps: int = distributed.broadcast_object(len(list(trainer.folder.glob("bad_batch_*"))))
        if not bad.batches or dumps >= MAX_DUMPS:
            return ""
        if distributed.is_main_process():
            trainer.task.dump_batches(folder, [trainer.run.items.with_pixels(batch) for batch in bad.batches])
        return f"; the batch is in {folder}"
