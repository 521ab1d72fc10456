"""How routers used their experts, summed over an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .base import Callback, StepReport

if TYPE_CHECKING:
    from ..trainer import Trainer


class RouterStatistics(Callback):
    """Adds each step's use of experts to ``state.epoch_use``, which checkpoints hold."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Add a step's."""
        use = trainer.state.epoch_use
        for layer, share_E in report.result.expert_use.items():
            before_E = torch.tensor(use[layer]) if layer in use else torch.zeros(share_E.shape)
            use[layer] = (before_E + share_E).tolist()
