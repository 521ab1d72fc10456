"""The training loop: fit → train_epoch → train_step → validate → save. What is not the loop is a callback."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ..config import Config
from ..core import distributed
from ..core.errors import Stopped, UserError
from ..core.shutdown import GracefulShutdown, has_ended
from ..tasks.base import Validation
from .callbacks import default_callbacks
from .callbacks.base import Callback, EpochReport, StepReport
from .resume import BEST, LAST, PREVIOUS
from .safety import NotFinite
from .setup import ObjectiveFactory, Run, build_run
from .step import StepResult

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a run, validates, and lets callbacks keep checkpoints, logs and the adapter.

    Args:
        run: of :func:`~src.train.setup.build_run`.
        callbacks: what hangs on the loop, in order; None: all that a run usually has.

    Attributes:
        run, config, model, task, state: the run and its parts.
        folder: where the run is written.
        checkpoints: its folder of checkpoints.
        best: the checkpoint of the best validation.
        events_folder: of its TensorBoard events.
        saved_step: the step that ``last.pt`` is of.
    """

    def __init__(self, run: Run, callbacks: Sequence[Callback] | None = None) -> None:
        self.run, self.config, self.state = run, run.config, run.state
        self.model, self.task = run.model, run.task
        self.folder = Path(run.config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.checkpoints / BEST
        self.events_folder = self.folder / "logs" / run.state.run_name
        self.saved_step = run.state.step
        chosen = default_callbacks(run.config) if callbacks is None else callbacks
        self.callbacks = [each for each in chosen if distributed.is_main_process() or not each.main_process_only]
        self.shutdown = GracefulShutdown()
        self._loader_processes: list[BaseProcess] = []

    @classmethod
    def from_config(
        cls, config: Config, resume: str | Path | None = None, force: bool = False,
        objectives: Sequence[ObjectiveFactory] = (), callbacks: Sequence[Callback] = (),
    ) -> Trainer:  # fmt: skip
        """Build a run and a trainer of it; ``callbacks`` come after the usual ones. Raises as ``build_run``."""
        return cls(build_run(config, resume, force, objectives), [*default_callbacks(config), *callbacks])

    def fit(self, shutdown: GracefulShutdown | None = None) -> Path | None:
        """Train to the end.

        Args:
            shutdown: entered by the caller, so that signals let the step at hand be finished and saved;
                None: signals do what they do.

        Returns:
            The best checkpoint; None with method none.

        Raises:
            Stopped: by a signal, after the step at hand was saved in ``last.pt``.
            UserError: numbers are bad, a file cannot be read or written, or a process that loads data was killed.
        """
        self.shutdown = shutdown or GracefulShutdown()  # one that is not entered leaves signals alone
        try:
            self.call("on_fit_start")
            for note in self.run.notes:
                logger.info(note)
            return self._fit()
        except Stopped as stop:
            saved = f"after step {self.saved_step}, which {self.checkpoints / LAST} holds"
            where = f" {saved if self.saved_step else 'before anything was saved'}"
            logger.info(f"stopped{where}")
            raise Stopped(stop.number, where) from None
        except UserError:
            raise
        except Exception as error:
            if not has_ended(self._loader_processes):
                raise
            raise UserError(
                "a process that loads data was killed, most likely as memory ran out "
                f"({type(error).__name__}: {' '.join(str(error).split())}); try a lower training.num_workers; "
                "--resume auto goes on from the last save",
                "training.loader-killed",
            ) from None
        finally:
            self.run.close()
            self.call("on_fit_end")

    def _fit(self) -> Path | None:
        """Do what :meth:`fit` does, without regard to how it ends."""
        if self.run.train_step is None:
            logger.info("method none: nothing to train")
            return None
        if math.isnan(self.state.base_score):
            self.validate("base")
        self.call("on_train_start")
        while not self.is_over():
            self.train_epoch()
            if self.is_validation_due():
                self.validate("adapted")
            self.save()
            self.call("on_epoch_saved")
            self.save_or_stop()
        self.call("on_train_end")
        return self.best if self.best.exists() else self.run.resumed_from

    def train_epoch(self) -> None:
        """Train to the end of the epoch, or of the run if that comes first."""
        run, state = self.run, self.state
        run.sampler.epoch, run.sampler.skip = state.epoch, state.clips
        batches = iter(run.loader)
        self._loader_processes = active_children()
        started, first_step, waited = time.perf_counter(), state.step, 0.0
        while state.step < run.last_step:
            asked = time.perf_counter()
            if not (micro_batches := run.next_micro_batches(batches)):
                break
            wait = time.perf_counter() - asked
            waited += wait
            self.train_step(micro_batches, asked, wait)
            self.save_or_stop()
        if state.step != self.saved_step:
            self.save()  # before validation, in which a run may be stopped too
        took, steps = time.perf_counter() - started, max(1, state.step - first_step)
        self._close_epoch(f"{took / steps:.2f} s a step, {waited / took:.0%} of it waiting for data")

    def train_step(self, micro_batches: Sequence[Any], started: float | None = None, wait: float = 0.0) -> StepResult:
        """Take an optimizer step, or skip it where its numbers are bad and callbacks let the run go on.

        Args:
            micro_batches: this process' part of each.
            started: when its data were asked for, by ``time.perf_counter``; None: now.
            wait: seconds that they took.
        """
        state, step = self.state, self.run.train_step
        assert step is not None
        started = time.perf_counter() if started is None else started
        learning_rate = step.optimizer.param_groups[0]["lr"]
        names = item_names(micro_batches)
        self.call("on_step_start", micro_batches)
        try:
            result = step(micro_batches, state.step)
        except NotFinite as bad:
            if not any(each.may_skip(self, bad) for each in self.callbacks):
                raise
            step.skip()
            result = StepResult()
        else:
            state.skipped = 0
            for name in names:
                domain = name.split("/")[0]
                state.epoch_clips[domain] = state.epoch_clips.get(domain, 0) + 1
        state.clips += len(names)
        state.step += 1
        state.epoch_steps += 1
        state.add_losses(result.losses)
        self.call("on_step_end", StepReport(result, names, learning_rate, time.perf_counter() - started, wait))
        return result

    def _close_epoch(self, speed: str) -> None:
        """Write down an epoch that is over, or that the run's end cuts short, and how fast it was."""
        state = self.state
        if state.clips >= len(self.run.items):
            state.epoch, state.clips = state.epoch + 1, 0
        report = EpochReport(
            state.epoch, state.step, state.epoch_means(), state.epoch_use, state.epoch_clips, state.epoch_steps,
            state.epoch_skipped, speed,
        )  # fmt: skip
        state.history.append({"epoch": report.epoch, "step": report.step, **report.losses})
        state.reset_epoch()
        self.call("on_epoch_end", report)

    def validate(self, label: str) -> Validation:
        """Score the validation data; callbacks show the scores, choose the best and write it."""
        with self.shutdown.interruptible():
            validation = self.score(label)
            self.call("on_validation", validation)
            distributed.barrier()
        self.call("on_validation_end", validation)
        return validation

    def score(self, label: str) -> Validation:
        """Score the validation data as evaluation does; all processes get the scores."""
        with self.run.precision.validation():
            return self.task.validate(self.model, label, distributed.shard())

    def is_validation_due(self) -> bool:
        """Whether the run is over, or an epoch at whose end validation is due."""
        state = self.state
        finished = state.clips == 0 and state.epoch % self.config.training.validate_every_epochs == 0
        return finished or state.step >= self.run.last_step

    def is_over(self) -> bool:
        """Whether all steps are done and their last epoch was closed, or a callback wants to stop."""
        under_way = self.state.step < self.run.last_step or self.state.epoch_steps > 0
        return not under_way or any(each.wants_stop(self) for each in self.callbacks)

    def save(self) -> None:
        """Write ``last.pt``; the one before becomes ``previous.pt``. No process goes on before it is written."""
        self.call("before_save")
        self.write_checkpoint(LAST, keep=PREVIOUS)
        distributed.barrier()
        self.saved_step = self.state.step
        self.call("after_save")

    def write_checkpoint(self, name: str, keep: str | None = None) -> None:
        """Write a checkpoint from which the run goes on exactly; ``keep`` is what an earlier one is renamed to."""
        if distributed.is_main_process():
            self.run.checkpoint().save(self.checkpoints / name, self.checkpoints / keep if keep else None)

    def save_or_stop(self) -> None:
        """Write ``last.pt`` if it is due, or if a process got a signal, which then stops all of them here.

        Raises:
            Stopped: a signal came before this was called; one that comes later waits for the next call.
        """
        due = any(each.wants_save(self) for each in self.callbacks)
        asked = distributed.all_gather_object((self.shutdown.number, due))
        number = next((number for number, _ in asked if number is not None), None)
        if (number is not None or asked[0][1]) and self.state.step != self.saved_step:
            self.save()
        if number is not None:
            raise Stopped(number)

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks, in their order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)


def item_names(micro_batches: Sequence[Any]) -> list[str]:
    """Return the names of a step's items, those of all processes, in the order of one."""
    own = [() if batch is None else batch.names for batch in micro_batches]
    return [
        name for parts in zip(*distributed.all_gather_object(own), strict=True) for names in parts for name in names
    ]
