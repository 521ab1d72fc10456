"""A rehearsal of a run: everything is built, the data are checked, some steps and a validation clip are run for real.

It tells the peak memory and how long the run will take, and where it does not fit, which settings make it fit, each
measured in a process of its own. Nothing is written into the run's folder.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from ..config import Config, image_size_of, one_line_yaml, parse_config
from ..core import distributed
from ..core.console import is_quiet, progress_bar, show_messages
from ..core.errors import UserError, is_out_of_memory
from ..core.machine import Machine, peak_memory, resident_memory, this_machine
from ..data.checks.cache import CHECKS_FOLDER
from ..data.records import DataSet
from ..evaluation.domains import Domain, DomainOptions, retention_domains
from ..tasks.tracking.evaluation import evaluate_domain
from .trainer import Trainer, clip_names

logger = logging.getLogger(__name__)

STEPS = 2
"""Steps of a rehearsal; the first makes what the others find ready, so the last is timed."""

SUGGESTED = 3
"""Settings that are told where a run does not fit."""

_SAMPLED_VIDEOS = 20
_WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal took: bytes at most, and seconds a step, an epoch's validation, and the table at the end."""

    memory: int
    step: float
    validation: float
    table: float
    steps_per_epoch: int
    steps: int


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


def dry_run(config: Config, memory: int | None = None) -> bool:
    """Rehearse a run and print what it takes; returns whether it fits.

    Args:
        config: the run.
        memory: bytes that it may take; None: what is free on its device.

    Raises:
        UserError: what the run itself would raise when it begins.
    """
    if distributed.launched() > 1:
        raise UserError("--dry-run rehearses a run in one process: leave torchrun out")
    machine = this_machine(config.training.device)
    limit = machine.memory if memory is None else memory
    with tempfile.TemporaryDirectory() as scratch:
        known = Path(config.output_dir) / CHECKS_FOLDER
        if known.is_dir():
            shutil.copytree(known, Path(scratch) / CHECKS_FOLDER)
        logger.info(f"rehearsing: the data, {STEPS} steps, and the validation of a video or image")
        found = rehearse_apart(config, Path(scratch), limit)
        print(_told(found, config, machine, limit))
        if found is not None and found.memory <= limit:
            return True
        print(_advice(config, Path(scratch), limit))
    return False


def rehearse(config: Config) -> Rehearsal:
    """Rehearse in this process, writing into the config's output folder."""
    trainer = Trainer(config)
    seconds, batches = 0.0, iter(trainer.loader)
    for _ in range(STEPS if trainer.trains else 0):
        started = time.perf_counter()
        if window := trainer.next_window(batches):
            trainer.train_or_skip(window, clip_names(window), {})
            _finish(trainer.device)
            seconds = time.perf_counter() - started
    per_frame = max(_seconds_a_frame(trainer, domain) for domain in trainer.validation)
    frames = sum(map(_frames_of, trainer.validation))
    watched = sum(map(_frames_of, trainer.watch.workload()))
    kept = per_frame * sum(map(_frames_of, retention_domains(DomainOptions.from_config(config))))
    models = 2 if trainer.trains else 1
    trainer.close()
    return Rehearsal(
        memory=peak_memory(trainer.device),
        step=seconds,
        validation=per_frame * (frames + watched),
        table=models * (per_frame * frames + kept),
        steps_per_epoch=trainer.steps_per_epoch,
        steps=trainer.last_step if trainer.trains else 0,
    )


def _seconds_a_frame(trainer: Trainer, domain: Domain) -> float:
    """Seconds that validation takes for a frame, of the longest of some videos."""
    videos = domain.data.videos
    longest = max(_sample(len(videos)), key=lambda index: len(videos[index]))
    one = replace(domain, data=DataSet(domain.data.name, [videos[longest]]))
    started = time.perf_counter()
    with trainer.autocast_validation():
        evaluate_domain(trainer.model, one, trainer.config.evaluation.prompt, f"validation ({domain.name})")
    _finish(trainer.device)
    return (time.perf_counter() - started) / _frames_of(one)


def _frames_of(domain: Domain) -> float:
    """About how many frames a domain has as it is evaluated, stills being clips then."""
    videos = domain.data.videos
    lengths = [len(videos[index]) for index in _sample(len(videos))]
    return len(videos) * float(np.mean([domain.frames if length == 1 else length for length in lengths]))


def _sample(count: int) -> list[int]:
    taken = min(count, _SAMPLED_VIDEOS)
    return [i * count // taken for i in range(taken)]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# In a process of its own, which may run out of memory


def rehearse_apart(config: Config, folder: Path, limit: int, quiet: bool = False) -> Rehearsal | None:
    """Rehearse in a process of its own, which is ended when it takes more main memory than there is.

    Args:
        config: the run; its output folder is left alone.
        folder: where to write instead.
        limit: bytes of the run's device.
        quiet: whether the process says nothing on the way.

    Returns:
        None where memory ran out.

    Raises:
        UserError: what the run itself would raise when it begins.
    """
    on_gpu = this_machine(config.training.device).device.type == "cuda"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    redirected = config.model_copy(update={"output_dir": str(folder)})
    process = context.Process(target=_rehearse_and_tell, args=(theirs, redirected, quiet or is_quiet()))
    process.start()
    theirs.close()
    try:
        while not ours.poll(_WATCH_SECONDS):
            if not on_gpu and resident_memory(process.pid or 0) > limit:
                return None
        told = ours.recv()
        process.join()
    except EOFError:  # it was killed, as the system does when memory runs out
        return None
    finally:
        process.kill()
        process.join()
    if isinstance(told, str):
        raise UserError(told)
    return told


def _rehearse_and_tell(connection: Connection, config: Config, quiet: bool) -> None:
    """What the process does: sends the rehearsal, None where memory ran out, or a message for the user."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    show_messages(quiet)
    told: Rehearsal | str | None
    try:
        told = rehearse(config)
    except UserError as error:
        told = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = None
    connection.send(told)


# What is told


def _told(found: Rehearsal | None, config: Config, machine: Machine, limit: int) -> str:
    where = "main memory" if machine.device.type != "cuda" else f"memory of {machine.name}"
    if found is None:
        return f"\ndry run: it does not fit into {_size(limit)} of {where}"
    training = config.training
    epochs = found.steps / max(1, found.steps_per_epoch)
    validations = 1 + epochs / training.validate_every_epochs
    total = found.steps * found.step + validations * found.validation + found.table
    clips = f"{training.batch_size * training.gradient_accumulation_steps} clips of {config.dataset.clip.frames} frames"
    fits = "fits" if found.memory <= limit else "does not fit"
    lines = [
        "",
        f"dry run: nothing was written into {config.output_dir}",
        f"  a step    {found.step:.2f} s, of {clips}",
        f"  an epoch  {_time(found.steps_per_epoch * found.step)} of {found.steps_per_epoch} steps, and "
        f"{_time(found.validation)} to validate",
        f"  in all    about {_time(total)}: {epochs:g} epochs, and {_time(found.table)} for the table at the end",
        f"  memory    {_size(found.memory)} at most, of {_size(limit)} of {where}: it {fits}",
    ]
    if training.num_workers and machine.device.type != "cuda":
        lines.append(f"            (and what {training.num_workers} loading processes take beside it)")
    return "\n".join(lines)


def _advice(config: Config, folder: Path, limit: int) -> str:
    """The settings that make a run fit, the ones that save most first; together, where none will do alone."""
    changes = savings(config)
    logger.info("measuring what would fit")
    measured, unmeasured = [], []
    for change in progress_bar(changes, desc="measuring", leave=False):
        found = rehearse_apart(change.applied(config), folder, limit, quiet=True)
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
        together = Change({key: value for change in ranked[:count] for key, value in change.settings.items()})
        found = rehearse_apart(together.applied(config), folder, limit, quiet=True)
        if found is not None and found.memory <= limit:
            return f"together these make it fit:\n  {together}: {_cost(found)}"
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
    if size >= 128:
        changes.append({"model.image_size": size // 64 * 32})
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
