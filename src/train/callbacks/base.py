"""What hangs on the training loop: a callback does in its hooks what is not the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...tasks.base import Validation
from ..safety import NotFinite
from ..step import StepResult

if TYPE_CHECKING:
    from ..trainer import Trainer


@dataclass(frozen=True)
class StepReport:
    """A step that was done.

    Attributes:
        result: its losses and expert use; without losses where it was skipped.
        names: of its items, those of all processes.
        learning_rate: that it was taken with.
        seconds: that it took, with the wait for its data.
        wait: seconds of these in which its data were not there yet.
    """

    result: StepResult
    names: Sequence[str]
    learning_rate: float
    seconds: float
    wait: float


@dataclass(frozen=True)
class EpochReport:
    """An epoch that is over, or that the run's end cut short.

    Attributes:
        epoch: number of complete epochs.
        step: steps done in all.
        losses: their means.
        expert_use: per routed layer, how much each expert was used, in any unit.
        clips: items that were learned from, by data set.
        steps: done in this epoch.
        skipped: of these.
        speed: seconds a step, and the share of them spent waiting for data, as text.
    """

    epoch: int
    step: int
    losses: dict[str, float]
    expert_use: dict[str, list[float]]
    clips: dict[str, int]
    steps: int
    skipped: int
    speed: str


class Callback:
    """Base class: hooks that do nothing, in the order in which a run calls them.

    Hooks run in every process of a run, unless ``main_process_only``; those that communicate between processes must run
    in all of them.
    """

    main_process_only: ClassVar[bool] = False

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before anything is computed: open files, look at what an earlier run left."""

    def on_validation(self, trainer: Trainer, validation: Validation) -> None:
        """After the validation data were scored; a signal may stop this at any point, and it is then done again."""

    def on_validation_end(self, trainer: Trainer, validation: Validation) -> None:
        """After validation: keep what is better than before."""

    def on_train_start(self, trainer: Trainer) -> None:
        """After the model was validated as it is before training."""

    def on_step_start(self, trainer: Trainer, micro_batches: Sequence[Any]) -> None:
        """Before a step, with this process' part of its micro-batches."""

    def may_skip(self, trainer: Trainer, bad: NotFinite) -> bool:
        """After a step whose numbers are bad, which changed nothing: whether the run may go on without it.

        Raises:
            UserError: it must not, with the reason.
        """
        return False

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """After a step, taken or skipped; ``trainer.state`` has counted it."""

    def wants_save(self, trainer: Trainer) -> bool:
        """Between steps: whether ``last.pt`` should be written now; the main process decides."""
        return False

    def before_save(self, trainer: Trainer) -> None:
        """Before ``last.pt`` is written: make what it says is there outlast a power cut."""

    def after_save(self, trainer: Trainer) -> None:
        """After ``last.pt`` was written."""

    def on_epoch_end(self, trainer: Trainer, report: EpochReport) -> None:
        """After an epoch's last step; its entry in ``trainer.state.history`` is there."""

    def on_epoch_saved(self, trainer: Trainer) -> None:
        """After an epoch was validated, if that was due, and saved."""

    def wants_stop(self, trainer: Trainer) -> bool:
        """Between epochs: whether the run should end now; all processes must say the same."""
        return False

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step: what is done once with a trained model."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """At the end of all, also after an error, also where ``on_fit_start`` was not reached: close files."""
