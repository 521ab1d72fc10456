"""The scale of what the adapters learned that validates best, chosen once a run's training is over (WiSE-FT)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...core import distributed
from ...models.checkpoint import load_weights, read_checkpoint, trained_weights
from ..adapter_scale import scale_adapters, scaled_adapters
from ..state import TrainState
from .base import Callback
from .run_folder import write_adapter, write_metrics

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)


class AdapterScaleSearch(Callback):
    """Scales the best adapters down to the scale that validates best, the smallest of equals; only once in a run.

    Args:
        scales: to try, each over 0 and at most 1.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.scales = sorted(scales)

    def on_train_end(self, trainer: Trainer) -> None:
        """Choose, and write ``best.pt``, the adapter and the metrics again."""
        if not trainer.best.exists():
            return
        best = read_checkpoint(trainer.best)
        state = TrainState.from_checkpoint(best.progress, trainer.best)
        load_weights(trainer.model, best, trainer.best)
        if state.adapter_scale is None:
            scores = self._scores(trainer, state)
            state.adapter_scale = max(scores, key=scores.__getitem__)
            state.best_score = scores[state.adapter_scale]
            scale_adapters(trainer.model, state.adapter_scale)
            found = ", ".join(f"{trainer.task.headline} {score:.3f} at {scale:g}" for scale, score in scores.items())
            logger.info(f"scale of the adapters: {found}; {state.adapter_scale:g} is kept")
            if distributed.is_main_process():
                weights = trained_weights(trainer.model, trainer.config.lora.method)
                replace(best, weights=weights, progress=state.to_checkpoint()).save(trainer.best)
        trainer.state.best_score, trainer.state.adapter_scale = state.best_score, state.adapter_scale
        write_adapter(trainer)
        write_metrics(trainer)

    def _scores(self, trainer: Trainer, best: TrainState) -> dict[float, float]:
        """The headline score at each scale; that of the whole adapters is known."""
        found = {}
        for scale in self.scales:
            with trainer.shutdown.interruptible(), scaled_adapters(trainer.model, scale):
                label = f"adapter scale {scale:g}"
                headline = trainer.task.headline
                found[scale] = best.best_score if scale == 1 else trainer.score(label).scores[headline]
        return found
