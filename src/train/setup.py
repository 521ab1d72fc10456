"""Builds a run: data, model, adapters, optimizer and all else that training needs. Nothing is written or printed.

The one exception is the report on checked data, a cache that the data checks keep in the run's folder.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ..config import Config, LoraConfig
from ..core import distributed
from ..core.device import pick_device
from ..core.errors import UserError
from ..core.shutdown import leave_signals_to_the_parent
from ..core.torch_compat import end_workers
from ..data.clips import BatchSampler, EpochSampler
from ..lora.adapter import AdapterLayer
from ..lora.adapter_io import base_fingerprint
from ..lora.injection import describe_adapters
from ..models.activation_checkpointing import checkpoint_activations
from ..models.checkpoint import Checkpoint, load_weights, read_checkpoint, trained_weights
from ..models.spec import model_spec
from ..tasks.base import Distillation, Items, LossTerms, Task, get_task
from .adapter_setup import setup_adapters, start_adapters
from .feature_cache import CACHE_FOLDER, GB, DiskStore, FrozenEncoder, MemoryStore, Store, cache_key
from .optim import bounded_warmup, build_optimizer, build_schedule, restore
from .precision import Precision
from .resume import AUTO, BEST, check_same_run, eval_settings_changed, find_checkpoint
from .state import TrainState
from .step import Objective, SupervisedLoss, TrainStep

ObjectiveFactory = Callable[[Task, nn.Module], Objective]
"""Makes an objective of a run that is not the library's own, given the model as it is before training."""


@dataclass
class Run:
    """All that a run is made of, ready to train.

    Attributes:
        config: what was asked for.
        task: items, losses and scores.
        model: in training mode, on its device.
        base_fingerprint: of the base's weights.
        data: what is in each data set (:meth:`~src.tasks.base.Task.data_fingerprints`).
        adapters: those that train, by the dotted names of the layers that they adapt.
        groups: the config of each expert group, the one that trains last; empty without groups.
        items: training items.
        sampler: the order of items; its epoch and skip are set before an iterator of the loader is made.
        loader: this process' part of every micro-batch.
        encoder: of a frozen encoder's features; None where it trains along.
        precision: of forward passes.
        train_step: takes optimizer steps; None with method none.
        state: where the run is.
        resumed_from: the checkpoint that it goes on from.
        steps_per_epoch, total_steps: of the whole run.
        last_step: where it stops.
        notes: what the user should know of it, line by line.
    """

    config: Config
    task: Task
    model: nn.Module
    base_fingerprint: str
    data: dict[str, Any]
    adapters: dict[str, AdapterLayer]
    groups: dict[str, LoraConfig]
    items: Items
    sampler: EpochSampler
    loader: DataLoader[Any]
    encoder: FrozenEncoder | None
    precision: Precision
    train_step: TrainStep | None
    state: TrainState
    resumed_from: Path | None
    steps_per_epoch: int
    total_steps: int
    last_step: int
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def next_micro_batches(self, batches: Iterator[Any]) -> list[Any]:
        """Return the micro-batches of one optimizer step: fewer at the end of an epoch, none when it is over.

        In several processes this one's parts of them, None where a short batch has none for it.

        Raises:
            UserError: an item cannot be read.
        """
        micro_batches = []
        for batch in islice(batches, self.config.training.gradient_accumulation_steps):
            if isinstance(batch, UserError):
                raise batch
            micro_batches.append(batch)
        return micro_batches

    def checkpoint(self) -> Checkpoint:
        """Return all that is needed to go on exactly; the same however many processes there are."""
        assert self.train_step is not None
        return Checkpoint(
            config=self.config,
            base_fingerprint=self.base_fingerprint,
            weights=trained_weights(self.model, self.config.lora.method),
            optimizer=self.train_step.optimizer.state_dict(),
            schedule=self.train_step.schedule.state_dict(),
            scaler=self.train_step.scaler.state_dict(),
            progress=self.state.to_checkpoint(),
            groups=self.groups,
            data=self.data,
        )

    def close(self) -> None:
        """End the loader's processes."""
        end_workers(self.loader)


@dataclass(frozen=True)
class _Start:
    """The checkpoint that a run goes on from, if any, and what is to be said of how it was chosen."""

    checkpoint: Checkpoint | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


def build_run(
    config: Config, resume: str | Path | None = None, force: bool = False, objectives: Sequence[ObjectiveFactory] = ()
) -> Run:
    """Build a run, seeding global random generators.

    Several processes each get their part of every batch. The run has one process' losses and weights, up to rounding.

    Args:
        config: the run.
        resume: a checkpoint of an earlier run to go on from; ``auto``: the newest intact one in ``config.output_dir``,
            or a start from nothing where there is none.
        force: go on even where the earlier run's config, base or data differ in what changes the result.
        objectives: make further losses to minimise beside the task's own.

    Raises:
        UserError: data, checkpoint, targets or settings do not fit, or processes do not see the same files.
    """
    training = config.training
    device = pick_device(training.device)
    _check_settings(config, objectives)
    start = _find_start(resume, Path(config.output_dir) / "checkpoints")
    spec = model_spec(config.model.name)
    task = get_task(spec.task)(config)
    with distributed.main_process_first():  # which checks the data
        task.load_data()
    data = task.data_fingerprints()
    _seed(training.seed)
    model = task.build_model()
    fingerprint = base_fingerprint(model)
    notes = [*start.notes, *_check_resume(start, fingerprint, data, config, force)]
    setup = setup_adapters(model, task, config, fingerprint, start.checkpoint)
    model.to(device)
    views, cache_note = _cached_views(task, model, config)
    items = task.build_items(views)
    start_adapters(model, task, setup.adapters, items, training, new=start.checkpoint is None)
    distributed.broadcast_weights(model)
    further = _build_objectives(task, model, config, objectives)
    if start.checkpoint is not None and start.path is not None:
        load_weights(model, start.checkpoint, start.path)
    task.check_adapters(setup.adapters)
    model.train()
    if training.activation_checkpointing:
        checkpoint_activations(model, spec.checkpointed_blocks)
    precision = Precision.from_config(training, device)
    encoder = _build_encoder(task, model, items, config, fingerprint, precision)
    steps_per_epoch = math.ceil(math.ceil(len(items) / training.batch_size) / training.gradient_accumulation_steps)
    total_steps = steps_per_epoch * training.max_epochs
    supervised = SupervisedLoss(task, model, encoder, precision, config.lora.router, training.seed)
    train_step = _build_step(model, config, supervised, further, precision, total_steps)
    state, state_notes = _build_state(start, config, data, task, train_step)
    sampler, loader = _build_loader(task, items, config, encoder, device)
    run = Run(
        config, task, model, fingerprint, data, setup.adapters, setup.groups, items, sampler, loader, encoder,
        precision, train_step, state, start.path, steps_per_epoch, total_steps,
        min(total_steps, training.max_steps or total_steps),
    )  # fmt: skip
    distributed.assert_consistent("what the run goes on from", (state.step, fingerprint, data))
    run.notes = [*notes, *([cache_note] if cache_note else []), *state_notes, *_describe(run)]
    return run


def _check_settings(config: Config, objectives: Sequence[ObjectiveFactory]) -> None:
    """Raise UserError for settings that do not go together, or not with the number of processes."""
    processes = distributed.world_size()
    if config.training.batch_size % processes:
        raise UserError(
            f"training.batch_size is {config.training.batch_size}, which {processes} processes cannot share equally: "
            f"make it a multiple of {processes}",
            "training.batch-not-shared",
        )
    if config.training.penalty.weight and not objectives:
        raise UserError(
            "training.penalty is a baseline of the studies, which a run does not have by itself: build it with "
            "objectives=[weight_penalty], as the command does",
            "training.penalty",
        )


def _find_start(resume: str | Path | None, folder: Path) -> _Start:
    """Read the checkpoint to go on from."""
    if resume is None:
        return _Start()
    if resume != AUTO:
        return _Start(read_checkpoint(resume), Path(resume))
    found = find_checkpoint(folder)
    if found is None:
        note = f"--resume auto: there is no checkpoint in {folder}, so the run starts from the beginning"
        return _Start(notes=(note,))
    path, checkpoint, damaged = found
    notes = (f"warning: passed over a damaged checkpoint: {problem}" for problem in damaged)
    return _Start(checkpoint, path, tuple(notes))


def _check_resume(start: _Start, fingerprint: str, data: dict[str, Any], config: Config, force: bool) -> list[str]:
    """Refuse a checkpoint of another run; returns notes on what ``force`` overrides."""
    if start.checkpoint is None or start.path is None:
        return []
    overridden = check_same_run(start.checkpoint, start.path, fingerprint, data, config, force)
    return [f"warning: --force overrides: {text}" for text in overridden]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _cached_views(task: Task, model: nn.Module, config: Config) -> tuple[int | None, str | None]:
    """In how many views items are drawn, None: afresh in every epoch; and a note on a cache that is off."""
    cache = config.training.cache_features
    if cache is None or task.has_frozen_encoder(model):
        return (cache.views if cache else None), None
    return None, (
        f"training.cache_features is off: with lora.method {config.lora.method} and these lora.target_modules, what "
        "the image encoder makes of a frame changes as training goes on; clips are drawn afresh in every epoch"
    )


class _Distilled:
    """A task's self-distillation as an objective: in the run's precision, its losses under names of their own."""

    source = "the general clips of training.distill"

    def __init__(self, distillation: Distillation, precision: Precision) -> None:
        self.distillation, self.precision = distillation, precision

    def is_due(self, step: int) -> bool:
        """Whether this step has it."""
        return self.distillation.is_due(step)

    def losses(self, step: int) -> LossTerms:
        """Return this process' share of the loss."""
        with self.precision.training():
            terms = self.distillation.losses(step)
        return LossTerms(terms.total, {f"distill_{name}": value for name, value in terms.logged.items()})


def _build_objectives(
    task: Task, model: nn.Module, config: Config, factories: Sequence[ObjectiveFactory]
) -> list[Objective]:
    """Build what is minimised beside the supervised loss; it may look at the model before training."""
    further = [make(task, model) for make in factories]
    distillation = task.distillation(model)
    if distillation is None:
        return further
    return [_Distilled(distillation, Precision.from_config(config.training, next(model.parameters()).device)), *further]


def _build_encoder(
    task: Task, model: nn.Module, items: Items, config: Config, fingerprint: str, precision: Precision
) -> FrozenEncoder | None:
    """Build what encodes items by a frozen encoder; None where it trains along."""
    cache = config.training.cache_features
    if not task.has_frozen_encoder(model):
        return None
    if cache is None:
        return FrozenEncoder(task, model, items, None, 0, 1)
    store: Store = MemoryStore()
    if cache.store == "disk":
        device = next(model.parameters()).device
        key = cache_key(task, items, fingerprint, f"{precision.name} on {device.type}")
        store = DiskStore(Path(config.output_dir) / CACHE_FOLDER / key)
    return FrozenEncoder(task, model, items, store, cache.budget_gb * GB, cache.views)


def _build_step(
    model: nn.Module, config: Config, supervised: SupervisedLoss, objectives: Sequence[Objective],
    precision: Precision, total_steps: int,
) -> TrainStep | None:  # fmt: skip
    """Return the optimizer step; None with method none."""
    if config.lora.method == "none":
        return None
    training = config.training
    optimizer = build_optimizer(model, training)
    schedule = build_schedule(optimizer, training, total_steps)
    return TrainStep(
        model, supervised, objectives, optimizer, schedule, precision.scaler(), training.max_grad_norm,
    )  # fmt: skip


def _build_state(
    start: _Start, config: Config, data: dict[str, Any], task: Task, train_step: TrainStep | None
) -> tuple[TrainState, list[str]]:
    """Return where the run is, with optimizer, schedule and scaler restored; and notes on what is forgotten."""
    if start.checkpoint is None or train_step is None:
        return TrainState(f"{datetime.now():%Y%m%d-%H%M%S}_{config.lora.method}"), []
    checkpoint = start.checkpoint
    try:
        restore(train_step.optimizer, train_step.schedule, checkpoint.optimizer, checkpoint.schedule)
        if checkpoint.scaler:  # there is none of a run that needed none
            train_step.scaler.load_state_dict(checkpoint.scaler)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{start.path}: its optimizer's state does not fit the run: {error!r}; go on from another checkpoint",
            "checkpoint.other-optimizer",
        ) from None
    state, notes = TrainState.from_checkpoint(checkpoint.progress, start.path), []
    changed = eval_settings_changed(checkpoint, data, config)
    if changed:
        notes.append(f"validation gives other scores than before, so the best is chosen again: {'; '.join(changed)}")
    if changed or not (Path(config.output_dir) / "checkpoints" / BEST).exists():
        state.best_score = -math.inf  # in another output folder, the first is the best there
    if changed or not task.is_monitored_alike(checkpoint.config):  # the base's cannot stand beside later ones
        state.base_scores, state.base_masks = {}, {}
    return state, notes


def _build_loader(
    task: Task, items: Items, config: Config, encoder: FrozenEncoder | None, device: torch.device
) -> tuple[EpochSampler, DataLoader[Any]]:
    training = config.training
    sampler = EpochSampler(len(items), training.seed)
    cached = encoder.is_cached if encoder is not None else None
    batches = BatchSampler(sampler, training.batch_size, distributed.rank(), distributed.world_size(), cached)
    dataset: Any = items
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=task.collate,
        num_workers=training.num_workers,
        persistent_workers=training.num_workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator(),  # its own, so that making an iterator draws nothing from the global one
    )
    return sampler, loader


def _describe(run: Run) -> list[str]:
    """Return lines about a run: its warm-up, data, processes, adapters, and what it goes on from."""
    training, processes = run.config.training, distributed.world_size()
    lines = []
    warmup = bounded_warmup(training, run.total_steps)
    if run.train_step is not None and warmup < training.warmup_steps:
        lines.append(
            f"warm-up takes {warmup} of the run's {run.total_steps} steps: training.warmup_steps, "
            f"{training.warmup_steps}, is more than a tenth"
        )
    if run.config.model.checkpoint is None and (weights := model_spec(run.config.model.name).checkpoint):
        lines.append(
            f"warning: model.checkpoint is null, so {run.config.model.name} begins with random weights and knows "
            f"nothing; set it to the base's weights, such as {weights}"
        )
    lines += run.task.describe_data(run.items)
    if processes > 1:
        share = training.batch_size // processes
        lines.append(f"{processes} processes, {share} of a batch's {training.batch_size} clips in each")
    lines.append(describe_adapters(run.model, run.adapters))
    if run.resumed_from is not None:
        lines.append(f"going on from {run.resumed_from}: epoch {run.state.epoch + 1}, step {run.state.step}")
    return lines
