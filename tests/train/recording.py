"""Trainers whose steps are recorded or disturbed, by callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from src.config import Config
from src.train.callbacks import Callback, StepReport, default_callbacks
from src.train.setup import ObjectiveFactory, build_run
from src.train.trainer import Trainer


class Recorder(Callback):
    """Keeps the losses, names and micro-batches of steps.

    Args:
        before: called before each step, with the trainer.
    """

    def __init__(self, before: Callable[[Trainer], object] = lambda trainer: None) -> None:
        self.losses: list[dict[str, float]] = []
        self.names: list[tuple[str, ...]] = []
        self.micro_batches: list[list[Any]] = []
        self.before = before

    def on_step_start(self, trainer: Trainer, micro_batches: Sequence[Any]) -> None:
        self.before(trainer)
        self.micro_batches.append(list(micro_batches))
        self.names.append(tuple(name for batch in micro_batches for name in batch.names))

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self.losses.append(report.result.losses)


class Recorded(Trainer):
    """A trainer with a :class:`Recorder`; ``poisoned`` is the step before which a weight turns into NaN."""

    def __init__(
        self,
        config: Config,
        resume: str | Path | None = None,
        force: bool = False,
        poisoned: int | None = None,
        before: Callable[[Trainer], object] = lambda trainer: None,
        objectives: Sequence[ObjectiveFactory] = (),
    ) -> None:
        def prepare(trainer: Trainer) -> None:
            if trainer.state.step + 1 == poisoned:
                with torch.no_grad():
                    next(p for p in trainer.model.parameters() if p.requires_grad).fill_(math.nan)
            before(trainer)

        self.recorder = Recorder(prepare)
        run = build_run(config, resume, force, objectives)
        super().__init__(run, [*default_callbacks(config), self.recorder])

    @property
    def losses(self) -> list[dict[str, float]]:
        return self.recorder.losses

    @property
    def names(self) -> list[tuple[str, ...]]:
        return self.recorder.names

    @property
    def text(self) -> str:
        """What the run's log says."""
        return (self.folder / "logs/training.log").read_text()
