"""A rehearsal of a run: everything is built, the data are checked, some steps and a validation clip are run for real.

The report has the peak memory and how long the run will take. Where it does not fit, it has the settings that make it
fit, each measured in a process of its own. Nothing is written into the run's folder but the report on the data.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ..config import Config, image_size_of, one_line_yaml, parse_config
from ..core import distributed
from ..core.console import format_error, is_quiet, progress_bar, show_messages
from ..core.errors import UserError, is_out_of_memory
from ..core.machine import Machine, peak_memory, resident_memory, this_machine
from ..data.checks.cache import CHECKS_FOLDER
from ..data.checks.skipped import SKIPPED_FILE
from ..models.spec import model_spec
from .safety import NotFinite
from .setup import ObjectiveFactory, build_run

logger = logging.getLogger(__name__)

STEPS = 2
"""Steps of a rehearsal; the first makes what the others find ready, so the last is timed."""

SUGGESTED = 3
"""Settings that are suggested where a run does not fit."""

_WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal took: bytes at most, and seconds a step, an epoch's validation, and the table at the end.

    ``items`` says what training items are.
    """

    memory: int
    step: float
    validation: float
    table: float
    steps_per_epoch: int
    steps: int
    items: str = "items"


@dataclass(frozen=True)
class Change:
    """Settings that take less memory, with the values that they would have."""

    settings: dict[str, object]

    def applied(self, config: Config) -> Config:
        """The config with them."""
        content = config.model_dump(mode="json")
        for key, value in self.settings.items():
            *sections, name = key.split(".")
            section = content
            for part in sections:
                section = section[part]
            section[name] = value
        return parse_config(content, "--dry-run")

    def __str__(self) -> str:
        return " ".join(f"--set {key}={one_line_yaml(value)}" for key, value in self.settings.items())


def dry_run(
    config: Config,
    show: Callable[[str], object],
    memory: int | None = None,
    objectives: Sequence[ObjectiveFactory] = (),
) -> bool:
    """Rehearse a run and show what it takes; returns whether it fits.

    Args:
        config: the run.
        show: called with each part of the report as soon as it is known, such as ``print``.
        memory: bytes that it may take; None: what is free on its device.
        objectives: as of :func:`~src.train.setup.build_run`.

    Raises:
        UserError: what building the run raises.
    """
    if distributed.launched() > 1:
        raise UserError("--dry-run rehearses a run in one process: leave torchrun out", "dry-run.several-processes")
    machine = this_machine(config.training.device)
    limit = machine.memory if memory is None else memory
    logger.info(f"rehearsing: the data, {STEPS} steps, and the validation of a video or image")
    found = rehearse_apart(config, limit, objectives)
    show(_report(found, config, machine, limit))
    if found is not None and found.memory <= limit:
        return True
    show(_advice(config, limit, objectives))
    return False


def rehearse(config: Config, objectives: Sequence[ObjectiveFactory] = ()) -> Rehearsal:
    """Rehearse in this process."""
    run = build_run(_without_files(config), objectives=objectives)
    seconds, batches = 0.0, iter(run.loader)
    for step in range(STEPS if run.train_step is not None else 0):
        started = time.perf_counter()
        if run.train_step is not None and (micro_batches := run.next_micro_batches(batches)):
            with suppress(NotFinite):
                run.train_step(micro_batches, step)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            seconds = time.perf_counter() - started
    with run.precision.validation():
        workload = run.task.measure_workload(run.model)
    run.close()
    return Rehearsal(
        memory=peak_memory(run.device),
        step=seconds,
        validation=workload.validation,
        table=workload.table,
        steps_per_epoch=run.steps_per_epoch,
        steps=run.last_step if run.train_step is not None else 0,
        items=run.task.item_name.format(dataset=config.dataset),
    )


def _without_files(config: Config) -> Config:
    """The run with no room for features on disk, as a rehearsal leaves nothing there."""
    cache = config.training.cache_features
    if cache is None or cache.store != "disk":
        return config
    training = config.training.model_copy(update={"cache_features": cache.model_copy(update={"budget_gb": 0.0})})
    return config.model_copy(update={"training": training})


# In a process of its own, which may run out of memory


def rehearse_apart(
    config: Config, limit: int, objectives: Sequence[ObjectiveFactory] = (), quiet: bool = False
) -> Rehearsal | None:
    """Rehearse in a process of its own, which is ended when it takes more main memory than there is.

    Args:
        config: the run.
        limit: bytes of the run's device.
        objectives: as of :func:`~src.train.setup.build_run`.
        quiet: whether the process shows no messages.

    Returns:
        None where memory ran out.

    Raises:
        UserError: what the run itself would raise when it begins.
    """
    on_gpu = this_machine(config.training.device).device.type == "cuda"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, config, objectives, quiet or is_quiet())
    process = context.Process(target=_rehearse_and_send, args=arguments)
    process.start()
    theirs.close()
    try:
        while not ours.poll(_WATCH_SECONDS):
            if not on_gpu and resident_memory(process.pid or 0) > limit:
                return None
        found: Rehearsal | UserError | None = ours.recv()
        process.join()
    except EOFError:  # it was killed, as the system does when memory runs out
        return None
    finally:
        process.kill()
        process.join()
    if isinstance(found, UserError):
        raise found
    return found


def _rehearse_and_send(
    connection: Connection, config: Config, objectives: Sequence[ObjectiveFactory], quiet: bool
) -> None:
    """Send the rehearsal, None where memory ran out, or an error for the user; what the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    show_messages(quiet)
    found: Rehearsal | UserError | None
    try:
        found = rehearse(config, objectives)
    except UserError as error:
        found = error
    except Exception as error:
        found = None if is_out_of_memory(error) else UserError(format_error(error), "dry-run.failed")
    connection.send(found)


# The report


def _report(found: Rehearsal | None, config: Config, machine: Machine, limit: int) -> str:
    where = "main memory" if machine.device.type != "cuda" else f"memory of {machine.name}"
    if found is None:
        return f"\ndry run: it does not fit into {_size(limit)} of {where}"
    training = config.training
    epochs = found.steps / max(1, found.steps_per_epoch)
    validations = 1 + epochs / training.validate_every_epochs
    total = found.steps * found.step + validations * found.validation + found.table
    items = f"{training.batch_size * training.gradient_accumulation_steps} {found.items}"
    fits = "fits" if found.memory <= limit else "does not fit"
    lines = [
        "",
        f"dry run: nothing was trained; {_left_in(Path(config.output_dir))}",
        f"  a step    {found.step:.2f} s, of {items}",
        f"  an epoch  {_time(found.steps_per_epoch * found.step)} of {found.steps_per_epoch} steps, and "
        f"{_time(found.validation)} to validate",
        f"  in all    about {_time(total)}: {epochs:g} epochs, and {_time(found.table)} for the table at the end",
        f"  memory    {_size(found.memory)} at most, of {_size(limit)} of {where}: it {fits}",
    ]
    if training.num_workers and machine.device.type != "cuda":
        lines.append(f"            (and what {training.num_workers} loading processes take beside it)")
    return "\n".join(lines)


def _left_in(folder: Path) -> str:
    """Return what a rehearsal leaves in the run's folder, which may hold an earlier run."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not found:
        return f"nothing was written to {folder}"
    if found <= {CHECKS_FOLDER, SKIPPED_FILE}:
        return f"{folder} holds no more than the report on the data"
    return f"nothing was written to {folder} but the report on the data; the rest was there before"


def _advice(config: Config, limit: int, objectives: Sequence[ObjectiveFactory]) -> str:
    """The settings that make a run fit, the ones that save most first; together, where none will do alone."""
    changes = savings(config)
    logger.info("measuring what would fit")
    measured, unmeasured = [], []
    for change in progress_bar(changes, desc="measuring", leave=False):
        found = rehearse_apart(change.applied(config), limit, objectives, quiet=True)
        if found is None:
            unmeasured.append(change)
        else:
            measured.append((change, found))
    measured.sort(key=lambda each: each[1].memory)
    fitting = [f"  {change}: {_cost(found)}" for change, found in measured if found.memory <= limit]
    if fitting:
        return "\n".join(["any of these makes it fit:", *fitting[:SUGGESTED]])
    ranked = [change for change, _ in measured] + unmeasured
    for count in range(min(2, len(ranked)), len(ranked) + 1):
        combined = Change({key: value for change in ranked[:count] for key, value in change.settings.items()})
        found = rehearse_apart(combined.applied(config), limit, objectives, quiet=True)
        if found is not None and found.memory <= limit:
            return f"together these make it fit:\n  {combined}: {_cost(found)}"
    return "no setting of batch, clip or image size makes it fit: take a smaller model.name, or another machine"


def savings(config: Config) -> list[Change]:
    """What a run can do to take less memory, as far as it has not done so."""
    training, clip, size = config.training, config.dataset.clip, image_size_of(config.model)
    changes: list[dict[str, object]] = []
    if not training.activation_checkpointing:
        changes.append({"training.activation_checkpointing": True})
    if training.batch_size > 1:
        steps = training.gradient_accumulation_steps * training.batch_size
        changes.append({"training.batch_size": 1, "training.gradient_accumulation_steps": steps})
    if clip.frames > 2:
        changes.append({"dataset.clip.frames": max(2, clip.frames // 2)})
    if clip.max_objects > 1:
        changes.append({"dataset.clip.max_objects": 1})
    stride = model_spec(config.model.name).stride
    if size >= 4 * stride:
        changes.append({"model.image_size": size // (2 * stride) * stride})
    return [Change(settings) for settings in changes]


def _cost(found: Rehearsal) -> str:
    return f"{_size(found.memory)}, {found.step:.2f} s a step"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GB"


def _time(seconds: float) -> str:
    """Seconds as people say them: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
