"""The domain gate beside the adapter, fitted once a run's training is over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ...core import distributed
from ...gating.domain_gate import DomainGate
from ...models.checkpoint import ADAPTER_FOLDER
from .base import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)


class FitDomainGate(Callback):
    """Puts a domain gate that knows the learned domains beside the adapter."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Fit it, where there is an adapter."""
        if not (trainer.folder / ADAPTER_FOLDER).is_dir():
            return
        if not trainer.task.has_domain_gate:
            logger.info(f"no domain gate: there is none for {trainer.config.model.name}")
            return
        with trainer.shutdown.interruptible(), distributed.main_process_first():
            if distributed.is_main_process():
                self._fit(trainer)

    def _fit(self, trainer: Trainer) -> None:
        training, folder = trainer.config.training, trainer.folder / ADAPTER_FOLDER
        earlier = training.extend or training.start_from
        before = DomainGate.beside(earlier, trainer.run.base_fingerprint) if earlier else None
        gate = trainer.task.fit_domain_gate(trainer.model, before)
        if gate is None:
            return
        gate.save(folder)
        logger.info(f"domain gate: knows {', '.join(gate.domains)}")
