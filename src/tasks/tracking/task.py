"""Tracking: objects prompted once and followed through a clip, scored by J and F."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...config import Config, Prompt, Split, image_size_of
from ...core.distributed import ALL, Shard
from ...core.errors import UserError
from ...data.checks.cache import state_of_files
from ...data.clips import Clip, ClipBatch, ClipDataset, collate
from ...data.options import LoadOptions
from ...data.records import DataSet
from ...evaluation.domains import Domain, evaluation_domains
from ...evaluation.image_results import ImageResult
from ...evaluation.results import DomainResult, GatedResult, with_gate
from ...evaluation.run import evaluate
from ...gating.domain_gate import DomainGate
from ...gating.switching import decide_for_frame
from ...lora.adapter import AdapterLayer
from ...models.protocols import AfterFrame, BatchTotals
from ...models.spec import model_spec
from ..base import Distillation, Features, FinalScores, Items, Task, Validation, Workload, register_task
from ..final_scores import final_results
from .bad_batch import dump_batches
from .data import describe_sets, fit_gate_to, load_training_sets, training_clips, what_is_not_kept
from .distillation import SelfDistillation, general_batches, general_clips
from .evaluation import describe, evaluate_domain
from .images import evaluate_images
from .monitor import SCORES, ValidationMonitor, monitors_alike

_SAMPLED_VIDEOS = 20


@register_task("tracking")
class TrackingTask(Task):
    """Clips of video objects, SAM 2's losses, J and F.

    Attributes:
        train_sets: the training split of every learned domain.
        validation: their validation splits, as they are evaluated.
        retention: what must not be forgotten.
    """

    headline: ClassVar[str] = "J"
    logged_scores: ClassVar[tuple[str, ...]] = ("J", "F")
    shown_scores: ClassVar[tuple[str, ...]] = SCORES
    loss_names: ClassVar[tuple[str, ...]] = ("total", "mask", "dice", "iou", "occlusion")
    item_name: ClassVar[str] = "clips of {dataset.clip.frames} frames"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.spec = model_spec(config.model.name)
        self._room = self.spec.load()
        self.image_size = image_size_of(config.model)
        self.train_sets: list[DataSet] = []
        self.validation: list[Domain] = []
        self.retention: list[Domain] = []
        self._loss = self._room.build_loss(config.training.loss, config.training.enable_segmentation)

    # Data

    def load_data(self) -> None:
        """Read and check all data; retention data too, whose mistakes are found now and not at the end."""
        self.train_sets = load_training_sets(self.config)
        domains, learned = evaluation_domains(self.config, "valid"), len(self.config.dataset.domains)
        self.validation, self.retention = domains[:learned], domains[learned:]
        self._monitor = ValidationMonitor(self.config, self.validation, self.retention)

    def data_fingerprints(self) -> dict[str, dict[str, Any]]:
        """Return what is in each data set."""
        splits = {"train": self.train_sets, "valid": [domain.data for domain in self.validation]}
        return {
            split: {data.name: asdict(data.contents) for data in sets if data.contents is not None}
            for split, sets in splits.items()
        }

    def build_items(self, views: int | None) -> ClipDataset:
        """Return the clips that the run trains on."""
        return training_clips(self.config, self.train_sets, views)

    @staticmethod
    def collate(items: list[Clip | UserError]) -> ClipBatch | UserError | None:
        """Return a batch of clips, or the first error among them."""
        return collate(items)

    def describe_data(self, items: Items) -> list[str]:
        """Return the sizes of data sets, and a warning of objects that are too small."""
        valid = [domain.data for domain in self.validation]
        lines = describe_sets(self.train_sets, valid, items, self.image_size)
        return lines + what_is_not_kept(self.config.training.distill, self.spec)

    def cache_identity(self, items: Items) -> list[Any]:
        """Return what features of a clip depend on: model, image size, data and how clips are drawn."""
        places = [each.split("train") for each in self.config.dataset.domains]
        options = LoadOptions.from_config(self.config)
        files = [state_of_files(place, options) for place in places if place is not None]
        return [self.config.model.name, self.image_size, *super().cache_identity(items), files]

    def dump_batches(self, folder: Path, batches: Sequence[ClipBatch]) -> None:
        """Write batches to look at: a picture of their clips, and all tensors."""
        dump_batches(folder, batches)

    # Model and loss

    def build_model(self) -> nn.Module:
        """Build the model with SAM 2's training forward."""
        prompts, frames = self.config.training.prompts, self.config.dataset.clip.frames
        return self._room.build_trainable(self.config.model, prompts, frames)

    def losses(
        self, model: Any, batch: ClipBatch, totals: BatchTotals | None = None, features: Features | None = None
    ) -> dict[str, Tensor]:
        """Return SAM 2's losses: averaged over objects, summed over annotated frames."""
        return self._room.segmentation_losses(model, self._loss, batch, totals, features)

    def batch_totals(self, batch: ClipBatch) -> BatchTotals:
        """Return a part's objects, and which frames are annotated for all of them."""
        return BatchTotals.from_batch(batch)

    def merge_totals(self, parts: Sequence[BatchTotals]) -> BatchTotals:
        """Return those of the whole batch."""
        return BatchTotals(sum(p.objects for p in parts), torch.stack([p.annotated_T for p in parts]).all(0))

    def seed_draws(self, model: Any, rank: int, *key: int) -> None:
        """Let prompts, dropout and noise begin from a key."""
        self._room.seed_draws(model, rank, *key)

    def run_item(self, model: Any, item: Clip) -> None:
        """Track a clip's objects from their masks."""
        self._room.track_clips(model, ClipBatch.collate([item]), "mask")

    def run_general(self, model: Any, count: int) -> None:
        """Track objects found on general clips, which nobody labelled."""
        for batch in general_batches(model, self.config, count):
            self._room.track_clips(model, batch, "mask")

    def check_adapters(self, adapters: Mapping[str, AdapterLayer]) -> None:
        """Refuse clips of one frame where all adapters are in the memory, which only later frames use."""
        in_memory = adapters and all(name.startswith(self.spec.memory) for name in adapters)
        if in_memory and self.config.dataset.clip.frames == 1:
            raise UserError(
                "dataset.clip.frames is 1: SAM 2 skips memory attention on the prompted frame, so adapters in "
                "lora.target_modules would get no gradient; set it to 2 or more",
                "adapters.one-frame",
            )

    def adapter_info(self) -> dict[str, Any]:
        """Return the model's name and image size."""
        return {**super().adapter_info(), "image_size": self.image_size}

    def check_extension(self, folder: str, info: Mapping[str, Any]) -> None:
        """Refuse an adapter of another image size, at which a domain gate sees other features."""
        size = info.get("image_size", self.image_size)
        if size != self.image_size:
            raise UserError(
                f"training.extend: {folder} was learned at model.image_size {size}, this run has {self.image_size}: "
                "groups beside each other, and their domain gate, need the same",
                "extend.other-image-size",
            )

    def has_frozen_encoder(self, model: Any) -> bool:
        """Whether image features stay as they are."""
        return self._room.has_frozen_encoder(model)

    def encode(self, model: Any, batch: ClipBatch, number: int) -> Features:
        """Return the image features of a clip's frames."""
        return self._room.encode_frames(model, batch.frames_BTHWC[number])

    def distillation(self, model: Any) -> Distillation | None:
        """Return the objective of self-distillation on general clips."""
        training, clip = self.config.training, self.config.dataset.clip
        if not training.distill.weight:
            return None
        data = general_clips(self.config)
        return SelfDistillation(model, data, clip, self.image_size, training.distill, training.loss, training.seed)

    # Validation

    def validate(self, model: Any, label: str, shard: Shard = ALL) -> Validation:
        """Score the validation sets as evaluation does: same clips, same prompts, same J.

        Scores of several sets are their means, beside each set's own as ``name/J``.
        """
        by_set, results = dict[str, dict[str, float]](), []
        for domain in self.validation:
            prefix = f"{domain.name}/" if len(self.validation) > 1 else ""
            title, prompt = f"validation ({prefix}{label})", self.config.evaluation.prompt
            result = evaluate_domain(model, domain, prompt, title, shard=shard)
            by_set[prefix] = result.scores
            results.append(result)
        means = {name: float(np.mean([scores[name] for scores in by_set.values()])) for name in results[-1].scores}
        each = {prefix + name: value for prefix, scores in by_set.items() for name, value in scores.items()}
        return Validation(means | each, results)

    def extra_scores(self, model: Any, validation: Validation) -> dict[str, float]:
        """Return scores of other prompts, and of what must not be forgotten."""
        return self._monitor.extra_scores(model, validation.details)

    def monitored_tags(self) -> dict[str, list[str]]:
        """Return the tags of validation sets and prompts, and of what must not be forgotten."""
        several = [f"validation/{name}" for name in self.domain_names] if len(self.domain_names) > 1 else []
        return {
            "Does it learn?": ["validation", *several, *self._monitor.prompt_tags()],
            "Does it forget?": self._monitor.retention_tags(),
        }

    def picture_data(self, validation: Validation) -> dict[str, Any]:
        """Return the masks that pictures need, as text."""
        return self._monitor.masks(validation.details)

    def pictures(self, validation: Validation, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield a sheet a clip: the truth, the base's masks, and the model's."""
        return self._monitor.sheets(validation.details, base)

    def is_monitored_alike(self, other: Config) -> bool:
        """Whether another run's scores and pictures are of the same clips, prompted and scored alike."""
        return monitors_alike(self.config, other)

    def measure_workload(self, model: Any) -> Workload:
        """Time the longest of some validation videos, and count frames."""
        prompt = self.config.evaluation.prompt
        per_frame = max(_seconds_a_frame(model, domain, prompt) for domain in self.validation)
        frames = sum(map(_frames_of, self.validation))
        monitored = sum(map(_frames_of, self._monitor.workload()))
        retained = sum(map(_frames_of, self.retention))
        models = 1 if self.config.lora.method == "none" else 2
        return Workload(per_frame * (frames + monitored), models * per_frame * (frames + retained))

    def advice(self) -> str | None:
        """Advise to train on the prompt of evaluation, where a run did not."""
        prompt = self.config.evaluation.prompt
        if getattr(self.config.training.prompts, prompt) == 1:
            return None
        return f"Try training.prompts.{prompt}=1 and the others 0: it is scored by {prompt} prompts alone"

    # Evaluation

    def evaluation_domains(self, split: Split) -> list[Domain]:
        """Return the learned domains, and what must not be forgotten."""
        return evaluation_domains(self.config, split)

    def decide(
        self, base: Any, gate: DomainGate, domain: Domain, unchanged: DomainResult, changed: DomainResult
    ) -> GatedResult:
        """Take each video's masks from the model that the domain gate chooses on its first prompted frame."""
        return with_gate(domain, unchanged, changed, partial(decide_for_frame, base, gate), domain.name in gate.domains)

    def score_domain(
        self,
        model: Any,
        domain: Domain,
        prompt: Prompt,
        label: str = "",
        masks: Path | None = None,
        after_frame: AfterFrame | None = None,
        shard: Shard = ALL,
    ) -> DomainResult:
        """Track the objects of a domain, and score them by its protocol."""
        return evaluate_domain(model, domain, prompt, label, masks, after_frame, shard=shard)

    def score_images(self, model: Any, domain: Domain, clicks: int, label: str = "") -> ImageResult:
        """Segment the objects of a domain on single images."""
        return evaluate_images(model, domain, clicks, label)

    def describe_scores(self, prompt: Prompt) -> str:
        """Return the model, its image size, the prompt and the protocol, in one line."""
        return describe(self.spec.name, self.image_size, prompt, self.config.evaluation.protocol)

    # After training

    def fit_domain_gate(self, model: Any, gate: DomainGate | None = None) -> DomainGate | None:
        """Fit a gate to labelled frames of the learned domains."""
        return fit_gate_to(model, self.train_sets, gate)

    def evaluate(self, checkpoint: str | Path | None) -> FinalScores | None:
        """Score base and trained model, domain by domain, and write the results into the run's folder."""
        evaluation = evaluate(self.config, checkpoint)
        if not evaluation.comparisons:
            return None
        return final_results(evaluation.comparisons, self.domain_names, evaluation.tables())


def _seconds_a_frame(model: Any, domain: Domain, prompt: Prompt) -> float:
    """Return how long a frame of the longest of some videos takes."""
    videos = domain.data.videos
    longest = max(_sample(len(videos)), key=lambda index: len(videos[index]))
    one = replace(domain, data=DataSet(domain.data.name, [videos[longest]]))
    started = time.perf_counter()
    evaluate_domain(model, one, prompt, f"validation ({domain.name})")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / _frames_of(one)


def _frames_of(domain: Domain) -> float:
    """About how many frames a domain has as it is evaluated, stills being clips then."""
    videos = domain.data.videos
    lengths = [len(videos[index]) for index in _sample(len(videos))]
    return len(videos) * float(np.mean([domain.frames if length == 1 else length for length in lengths]))


def _sample(count: int) -> list[int]:
    taken = min(count, _SAMPLED_VIDEOS)
    return [i * count // taken for i in range(taken)]
