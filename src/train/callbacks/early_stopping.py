"""The end of a run that gets no better."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .base import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Ends a run whose headline score has not got better for ``patience`` validations."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def wants_stop(self, trainer: Trainer) -> bool:
        """Whether patience is over."""
        if trainer.state.since_best < self.patience:
            return False
        logger.info(f"stopping early: {trainer.task.headline} has not got better for {self.patience} validations")
        return True
