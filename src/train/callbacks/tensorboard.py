"""What TensorBoard shows while a run trains: steps, validations beside the base's, pictures, and use of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from ...tasks.base import Validation
from ..tensorboard_events import BASE, TensorBoardLogger
from .base import Callback, EpochReport, StepReport
from .step_log import last_record, step_record

if TYPE_CHECKING:
    from ..trainer import Trainer


class TensorBoard(Callback):
    """Shows a run on TensorBoard, each step once. It comes after :class:`~.step_log.StepLog`, whose file it reads."""

    main_process_only: ClassVar[bool] = True

    def __init__(self) -> None:
        self._events: TensorBoardLogger | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the events where the run goes on.

        Of an epoch that is to be closed again, what was shown at its last step is dropped, and the step shown again.
        """
        run, step, redone = trainer.run, trainer.state.step, trainer.state.epoch_steps > 0
        self._events = TensorBoardLogger(trainer.events_folder, step if redone or not step else step + 1)
        self._events.begin(run.config, run.task, step)
        last = last_record(trainer.folder)
        if redone and last is not None and last["step"] == step:
            self._events.step(last)

    @property
    def events(self) -> TensorBoardLogger:
        """The open events."""
        assert self._events is not None, "fit opens them"
        return self._events

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Draw a step."""
        record = step_record(trainer, report)
        self.events.step({**record, "seconds": report.seconds, "waiting_for_data": report.wait / report.seconds})

    def on_validation(self, trainer: Trainer, validation: Validation) -> None:
        """Draw scores and pictures beside the base's, which are those before training."""
        state, task = trainer.state, trainer.task
        with trainer.run.precision.validation():
            scores = {f"validation/{name}": value for name, value in validation.scores.items()}
            scores |= task.extra_scores(trainer.model, validation)
        if state.step == 0:
            state.base_scores = {k: v for k, v in scores.items() if k.rpartition("/")[2] in task.shown_scores}
            state.base_masks = task.picture_data(validation)
        beside = {tag + BASE: value for tag, value in state.base_scores.items()}
        self.events.scalars(scores | beside, state.step)
        for tag, picture in task.pictures(validation, state.base_masks):
            self.events.image(tag, picture, state.step)

    def on_epoch_end(self, trainer: Trainer, report: EpochReport) -> None:
        """Draw how the epoch's steps used their experts."""
        use = {layer: torch.tensor(use) for layer, use in report.expert_use.items()}
        self.events.expert_use(use, trainer.config.lora.experts, trainer.config.lora.top_k, report.step)

    def before_save(self, trainer: Trainer) -> None:
        """Write down all that is waiting, before a checkpoint says that it is there."""
        self.events.sync()

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the events."""
        if self._events is not None:
            self._events.close()
            self._events = None
