"""The lock on a run's folder, so that no two runs write into one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

from ...core.folder_lock import check_held, holding
from ...tasks.base import Validation
from .base import Callback, StepReport

if TYPE_CHECKING:
    from ..trainer import Trainer


class RunLock(Callback):
    """Holds the folder's lock while a run trains, and stops a run whose folder was taken over.

    It comes first, so that it looks before others write.
    """

    main_process_only: ClassVar[bool] = True

    def __init__(self) -> None:
        self._lock = ExitStack()

    def on_fit_start(self, trainer: Trainer) -> None:
        """Take the lock. Raises UserError where another run has it."""
        self._lock.enter_context(holding(trainer.folder))

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Look that it is still there."""
        check_held(trainer.folder)

    def on_validation_end(self, trainer: Trainer, validation: Validation) -> None:
        """Look that it is still there."""
        check_held(trainer.folder)

    def before_save(self, trainer: Trainer) -> None:
        """Look that it is still there."""
        check_held(trainer.folder)

    def on_train_end(self, trainer: Trainer) -> None:
        """Look that it is still there."""
        check_held(trainer.folder)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Let go of it."""
        self._lock.close()
