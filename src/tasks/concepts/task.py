"""Concepts: an image and noun phrases, all instances of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...config import Config, image_size_of
from ...core.console import progress_bar
from ...core.device import evaluating
from ...core.distributed import ALL, Shard
from ...core.errors import UserError
from ...data.checks.cache import state_of_files
from ...data.concepts.dataset import ConceptDataset, ConceptOptions
from ...data.concepts.types import ConceptBatch, join_concepts
from ...data.loading import load_split
from ...data.options import LoadOptions
from ...data.records import DataSet
from ...evaluation.concepts.matching import SCORE_THRESHOLD, PairCounts, count_pair
from ...evaluation.concepts.records import Region
from ...evaluation.concepts.scores import image_counts, micro_scores
from ...models.spec import model_spec
from ..base import Features, Items, Task, Validation, register_task
from .answers import answer
from .data import ConceptDomain, describe_vocabulary, truths_of, vocabularies

SCORES = ("cgF1", "IL_MCC", "pmF1")


@register_task("concepts")
class ConceptTask(Task):
    """Images with phrases that they show and do not show; SAM 3's losses; cgF1.

    Attributes:
        train_sets: the training split of every learned domain.
        validation: their validation splits, with their phrases.
        image_size: side of the square images in pixels; the model's own once it is built.
        queries: instances of a phrase that the model can give, at most; known once it is built.
    """

    headline: ClassVar[str] = "cgF1"
    logged_scores: ClassVar[tuple[str, ...]] = SCORES
    shown_scores: ClassVar[tuple[str, ...]] = SCORES
    loss_names: ClassVar[tuple[str, ...]] = ("total", "score", "presence", "box", "giou", "mask", "dice")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.spec = model_spec(config.model.name)
        self._room: Any = self.spec.load()
        self.image_size = image_size_of(config.model)
        self.queries = 0
        self.train_sets: list[DataSet] = []
        self.validation: list[ConceptDomain] = []

    # Data

    def load_data(self) -> None:
        """Read and check training and validation data, and find out what is asked of them."""
        options, domains = LoadOptions.from_config(self.config), self.config.dataset.domains
        self.train_sets = [load_split(each, "train", options) for each in domains]
        valid = [load_split(each, "valid", options) for each in domains]
        found = vocabularies(self.config, zip(self.train_sets, valid, strict=True))
        most = self.config.evaluation.max_images
        self.validation = [
            ConceptDomain(each.name, replace(data, videos=data.videos[:most]), vocabulary)
            for each, data, vocabulary in zip(domains, valid, found, strict=True)
        ]

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
        for domain in self.validation:
            prefix = f"{domain.name}/" if len(self.validation) > 1 else ""
            by_set[prefix] = self._score(model, domain, f"validation ({prefix}{label})", shard)
        names = by_set[prefix]
        means = {name: float(np.mean([scores[name] for scores in by_set.values()])) for name in names}
        each = {prefix + name: value for prefix, scores in by_set.items() for name, value in scores.items()}
        return Validation(means | each)

    def _score(self, model: nn.Module, domain: ConceptDomain, label: str, shard: Shard) -> dict[str, float]:
        """Return the scores of a domain, all processes the same ones."""
        masks = self.config.training.enable_segmentation
        region: Region = "segm" if masks else "bbox"
        own: list[tuple[int, list[PairCounts]]] = []
        phrases, images = domain.vocabulary.phrases, domain.images(shard.rank, shard.size)
        total = len(range(shard.rank, len(domain.data), shard.size))
        with evaluating(model):
            for number, video, frame in progress_bar(images, total=total, desc=label, leave=False):
                picture = video.frames[frame].read()
                found = answer(model, picture, phrases, video.video_id, SCORE_THRESHOLD, self.queries, masks)
                truths = truths_of(video, frame, domain.vocabulary)
                answers = zip(found, truths, strict=True)
                own.append((number, [count_pair(p, t, region) for p, t in answers if t.exhaustive]))
        counted = sorted(shard.collect(own), key=lambda numbered: numbered[0])
        pairs = [pair for _, of in counted for pair in of]
        ids = list(dict.fromkeys(pair.image_id for pair in pairs))
        scores = micro_scores(image_counts(pairs, ids).sum(axis=0, keepdims=True))
        own_scores = {name: float(values[0]) for name, values in scores.items()}
        return dict(shard.broadcast(own_scores))
