"""Concepts: an image and noun phrases, all instances of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...config import Config, Prompt, Split, image_size_of
from ...core.distributed import ALL, Shard
from ...core.errors import UserError
from ...data.checks.cache import state_of_files
from ...data.concepts.dataset import ConceptDataset, ConceptOptions
from ...data.concepts.types import ConceptBatch, join_concepts
from ...data.loading import load_split
from ...data.options import LoadOptions
from ...data.records import DataSet
from ...evaluation.concepts.matching import SCORE_THRESHOLD
from ...evaluation.concepts.results import ConceptResult
from ...evaluation.run import evaluate
from ...models.spec import model_spec
from ..base import Features, FinalScores, Items, Task, Validation, Workload, register_task
from ..final_scores import final_results
from .data import describe_vocabulary, vocabularies
from .domains import ask_all, evaluation_domains, other_domains
from .evaluation import AskedImages, evaluate_domain
from .monitor import ConceptMonitor, monitored

SCORES = ("cgF1", "IL_MCC", "pmF1")


@register_task("concepts")
class ConceptTask(Task):
    """Images with phrases that they show and do not show; SAM 3's losses; cgF1.

    Attributes:
        train_sets: the training split of every learned domain.
        validation: their validation splits, with their phrases.
        others: what must not be forgotten, and what must not be found.
        image_size: side of the square images in pixels; the model's own once it is built.
        queries: instances of a phrase that the model can give, at most; known once it is built.
    """

    headline: ClassVar[str] = "cgF1"
    logged_scores: ClassVar[tuple[str, ...]] = SCORES
    shown_scores: ClassVar[tuple[str, ...]] = SCORES
    takes_prompts: ClassVar[bool] = False
    loss_names: ClassVar[tuple[str, ...]] = ("total", "score", "presence", "box", "giou", "mask", "dice")
    item_name: ClassVar[str] = "images"
    has_domain_gate: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.spec = model_spec(config.model.name)
        self._room: Any = self.spec.load()
        self.image_size = image_size_of(config.model)
        self.queries = 0
        self.train_sets: list[DataSet] = []
        self.validation: list[AskedImages] = []
        self.others: list[AskedImages] = []

    # Data

    def load_data(self) -> None:
        """Read and check all data, and find out what is asked of them; also of what must not be forgotten."""
        options, domains = LoadOptions.from_config(self.config), self.config.dataset.domains
        self.train_sets = [load_split(each, "train", options) for each in domains]
        valid = [load_split(each, "valid", options) for each in domains]
        found = vocabularies(self.config, zip(self.train_sets, valid, strict=True))
        most = self.config.evaluation.max_images
        self.validation = [
            ask_all(each.name, data, vocabulary, most)
            for each, data, vocabulary in zip(domains, valid, found, strict=True)
        ]
        self.others = other_domains(self.config, self.validation)
        self._monitor = ConceptMonitor(self.config, self.validation, self.others)

    def data_fingerprints(self) -> dict[str, dict[str, Any]]:
        """Return what is in each data set."""
        splits = {"train": self.train_sets, "valid": [domain.data for domain in self.validation]}
        return {
            split: {data.name: asdict(data.contents) for data in sets if data.contents is not None}
            for split, sets in splits.items()
        }

    def build_items(self, views: int | None) -> ConceptDataset:
        """Return the images that the run trains on, each with its phrases."""
        config, training = self.config, self.config.training
        options = ConceptOptions(
            training.concepts, self.image_size, self.queries, training.enable_segmentation, config.dataset.augmentation
        )
        return ConceptDataset(
            self.train_sets,
            [each.weight for each in config.dataset.domains],
            training.clips_in_epoch(sum(map(len, self.train_sets))),
            [domain.vocabulary for domain in self.validation],
            options,
            training.seed,
            views,
        )

    @staticmethod
    def collate(items: list[ConceptBatch | UserError]) -> ConceptBatch | UserError | None:
        """Return a batch of images, or the first error among them."""
        errors = [item for item in items if isinstance(item, UserError)]
        if errors:
            return errors[0]
        return join_concepts([item for item in items if isinstance(item, ConceptBatch)]) if items else None

    def describe_data(self, items: Items) -> list[str]:
        """Return the sizes of data sets, what is asked of them, and phrases that are left out."""
        lines = []
        for data, share, domain in zip(self.train_sets, items.shares, self.validation, strict=True):
            drawn = f"; {share} of {len(items)} images an epoch" if len(self.train_sets) > 1 else ""
            for split, each, more in (("train", data, drawn), ("valid", domain.data, "")):
                notes = "".join(f"; {count} {what}" for what, count in each.notes.items())
                lines.append(f"{each.name}, {split}: {len(each)} images{notes}{more}")
            counts = data.category_counts()
            lines += [f"{data.name}, {line}" for line in describe_vocabulary(domain.vocabulary, counts, self.queries)]
        return lines

    def cache_identity(self, items: Items) -> list[Any]:
        """Return what features of an image depend on: model, image size, data, and how images are drawn."""
        places = [each.split("train") for each in self.config.dataset.domains]
        options = LoadOptions.from_config(self.config)
        files = [state_of_files(place, options) for place in places if place is not None]
        asked = self.config.training.concepts.model_dump(mode="json", exclude={"loss"})
        phrases = [domain.vocabulary.phrases for domain in self.validation]
        own = [self.config.model.name, self.image_size, self.queries, asked, phrases]
        return [*own, *super().cache_identity(items), files]

    # Model and loss

    def build_model(self) -> nn.Module:
        """Build the model, and take its image size and number of queries."""
        model: nn.Module = self._room.build_model(self.config.model)
        self.image_size, self.queries = self._room.input_size(model), self._room.query_count(model)
        return model

    def losses(
        self, model: nn.Module, batch: ConceptBatch, totals: Any = None, features: Features | None = None
    ) -> dict[str, Tensor]:
        """Return SAM 3's losses: scores, boxes and masks over instances, presence over pairs."""
        weights, masks = self.config.training.concepts.loss, self.config.training.enable_segmentation
        losses: dict[str, Tensor] = self._room.concept_losses(model, weights, batch, totals, features, masks)
        return losses

    def batch_totals(self, batch: ConceptBatch) -> Any:
        """Return a part's instances and pairs."""
        return self._room.ConceptTotals.from_batch(batch)

    def merge_totals(self, parts: Sequence[Any]) -> Any:
        """Return those of the whole batch."""
        return self._room.ConceptTotals(sum(p.instances for p in parts), sum(p.pairs for p in parts))

    def run_item(self, model: nn.Module, item: ConceptBatch) -> None:
        """Ask an image for its phrases."""
        with torch.no_grad():
            features = self._room.encode_images(model, item.images_BHWC)
            text = self._room.encode_phrases(model, item.phrases)
            boxes, labels = item.exemplars_PX4, item.exemplar_labels_PX
            self._room.forward_concepts(model, features, item.image_of_pair, text, boxes, labels)

    def adapter_info(self) -> dict[str, Any]:
        """Return the model's name and image size."""
        return {**super().adapter_info(), "image_size": self.image_size}

    def check_extension(self, folder: str, info: Mapping[str, Any]) -> None:
        """Refuse an adapter of another image size."""
        size = info.get("image_size", self.image_size)
        if size != self.image_size:
            raise UserError(
                f"training.extend: {folder} was learned at model.image_size {size}, this run has {self.image_size}: "
                "groups beside each other need the same",
                "extend.other-image-size",
            )

    def has_frozen_encoder(self, model: nn.Module) -> bool:
        """Whether the image encoder's features stay as they are."""
        return bool(self._room.has_frozen_encoder(model))

    def encode(self, model: nn.Module, batch: ConceptBatch, number: int) -> Features:
        """Return the image features of an image."""
        with torch.no_grad():
            features: Features = self._room.encode_images(model, batch.images_BHWC[number : number + 1])
        return features

    # Validation

    def validate(self, model: nn.Module, label: str, shard: Shard = ALL) -> Validation:
        """Ask every image of the validation sets for every phrase of its set, and score the answers.

        Scores of several sets are their means, beside each set's own as ``name/cgF1``.
        """
        by_set: dict[str, dict[str, float]] = {}
        results = []
        masks = self.config.training.enable_segmentation
        for domain in map(monitored, self.validation):
            prefix = f"{domain.name}/" if len(self.validation) > 1 else ""
            title = f"validation ({prefix}{label})"
            result = evaluate_domain(model, domain, masks, title, least=SCORE_THRESHOLD, shard=shard)
            by_set[prefix] = dict(shard.broadcast(result.scores))
            results.append(result)
        means = {name: float(np.mean([scores[name] for scores in by_set.values()])) for name in by_set[prefix]}
        each = {prefix + name: value for prefix, scores in by_set.items() for name, value in scores.items()}
        return Validation(means | each, results)

    def measure_workload(self, model: nn.Module) -> Workload:
        """Time an image of each domain, learned or to be kept."""
        masks, seconds = self.config.training.enable_segmentation, []
        for domain in (*self.validation, *self.others):
            started = time.perf_counter()
            first = replace(domain, data=replace(domain.data, videos=domain.data.videos[:1]), agrees=False)
            evaluate_domain(model, first, masks, "timing")
            seconds.append(len(domain.data) * (time.perf_counter() - started))
        models = 1 if self.config.lora.method == "none" else 2
        return Workload(sum(seconds[: len(self.validation)]), models * sum(seconds))

    def extra_scores(self, model: nn.Module, validation: Validation) -> dict[str, float]:
        """Return scores of what must not be forgotten, and of what must not be found."""
        return self._monitor.extra_scores(model)

    def monitored_tags(self) -> dict[str, list[str]]:
        """Return the tags of validation sets, and of what must not be forgotten."""
        several = [f"validation/{name}" for name in self.domain_names] if len(self.domain_names) > 1 else []
        return {"Does it learn?": ["validation", *several], "Does it forget?": self._monitor.retention_tags()}

    def picture_data(self, validation: Validation) -> dict[str, Any]:
        """Return the answers that pictures need, as plain data."""
        return self._monitor.answers(validation)

    def pictures(self, validation: Validation, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield a sheet an image: the truth, the base's answers, and the model's."""
        return self._monitor.sheets(validation, base)

    def is_monitored_alike(self, other: Config) -> bool:
        """Whether another run's scores and pictures are of the same images and questions."""

        def asked(config: Config) -> tuple[object, ...]:
            evaluation = config.evaluation.model_dump(exclude={"overlays"})
            return config.training.monitor_clips, config.training.enable_segmentation, evaluation

        return asked(self.config) == asked(other)

    # Evaluation

    def evaluation_domains(self, split: Split) -> list[AskedImages]:
        """Return the learned domains, and every way in which something can be forgotten."""
        return evaluation_domains(self.config, split)

    def score_domain(
        self,
        model: nn.Module,
        domain: AskedImages,
        prompt: Prompt,
        label: str = "",
        masks: Path | None = None,
        after_frame: Callable[[int], None] | None = None,
        shard: Shard = ALL,
    ) -> ConceptResult:
        """Ask a domain's phrases of its images, and score the answers; prompts are no part of it."""
        save = None if masks is None else masks.with_name(f"{masks.name}.json")
        return evaluate_domain(model, domain, self.config.training.enable_segmentation, label, save, shard=shard)

    def describe_scores(self, prompt: Prompt) -> str:
        """Return the model, its image size, and how answers are scored, in one line."""
        compared = "masks" if self.config.training.enable_segmentation else "boxes"
        return (
            f"{self.spec.name} at {self.image_size} px; phrases are asked of images that show them and of others; "
            f"AP by category, without any prompt from the truth; cgF1 of answers that score {SCORE_THRESHOLD} or more; "
            f"{compared} are compared"
        )

    # After training

    def evaluate(self, checkpoint: str | Path | None) -> FinalScores | None:
        """Score base and trained model, domain by domain, and write the results into the run's folder."""
        evaluation = evaluate(self.config, checkpoint)
        if not evaluation.comparisons:
            return None
        return final_results(evaluation.comparisons, self.domain_names, evaluation.tables())
