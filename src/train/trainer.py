"""The training loop: fit → train_epoch → train_step → validate → save."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from tqdm import tqdm

from ..config import Config, image_size_of
from ..core import distributed
from ..core.console import progress_bar
from ..core.device import pick_device
from ..core.errors import Stopped, UserError
from ..core.files import remove_leftovers, write_text
from ..core.shutdown import GracefulShutdown, has_ended, leave_signals_to_the_parent
from ..data.checks.cache import CHECKS_FOLDER
from ..data.clips import BatchSampler, ClipBatch, EpochSampler, collate
from ..data.records import DataSet
from ..evaluation.domains import DomainOptions, retention_domains, target_domain
from ..evaluation.results import DomainResult
from ..gating.domain_gate import DomainGate
from ..lora.adapter import iter_adapter_layers
from ..lora.adapter_io import base_fingerprint, save_adapter
from ..lora.injection import describe_adapters, routed_layers
from ..lora.recording import record_routing
from ..lora.router_losses import load_balancing_loss, router_z_loss, update_balance_bias
from ..models.activation_checkpointing import checkpoint_activations
from ..models.checkpoint import (
    ADAPTER_FOLDER,
    Checkpoint,
    load_weights,
    read_checkpoint,
    trained_weights,
)
from ..models.sam2.train_forward import BatchTotals, build_loss, build_trainable, seed_draws, segmentation_losses
from ..models.spec import model_spec
from ..tasks.tracking.evaluation import evaluate_domain
from .adapter_scale import scale_adapters, scaled_adapters
from .adapter_setup import init_from_data, setup_adapters
from .board import BASE, TensorBoardLogger
from .data import fit_gate_to, load_training_sets, training_clips
from .distill import Distillation, general_clips
from .feature_cache import build_encoder, cached_views
from .logger import RunLogger, StepLog
from .optim import bounded_warmup, build_optimizer, build_schedule, restore
from .penalty import build_anchor
from .provenance import RUN_FILE, write_start
from .resume import (
    AUTO,
    BEST,
    LAST,
    PREVIOUS,
    check_same_run,
    contents,
    eval_settings_changed,
    find_checkpoint,
)
from .safety import (
    NotFinite,
    bad_gradients,
    bad_weights,
    check_loss_plateau,
    check_unused_datasets,
    dead_experts,
    dump_batches,
    quoted,
    watching_layers,
)
from .watch import SCORES, Masks, ValidationMonitor, monitors_alike

SMALL_OBJECT = 8  # pixels, half a token of SAM 2's features

MOST_DUMPS = 10  # bad batches that a run writes down

_BAD = "bad"  # among the losses that processes exchange: in how many of them the piece's is not finite

# what one run leaves in its folder, and a new run moves aside
RUN_FILES = (
    "checkpoints", ADAPTER_FOLDER, "config.yaml", "metrics.json", "results.json", "results.md", "overlays",
    "clicks.png",
    "predictions", "steps.jsonl", "bad_batch_*", RUN_FILE,
)  # fmt: skip


@dataclass
class Progress:
    """Where a run is.

    ``clips`` counts the clips done in the current epoch, which has ``epoch_steps`` steps so far, with these sums of
    their losses and counts of the steps that had them, these counts of every layer's experts and of every set's clips,
    and ``epoch_skipped`` of the steps skipped; all of them 0 between epochs. ``skipped`` counts the steps skipped in a
    row. ``base_scores``, by tag, and ``base_masks`` are of the model before training, to be shown beside what becomes
    of it. ``strength`` is the share of ``training.adapter_scales`` that was chosen at the end.
    """

    run_name: str
    epoch: int = 0
    clips: int = 0
    step: int = 0
    base_J: float = math.nan
    base_scores: dict[str, float] = field(default_factory=dict)
    base_masks: Masks = field(default_factory=dict)
    best_J: float = -math.inf
    since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    epoch_steps: int = 0
    epoch_sums: dict[str, float] = field(default_factory=dict)
    epoch_counts: dict[str, int] = field(default_factory=dict)
    epoch_use: dict[str, list[float]] = field(default_factory=dict)
    epoch_clips: dict[str, int] = field(default_factory=dict)
    epoch_skipped: int = 0
    skipped: int = 0
    strength: float | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of a step, with a backward pass of its own: this process' share of it.

    ``loss``: with graph. ``told``: losses by name, to be summed over pieces. ``explain``: what to raise where ``loss``
    is not finite. ``of_task``: whether something must learn from it.
    """

    loss: Tensor
    told: dict[str, Tensor]
    explain: Callable[[], NotFinite]
    of_task: bool = False


class Trainer:
    """Trains what ``config.lora.method`` says, validates, and keeps checkpoints, logs and the adapter.

    Several processes (:mod:`src.core.distributed`) each train on their part of every batch, and are one run: it has the
    losses and weights of one process, up to rounding, and the first process alone writes and speaks.

    Args:
        config: the run.
        resume: a checkpoint of an earlier run to go on from; ``auto``: the newest intact one in ``config.output_dir``,
            or a start from nothing where there is none.
        force: go on even where the earlier run's config, base or data differ in what changes the result.

    Raises:
        UserError: data, checkpoint, targets or settings do not fit; before anything is written, but for the report on
            the data. In several processes also: they cannot share a batch, or do not see the same files.
    """

    def __init__(self, config: Config, resume: str | Path | None = None, force: bool = False) -> None:
        self.config = config
        training, dataset = config.training, config.dataset
        self.folder = Path(config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.checkpoints / BEST
        self.device = pick_device(training.device)
        if training.batch_size % distributed.world_size():
            raise UserError(
                f"training.batch_size is {training.batch_size}, which {distributed.world_size()} processes cannot share equally: "
                f"make it a multiple of {distributed.world_size()}"
            )
        resumed, self.resume, told = _checkpoint_to_resume(resume, self.checkpoints)
        size = image_size_of(config.model)

        with distributed.main_process_first():  # which checks the data
            self.train_sets = train_sets = load_training_sets(config)
            options = DomainOptions.from_config(config)
            self.validation = [target_domain(each, "valid", options) for each in dataset.domains]
            kept = retention_domains(options)  # also so that mistakes in them are told now, not when training is over
        self.watch = ValidationMonitor(config, self.validation, kept)
        self.data = contents(train_sets, [domain.data for domain in self.validation])

        random.seed(training.seed)
        np.random.seed(training.seed)
        torch.manual_seed(training.seed)
        self.model = build_trainable(config.model, training.prompts, dataset.clip.frames)
        self.base_fingerprint = base_fingerprint(self.model)
        if resumed and self.resume:
            overridden = check_same_run(resumed, self.resume, self.base_fingerprint, self.data, config, force)
            told += [f"warning: --force overrides: {text}" for text in overridden]
        adapter_setup = setup_adapters(self.model, config, self.base_fingerprint, resumed)
        adapters, self.groups = adapter_setup.adapters, adapter_setup.groups
        self.model.to(self.device)
        views, off = cached_views(self.model, config)
        told += [off] if off else []
        self.clips = clips = training_clips(config, train_sets, views)
        if training.adapter_init == "data" and not resumed:
            init_from_data(self.model, adapters, clips, training.seed)
        self.trains = config.lora.method != "none"
        if self.trains:
            self.gradients = distributed.Gradients(self.model)
        self.anchor = build_anchor(self.model, config) if training.penalty.weight else None
        distill = training.distill
        self.distiller = (
            Distillation(
                self.model, general_clips(config), dataset.clip, size, distill, training.loss, training.seed
            )
            if distill.weight
            else None
        )  # fmt: skip
        if resumed and self.resume:
            load_weights(self.model, resumed, self.resume)
        if adapters and dataset.clip.frames == 1 and all(name.startswith("memory_") for name in adapters):
            raise UserError(
                "dataset.clip.frames is 1: SAM 2 skips memory attention on the prompted frame, so adapters in "
                "lora.target_modules would get no gradient; set it to 2 or more"
            )
        self.model.train()
        if training.activation_checkpointing:
            checkpoint_activations(self.model, model_spec(config.model.name).checkpointed_blocks)
        self.loss = build_loss(training.loss, training.enable_segmentation)
        self.routed = bool(routed_layers(self.model))

        use_amp = self.device.type == "cuda" if training.use_amp == "auto" else training.use_amp
        amp_dtype = getattr(torch, training.amp_dtype)
        self.autocast = partial(torch.autocast, self.device.type, dtype=amp_dtype, enabled=use_amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=use_amp and amp_dtype == torch.float16)
        # SAM 2's predictor keeps memories in bfloat16, which an autocast to float16 refuses: then it works in float32
        self.autocast_validation = partial(self.autocast, enabled=use_amp and amp_dtype != torch.float16)

        batches_per_epoch = math.ceil(len(clips) / training.batch_size)
        self.steps_per_epoch = math.ceil(batches_per_epoch / training.gradient_accumulation_steps)
        self.total_steps = self.steps_per_epoch * training.max_epochs
        self.last_step = min(self.total_steps, training.max_steps or self.total_steps)

        if self.trains:
            self.optimizer = build_optimizer(self.model, training)
            self.schedule = build_schedule(self.optimizer, training, self.total_steps)
            warmup = bounded_warmup(training, self.total_steps)
            if warmup < training.warmup_steps:
                told.append(
                    f"warm-up takes {warmup} of the run's {self.total_steps} steps: training.warmup_steps, "
                    f"{training.warmup_steps}, is more than a tenth"
                )

        self.progress = Progress(run_name=f"{datetime.now():%Y%m%d-%H%M%S}_{config.lora.method}")
        if resumed:
            restore(self.optimizer, self.schedule, resumed.optimizer, resumed.schedule)
            if resumed.scaler:  # there is none of a run that needed none
                self.scaler.load_state_dict(resumed.scaler)
            self.progress = _progress_of(resumed, self.resume)
            if judged := eval_settings_changed(resumed, self.data, config):
                told.append(
                    f"validation gives other scores than before, so the best is chosen anew: {'; '.join(judged)}"
                )
            if judged or not self.best.exists():  # another output folder: whatever comes first is the best there
                self.progress.best_J = -math.inf
            if judged or not monitors_alike(resumed.config, config):  # the base's cannot stand beside what comes now
                self.progress.base_scores, self.progress.base_masks = {}, {}
        distributed.assert_consistent(
            "what the run goes on from", (self.progress.step, self.base_fingerprint, self.data)
        )
        moved = None
        if distributed.is_main_process():
            moved = None if resumed else archive_previous_run(self.folder)
            for folder in (self.folder, self.checkpoints, self.folder / ADAPTER_FOLDER, self.folder / CHECKS_FOLDER):
                remove_leftovers(folder)
            write_text(self.folder / "config.yaml", config.to_yaml())
            write_start(self.folder, self.progress.step, self.base_fingerprint, self.data, str(self.device))
        self.stops = GracefulShutdown(tells=distributed.is_main_process())
        self.loaders: list[BaseProcess] = []
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self.log = distributed.rank_zero_only(lambda: RunLogger(self.folder / "logs"))
        self.steps = distributed.rank_zero_only(lambda: StepLog(self.folder / "steps.jsonl", self.progress.step))
        self.board_folder = self.folder / "logs" / self.progress.run_name
        self.board = distributed.rank_zero_only(lambda: self.open_tensorboard([domain.name for domain in kept]))

        precision = training.amp_dtype if use_amp else "float32"
        self.encoder = build_encoder(self.model, clips, config, self.base_fingerprint, precision, self.log.say)
        self.sampler = EpochSampler(len(clips), training.seed)
        known = self.encoder.is_cached if self.encoder else None
        self.loader: DataLoader = DataLoader(
            clips, batch_sampler=BatchSampler(self.sampler, training.batch_size, distributed.rank(), distributed.world_size(), known),
            collate_fn=collate, num_workers=training.num_workers,
            persistent_workers=training.num_workers > 0, pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # its own, so that making an iterator draws nothing from the global one
        )  # fmt: skip

        for line in told:
            self.log.say(line)
        if moved:
            self.log.say(f"an earlier run was moved to {moved}")
        for data, share, domain in zip(train_sets, clips.shares, self.validation, strict=True):
            drawn = f"; {share} of {len(clips)} clips an epoch" if len(train_sets) > 1 else ""
            self.log.say(f"{data.name}, train: {len(data)} images or videos{_notes(data)}{drawn}")
            self.log.say(f"{data.name}, valid: {len(domain.data)} images or videos{_notes(domain.data)}")
            side = data.median_object_side(size)
            if side < SMALL_OBJECT:
                self.log.say(
                    f"warning: {data.name}: half of the objects are smaller than {side:.1f} px at model.image_size "
                    f"{size}, too small to be tracked well; model.image_size {2 * size} or more would show them larger"
                )
        if distributed.world_size() > 1:
            share = training.batch_size // distributed.world_size()
            self.log.say(
                f"{distributed.world_size()} processes, {share} of a batch's {training.batch_size} clips in each"
            )
        self.log.say(describe_adapters(self.model, adapters))
        if resumed:
            self.log.say(f"going on from {self.resume}: epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def open_tensorboard(self, kept: list[str]) -> TensorBoardLogger:
        """Show the run on TensorBoard from where it goes on, each step once.

        Of an epoch that is to be closed again, what was shown at its last step is dropped, and the step shown anew.
        """
        step, redone = self.progress.step, self.progress.epoch_steps > 0
        board = TensorBoardLogger(self.board_folder, step if redone or not step else step + 1)
        board.begin(self.config, [data.name for data in self.config.dataset.domains], kept, step)
        if redone and self.steps.last is not None and self.steps.last["step"] == step:
            board.step(self.steps.last)
        return board

    def fit(self) -> Path | str | None:
        """Train to the end; returns the path of the best checkpoint, or None with method none.

        Raises:
            Stopped: by SIGINT or SIGTERM, after the step at hand was finished and saved in ``last.pt``.
            UserError: numbers are bad, a file cannot be read or written, or a process that loads data was killed.
        """
        try:
            with self.stops:
                return self.run()
        except Stopped as stop:
            saved = f"after step {self.saved_step}, which {self.checkpoints / LAST} holds"
            where = f" {saved if self.saved_step else 'before anything was saved'}"
            self.log.say(f"stopped{where}")
            raise Stopped(stop.number, where) from None
        except UserError:
            raise
        except Exception as error:
            if not has_ended(self.loaders):
                raise
            raise UserError(
                "a process that loads data was killed, most likely as memory ran out "
                f"({type(error).__name__}: {' '.join(str(error).split())}); try a lower training.num_workers; "
                "--resume auto goes on from the last save"
            ) from None
        finally:
            self.close()

    def close(self) -> None:
        """Close the files that the run writes step by step, and end its loader processes.

        They ignore signals, so an interpreter that ends while something still holds the trainer would wait for them.
        """
        if isinstance(self.loader._iterator, _MultiProcessingDataLoaderIter):
            self.loader._iterator._shutdown_workers()
            self.loader._iterator = None
        self.log.close()
        self.board.close()
        self.steps.close()

    def run(self) -> Path | str | None:
        """What :meth:`fit` does, without regard to signals."""
        if not self.trains:
            self.log.say("method none: nothing to train")
            return None
        if math.isnan(self.progress.base_J):
            with self.stops.interruptible():
                scores = self.validate("base")
            self.progress.base_J = scores["J"]
            self.log.say(f"base, before training: J {scores['J']:.3f} on the validation set{_each_set(scores)}")
        with progress_bar(total=self.last_step, initial=self.progress.step, desc="training") as bar:
            while not self.is_over():
                self.train_epoch(bar)
                finished = self.progress.epoch % self.config.training.validate_every_epochs == 0
                if (finished and self.progress.clips == 0) or self.progress.step >= self.last_step:
                    self.validate_and_save()
                self.save_last()
                every = self.config.training.save_every.epochs
                if every and self.progress.clips == 0 and self.progress.epoch % every == 0:
                    self.save(f"epoch_{self.progress.epoch:03d}.pt")
                self.save_and_stop_if_asked()
        if self.config.training.adapter_scales != [1.0] and self.best.exists():
            self.choose_strength()
        self.log.say(
            f"done: best J {self.progress.best_J:.3f} on the validation set, base {self.progress.base_J:.3f}; "
            f"checkpoints in {self.checkpoints}"
        )
        if self.progress.best_J <= self.progress.base_J:
            self.log.say(f"warning: {self.no_better_than_the_base()}")
        if self.config.training.domain_gate and (self.folder / ADAPTER_FOLDER).is_dir():
            with self.stops.interruptible(), distributed.main_process_first():
                if distributed.is_main_process():
                    self.fit_domain_gate()
        return self.best if self.best.exists() else self.resume

    def choose_strength(self) -> None:
        """Weaken the best adapters to the share that validates best, the weakest of equals; only once in a run."""
        best = read_checkpoint(self.best)
        progress = _progress_of(best, self.best)
        load_weights(self.model, best, self.best)
        if progress.strength is None:
            found = {}
            for share in sorted(self.config.training.adapter_scales):
                with self.stops.interruptible(), scaled_adapters(self.model, share):
                    found[share] = progress.best_J if share == 1 else self.score(f"strength {share:g}")[0]["J"]
            progress.strength = max(found, key=found.__getitem__)
            progress.best_J = found[progress.strength]
            scale_adapters(self.model, progress.strength)
            told = ", ".join(f"J {J:.3f} at {share:g}" for share, J in found.items())
            self.log.say(f"strength of the adapters: {told}; {progress.strength:g} is kept")
            if distributed.is_main_process():
                weights = trained_weights(self.model, self.config.lora.method)
                replace(best, weights=weights, progress=asdict(progress)).save(self.best)
        self.progress.best_J, self.progress.strength = progress.best_J, progress.strength
        self.write_adapter()
        self.write_metrics()

    def no_better_than_the_base(self) -> str:
        """What the run's weights are then good for, and what another run should change."""
        progress, training = self.progress, self.config.training
        kept = self.folder / ADAPTER_FOLDER if any(iter_adapter_layers(self.model)) else self.best
        prompt = self.config.evaluation.prompt
        advice = f"J was best at the end: try a training.max_epochs above {training.max_epochs}"
        if getattr(training.prompts, prompt) < 1:
            advice = f"Try training.prompts.{prompt}=1 and the others 0: it is scored by {prompt} prompts alone"
        elif progress.since_best:
            advice = f"J did not rise to the end: try training.learning_rate={training.learning_rate / 2:g}, half of it"
        return (
            f"training got no better than the base (J {progress.best_J:.3f}, base {progress.base_J:.3f}): use the base "
            f"itself; {kept} holds what came closest. {advice}"
        )

    def is_over(self) -> bool:
        """Whether all steps are done and their last epoch was closed, or patience has come to its end."""
        under_way = self.progress.step < self.last_step or self.progress.epoch_steps > 0
        return not under_way or self.should_stop_early()

    def fit_domain_gate(self) -> None:
        """Put a domain gate that knows the learned domains beside the adapter."""
        training = self.config.training
        earlier = training.extend or training.start_from
        before = DomainGate.beside(earlier, self.base_fingerprint) if earlier else None
        gate = fit_gate_to(self.model, self.train_sets, before)
        if gate is None:
            self.log.say("no domain gate: a domain has one labelled frame only")
            return
        gate.save(self.folder / ADAPTER_FOLDER)
        self.log.say(f"domain gate: knows {', '.join(gate.domains)}")

    def train_epoch(self, bar: tqdm) -> None:
        """Train to the end of the epoch, or of the run if that comes first."""
        progress = self.progress
        self.sampler.epoch = progress.epoch
        self.sampler.skip = progress.clips
        usage = {layer: torch.tensor(use) for layer, use in progress.epoch_use.items()}
        batches = iter(self.loader)
        self.loaders = active_children()
        started, steps_before, waited = time.perf_counter(), progress.step, 0.0
        while progress.step < self.last_step:
            asked = time.perf_counter()
            if not (window := self.next_window(batches)):
                break
            wait = time.perf_counter() - asked
            waited += wait
            rate = self.optimizer.param_groups[0]["lr"]
            names = clip_names(window)
            losses = self.train_or_skip(window, names, usage)
            progress.clips += len(names)
            progress.step += 1
            progress.epoch_steps += 1
            for name, value in losses.items():
                progress.epoch_sums[name] = progress.epoch_sums.get(name, 0.0) + value
                progress.epoch_counts[name] = progress.epoch_counts.get(name, 0) + 1
            progress.epoch_use = {layer: use.tolist() for layer, use in usage.items()}
            self.log_step(names, losses, rate, time.perf_counter() - asked, wait)
            bar.set_postfix(
                loss=f"{self.epoch_means().get('total', math.nan):.3f}",
                J=f"{progress.best_J:.3f}" if math.isfinite(progress.best_J) else "not yet validated",
                lr=f"{rate:.1e}",
                refresh=False,
            )
            bar.update()
            self.save_and_stop_if_asked()
        if progress.step != self.saved_step:
            self.save_last()  # before validation, in which a run may be stopped too
        took = time.perf_counter() - started
        steps = max(1, progress.step - steps_before)
        self.close_epoch(f"{took / steps:.2f} s a step, {waited / took:.0%} of it waiting for data")

    def save_and_stop_if_asked(self) -> None:
        """Write ``last.pt`` if it is due, or a process got a signal, which then stops all of them here.

        Raises:
            Stopped: a signal came before this was called; one that comes later waits for the next call.
        """
        asked = distributed.all_gather_object((self.stops.number, self.is_save_due()))
        number = next((number for number, _ in asked if number is not None), None)
        if (number is not None or asked[0][1]) and self.progress.step != self.saved_step:
            self.save_last()
        if number is not None:
            raise Stopped(number)

    def train_or_skip(
        self, window: list[ClipBatch | None], names: list[str], usage: dict[str, Tensor]
    ) -> dict[str, float]:
        """A step, or none where its numbers are bad and ``training.on_non_finite`` allows that; returns its losses.

        Args:
            window: this process' part of the step's batches.
            names: of the clips of all parts.
            usage: of the experts, in this epoch, which the step adds to.

        Raises:
            UserError: they are bad, and that is not allowed, or has been too often in a row.
        """
        progress = self.progress
        try:
            losses = self.train_step(window, usage)
        except NotFinite as bad:
            losses = self.skip(bad)
        else:
            progress.skipped = 0
            for name in names:
                source = name.split("/")[0]
                progress.epoch_clips[source] = progress.epoch_clips.get(source, 0) + 1
        return losses

    def skip(self, bad: NotFinite) -> dict[str, float]:
        """Leave a step out, if that is allowed; the batch is written down to look at. Returns no losses.

        A gradient that float16 overflowed in is no fault of the batch: its scale has become smaller, training goes on.
        """
        bad = NotFinite.of_all(distributed.all_gather_object(bad))
        progress, training = self.progress, self.config.training
        step = progress.step + 1
        overflow = self.scaler.is_enabled() and bad.of_gradient
        allowed = overflow or training.on_non_finite == "skip"
        progress.skipped += 1
        progress.epoch_skipped += 1
        stops = not allowed or progress.skipped > training.max_skips
        told = f"{bad.problem} at step {step} on {bad.names}"
        folder = self.folder / f"bad_batch_{step}"
        dumps: int = distributed.broadcast_object(len(list(self.folder.glob("bad_batch_*"))))
        if bad.batches and (stops or not overflow) and dumps < MOST_DUMPS:
            if distributed.is_main_process():
                dump_batches(folder, [self.clips.with_pixels(batch) for batch in bad.batches])
            told += f"; the batch lies in {folder}"
        if stops:
            often = f" (training.max_skips is {training.max_skips})" if allowed else ""
            raise UserError(
                f"{told}{often}; {self.checkpoints / LAST} is of step {self.saved_step}; try a lower "
                "training.learning_rate, training.use_amp=false, or training.on_non_finite=skip"
            )
        if overflow:
            told = f"float16 overflowed at step {step}; the scale of its loss is now {self.scaler.get_scale():g}"
        self.log.say(f"warning: step skipped: {told}")
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step()  # without gradients nothing moves; the schedule wants to come after one
        self.schedule.step()
        return {}

    def epoch_means(self) -> dict[str, float]:
        """The mean losses of the epoch so far, each over the steps that had it."""
        counts = self.progress.epoch_counts
        return {name: value / counts[name] for name, value in self.progress.epoch_sums.items()}

    def log_step(self, names: list[str], losses: dict[str, float], rate: float, seconds: float, wait: float) -> None:
        """Write down a step that was done on clips of these names, and took so long, with the wait for its data."""
        progress = self.progress
        record = {"step": progress.step, "epoch": progress.epoch, "clips": names, **losses, "learning_rate": rate}
        self.steps.add(record)
        self.board.step({**record, "seconds": seconds, "waiting_for_data": wait / seconds})

    def close_epoch(self, speed: str) -> None:
        """Write down an epoch that is over, or that the run's end cuts short, and how fast it was."""
        progress = self.progress
        if progress.clips >= self.sampler.length:
            progress.epoch, progress.clips = progress.epoch + 1, 0
        means = self.epoch_means()
        usage = {layer: torch.tensor(use) for layer, use in progress.epoch_use.items()}
        self.board.expert_use(usage, self.config.lora.experts, self.config.lora.top_k, progress.step)
        progress.history.append({"epoch": progress.epoch, "step": progress.step, **means})
        several = [data.name for data in self.train_sets] if len(self.train_sets) > 1 else []
        for warning in (
            dead_experts(usage, self.config.lora.experts),
            check_unused_datasets(several, progress.epoch_clips),
            check_loss_plateau(progress.history) if not progress.best_J > progress.base_J else None,
        ):
            if warning:
                self.log.say(f"warning: epoch {progress.epoch}: {warning}")
        skipped = (
            f"; {progress.epoch_skipped} of {progress.epoch_steps} steps skipped" if progress.epoch_skipped else ""
        )
        progress.epoch_steps, progress.epoch_skipped = 0, 0
        progress.epoch_sums, progress.epoch_counts, progress.epoch_use, progress.epoch_clips = {}, {}, {}, {}
        losses_text = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.log.say(f"epoch {progress.epoch}, step {progress.step}: {losses_text} ({speed}){skipped}")

    def next_window(self, batches: Iterator[ClipBatch | UserError | None]) -> list[ClipBatch | None]:
        """The batches of one optimizer step: fewer at the end of an epoch, none when it is over.

        In several processes its parts of them, None where a short batch has none for it.
        """
        window = []
        for batch in islice(batches, self.config.training.gradient_accumulation_steps):
            if isinstance(batch, UserError):
                raise batch
            window.append(batch)
        return window

    def train_step(self, window: list[ClipBatch | None], usage: dict[str, Tensor]) -> dict[str, float]:
        """One optimizer step over a window of batches, each with the same weight; returns the mean losses.

        Args:
            window: this process' part of each batch.
            usage: how often each layer's experts were chosen in this epoch, which the step adds to.
        """
        used: dict[str, Tensor] = {}
        pieces: list[Callable[[], Piece]] = [
            partial(self.labelled_piece, batch, place, len(window), used) for place, batch in enumerate(window)
        ]
        taught = self.distiller is not None and self.distiller.is_due(self.progress.step)
        pieces += [self.distilled_piece] if taught else []
        pieces += [self.penalty_piece] if self.anchor is not None else []
        sums: dict[str, float] = {}
        for number, work in enumerate(pieces):
            for name, value in self.run_piece(work, last=number == len(pieces) - 1).items():
                sums[name] = sums.get(name, 0.0) + value
        first = self.progress.step == 0
        if first and not any(p.grad is not None and p.grad.any() for p in self.model.parameters()):
            raise UserError("no trainable parameter got a gradient in the first step; check lora.target_modules")
        self.scaler.unscale_(self.optimizer)
        if layers := bad_gradients(self.model):
            self.scaler.update()  # to a smaller scale, where there is one
            own = [batch for batch in window if batch is not None]
            names = ", ".join(name for batch in own for name in batch.names)
            raise NotFinite(f"the gradient of {quoted(layers)} is not finite", names, own, of_gradient=True)
        limit = self.config.training.max_grad_norm or math.inf
        sums["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        update_balance_bias(self.model, used, self.config.lora.router.bias_rate)
        for layer, use_E in used.items():
            usage[layer] = usage.get(layer, torch.zeros(use_E.shape)) + use_E
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def run_piece(self, work: Callable[[], Piece], last: bool) -> dict[str, float]:
        """Forward and backward pass of a piece of a step, the last of which sums gradients over processes.

        Returns:
            Its losses, those of all processes together.
        """
        with self.gradients.piece(last) as forward:
            piece = forward(work)
            own = {name: float(value.detach()) for name, value in piece.told.items()}
            bad = not bool(torch.isfinite(piece.loss))
            losses = distributed.all_reduce_sum({**own, _BAD: float(bad)})
            if losses.pop(_BAD):
                raise piece.explain() if bad else NotFinite("", "", [])
            if piece.of_task and not piece.loss.requires_grad:
                raise UserError(
                    "lora.target_modules: no adapter takes part in the training forward, nothing can be learned"
                )
            self.gradients.backward(self.scaler.scale(piece.loss))
        return losses

    def labelled_piece(self, batch: ClipBatch | None, place: int, count: int, used: dict[str, Tensor]) -> Piece:
        """A batch of labelled clips, one of ``count`` in its window; adds to ``used`` the shares of experts' use."""
        parts = [
            part
            for part in distributed.all_gather_object(None if batch is None else BatchTotals.from_batch(batch))
            if part is not None
        ]
        whole = BatchTotals(
            sum(part.objects for part in parts), torch.stack([part.annotated_T for part in parts]).all(0)
        )
        losses: dict[str, Tensor] = {}
        own: dict[str, Tensor] = {}
        if batch is not None:
            with record_routing(self.model) as routing:
                losses = self.losses_of(batch, place, whole)
            own = {layer: chosen_E.cpu() for layer, chosen_E in routing.expert_counts().items()}
        choices = distributed.all_reduce_sum(own)
        for layer, chosen_E in choices.items():
            used[layer] = used.get(layer, 0) + chosen_E / chosen_E.sum()
        if batch is None:
            return Piece(self.gradients.nothing(), {}, partial(NotFinite, "", "", []))
        if self.routed:
            router = self.config.lora.router
            losses["balance"] = load_balancing_loss(routing, choices)
            losses["router_z"] = router_z_loss(routing, choices)
            auxiliary = router.balance_weight * losses["balance"] + router.z_weight * losses["router_z"]
            losses["total"] = losses["total"] + auxiliary
        told = {name: value / count for name, value in losses.items()}
        return Piece(told["total"], told, partial(self.not_finite, losses["total"], batch, place, whole), of_task=True)

    def losses_of(self, batch: ClipBatch, place: int, whole: BatchTotals) -> dict[str, Tensor]:
        """The losses of a part of a window's batch number ``place``; always the same ones at the same step.

        A frozen image encoder runs apart, or not at all where its features are kept.
        """
        seed_draws(self.model, distributed.rank(), self.config.training.seed, self.progress.step, place)
        with self.autocast():
            features = self.encoder(batch) if self.encoder is not None else None
            return segmentation_losses(self.model, self.loss, batch, whole, features)

    def distilled_piece(self) -> Piece:
        """The base's lessons on general clips."""
        assert self.distiller is not None
        with self.autocast():
            kept = self.distiller.losses(self.progress.step)
        total = kept.pop("total", self.gradients.nothing())
        explain = partial(NotFinite, f"the loss is {total.item()}", "the general clips of training.distill", [])
        return Piece(total, {f"distill_{name}": value for name, value in kept.items()}, explain)

    def penalty_piece(self) -> Piece:
        """How far weights have moved from where they began, of which every process has the same share."""
        assert self.anchor is not None
        share = self.anchor.penalty() / distributed.world_size()
        explain = partial(NotFinite, f"the penalty is {share.item()}", "training.penalty", [])
        return Piece(self.config.training.penalty.weight * share, {"penalty": share}, explain)

    def not_finite(self, loss: Tensor, batch: ClipBatch, place: int, whole: BatchTotals) -> NotFinite:
        """What is wrong with a batch's loss: weights are bad already, or a layer, when the batch is tried again."""
        if layers := bad_weights(self.model):
            cause = f": weights are not finite, of {quoted(layers)}"
        else:
            with torch.no_grad(), watching_layers(self.model) as layers:
                self.losses_of(batch, place, whole)
            cause = f": the first layer to give such numbers is {layers[0]}" if layers else ""
        return NotFinite(f"the loss is {loss.item()}", ", ".join(batch.names) + cause, [batch])

    def validate(self, label: str) -> dict[str, float]:
        """Score the validation sets, and show what came out; returns the scores."""
        scores, results = self.score(label)
        if distributed.is_main_process():
            self.show(scores, results)
        distributed.barrier()
        return scores

    def score(self, label: str) -> tuple[dict[str, float], list[DomainResult]]:
        """Score the validation sets as evaluation does: same clips, same prompts, same J.

        Returns:
            The scores; of several sets their means, and each set's own as ``name/J``. And all results, set by set.
        """
        by_set: dict[str, dict[str, float]] = {}
        results: list[DomainResult] = []
        for domain in self.validation:
            prefix = f"{domain.name}/" if len(self.validation) > 1 else ""
            with self.autocast_validation():
                result = evaluate_domain(
                    self.model, domain, self.config.evaluation.prompt, f"validation ({prefix}{label})",
                    shard=distributed.shard(),
                )  # fmt: skip
            by_set[prefix] = result.scores
            results.append(result)
        means = {name: float(np.mean([scores[name] for scores in by_set.values()])) for name in result.scores}
        scores = means | {prefix + name: value for prefix, of in by_set.items() for name, value in of.items()}
        return scores, results

    def show(self, scores: dict[str, float], results: list[DomainResult]) -> None:
        """Put a validation on the board, beside the base's, which is the one before training."""
        progress = self.progress
        with self.autocast_validation():
            seen = {f"validation/{name}": value for name, value in scores.items()}
            seen |= self.watch.look(self.model, results)
        if progress.step == 0:
            progress.base_scores = {tag: value for tag, value in seen.items() if tag.rpartition("/")[2] in SCORES}
            progress.base_masks = self.watch.masks(results)
        self.board.scalars(seen | {tag + BASE: value for tag, value in progress.base_scores.items()}, progress.step)
        for tag, sheet in self.watch.sheets(results, progress.base_masks):
            self.board.image(tag, sheet, progress.step)

    def validate_and_save(self) -> None:
        """Validate, and keep ``best.pt`` and the adapter when J, the mean over sets, is better than ever."""
        progress = self.progress
        with self.stops.interruptible():
            scores = self.validate("adapted")
        progress.history[-1] |= {f"val_{name}": value for name, value in scores.items()}
        better = scores["J"] > progress.best_J
        progress.since_best = 0 if better else progress.since_best + 1
        progress.best_J = max(progress.best_J, scores["J"])
        rank = ", the best so far" if better else ""
        if better and scores["J"] <= progress.base_J:
            rank += ", but no better than the base"
        self.log.say(
            f"epoch {progress.epoch}, step {progress.step}: J {scores['J']:.3f}, F {scores['F']:.3f} "
            f"(base J {progress.base_J:.3f}){rank}{_each_set(scores)}"
        )
        if better:
            progress.strength = None  # that of an earlier best, where the run goes on from it
            self.save(self.best.name)
            self.write_adapter()
        self.write_metrics()

    def write_adapter(self) -> None:
        """Write the adapter folder, where there are adapters."""
        if distributed.is_main_process() and any(iter_adapter_layers(self.model)):
            about = {"model_name": self.config.model.name, "image_size": image_size_of(self.config.model)}
            save_adapter(self.model, self.folder / ADAPTER_FOLDER, self.groups or self.config.lora, about)

    def write_metrics(self) -> None:
        """Write ``metrics.json``."""
        if distributed.is_main_process():
            progress = self.progress
            metrics = {
                "base_J": progress.base_J, "best_J": progress.best_J, "strength": progress.strength,
                "epochs": progress.history,
            }  # fmt: skip
            write_text(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")

    def should_stop_early(self) -> bool:
        """Early stopping: J has not got better for ``early_stopping_patience`` validations."""
        patience = self.config.training.early_stopping_patience
        if patience is None or self.progress.since_best < patience:
            return False
        self.log.say(f"stopping early: J has not got better for {patience} validations")
        return True

    def is_save_due(self) -> bool:
        """Whether ``last.pt`` is as many steps or minutes old as the config allows."""
        steps, minutes = self.config.training.save_every.steps, self.config.training.save_every.minutes
        return (steps is not None and self.progress.step - self.saved_step >= steps) or (
            minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        )

    def save_last(self) -> None:
        """Write ``last.pt``; the one before becomes ``previous.pt``. No process goes on before it is written."""
        self.steps.sync()
        self.board.sync()
        self.save(LAST, keep=PREVIOUS)
        distributed.barrier()
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()

    def save(self, name: str, keep: str | None = None) -> None:
        """Write a checkpoint from which the run goes on exactly; ``keep`` is what an earlier one is renamed to.

        It is the same however many processes there are.
        """
        if not distributed.is_main_process():
            return
        Checkpoint(
            config=self.config,
            base_fingerprint=self.base_fingerprint,
            weights=trained_weights(self.model, self.config.lora.method),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict(),
            progress=asdict(self.progress),
            groups=self.groups,
            data=self.data,
        ).save(self.checkpoints / name, self.checkpoints / keep if keep else None)


def clip_names(window: list[ClipBatch | None]) -> list[str]:
    """The names of a step's clips, those of all processes, in the order of one."""
    own = [() if batch is None else batch.names for batch in window]
    return [
        name for parts in zip(*distributed.all_gather_object(own), strict=True) for names in parts for name in names
    ]


def _checkpoint_to_resume(
    resume: str | Path | None, folder: Path
) -> tuple[Checkpoint | None, str | Path | None, list[str]]:
    """The checkpoint to go on from, where it lies, and what to say of how it was chosen."""
    if resume is None:
        return None, None, []
    if resume != AUTO:
        return read_checkpoint(resume), resume, []
    found = find_checkpoint(folder)
    if found is None:
        return None, None, [f"--resume auto: there is no checkpoint in {folder}, so the run starts from the beginning"]
    path, checkpoint, damaged = found
    return checkpoint, path, [f"warning: passed over a damaged checkpoint: {problem}" for problem in damaged]


def _progress_of(checkpoint: Checkpoint, path: str | Path | None) -> Progress:
    """Where an earlier run was. Raises UserError if the checkpoint says it in a way that no run does."""
    try:
        progress = Progress(**checkpoint.progress)
    except TypeError as error:
        raise UserError(f"{path}: not a checkpoint of a training run: {error}") from None
    if not re.fullmatch(r"\w[\w-]*", str(progress.run_name)):  # a folder is called so
        raise UserError(f"{path}: not a checkpoint of a training run: its name is {progress.run_name!r}")
    return progress


def _notes(data: DataSet) -> str:
    """What was left out or repaired when a data set was read, to be added to a line about it."""
    return "".join(f"; {count} {what}" for what, count in data.notes.items())


def _each_set(scores: dict[str, float]) -> str:
    """The J of each set, where there are several, to be added to a line about their mean."""
    return "".join(f"; {name.removesuffix('/J')} {value:.3f}" for name, value in scores.items() if name.endswith("/J"))


def archive_previous_run(folder: Path) -> Path | None:
    """Move an earlier run's checkpoints and results into ``earlier/<time>``; returns where, None if there were none."""
    if not any((folder / "checkpoints").glob("*.pt")):
        return None
    aside = folder / "earlier" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    aside.mkdir(parents=True)
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            shutil.move(path, aside / path.name)
    return aside
