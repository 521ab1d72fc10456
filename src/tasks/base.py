"""A task: what a training item, a loss and a score are. The trainer knows no more of a model than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config, Prompt, Split
from ..core.distributed import ALL, Shard
from ..core.errors import UserError
from ..core.files import write_text
from ..gating.domain_gate import DomainGate
from ..lora.adapter import AdapterLayer

if TYPE_CHECKING:  # evaluation asks tasks for scores
    from ..evaluation.image_results import ImageResult
    from ..evaluation.results import EvaluatedDomain, GatedResult, ModelResult

SampleKey: TypeAlias = tuple[int, int]
"""(epoch, index): with the run's seed, all that a training item is drawn from."""

Features: TypeAlias = list[Tensor]
"""What a frozen part of a model makes of an item, level by level; the first axis is the one that batches join."""


@dataclass(frozen=True)
class LossTerms:
    """What an objective adds to a step.

    Attributes:
        total: the scalar to minimise, with graph; None where this process has no share in it.
        logged: losses by name, to be summed over the objectives of a step and over processes.
        expert_counts: per routed layer, how often all processes together chose each expert, (E,) or (E + 1,).
    """

    total: Tensor | None
    logged: Mapping[str, Tensor]
    expert_counts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether this process can learn from it."""
        return self.total is None or bool(torch.isfinite(self.total))


@dataclass(frozen=True)
class Validation:
    """Scores of a model by name, the headline among them, and what only the task reads of how they came about."""

    scores: dict[str, float]
    details: Any = None


@dataclass(frozen=True)
class Workload:
    """Seconds that an epoch's validation takes, and the table at the end of a run."""

    validation: float
    table: float


@dataclass(frozen=True)
class FinalScores:
    """The results of the evaluation after a run.

    Attributes:
        scalars: numbers by TensorBoard tag.
        markdown: tables for TensorBoard.
        text: tables for the screen.
    """

    scalars: dict[str, float]
    markdown: str
    text: str


class Batch(Protocol):
    """Items put together; what else is in it only the task reads."""

    @property
    def names(self) -> tuple[str, ...]:
        """What messages call the items; of several data sets, ``set/item``."""
        ...

    @property
    def keys(self) -> tuple[SampleKey, ...]:
        """The items' keys, or none."""
        ...


class Items(Protocol):
    """The training items of a run: ``items[epoch, index]`` is the same one every time.

    ``items[epoch, index, False]`` may leave out what features stand for. An item that cannot be read is its error.
    """

    @property
    def shares(self) -> Sequence[int]:
        """Items an epoch of each data set."""
        ...

    def __len__(self) -> int:
        """Return how many items an epoch has."""
        ...

    def __getitem__(self, key: Any) -> Any: ...

    def sample_key(self, epoch: int, index: int) -> SampleKey:
        """Return the key of the draw that an item is: its own, or the first one that was the same."""
        ...

    def count_samples(self, views: int) -> int:
        """Return how many different items there are in so many views."""
        ...

    def with_pixels(self, batch: Any) -> Any:
        """Return a batch with what was left out of its items."""
        ...


class Distillation(Protocol):
    """What the model before training teaches it: an objective of its own, on data without labels."""

    def is_due(self, step: int) -> bool:
        """Whether this step has it."""
        ...

    def losses(self, step: int) -> LossTerms:
        """Return this process' share of the loss, the same one whenever the step is repeated."""
        ...


class Task(ABC):
    """A task in one run. Subclasses say what is trained on and what counts; what they need not, stays as it is here.

    Building one reads nothing: :meth:`load_data` does, once.

    Attributes:
        headline: the name of the score that decides which weights are best; higher is better.
        logged_scores: those that the log shows of a validation.
        shown_scores: those that stand beside the base's on TensorBoard.
        takes_prompts: whether objects are prompted from their truth in an evaluation.
        loss_names: the parts of the supervised loss, in the order of their charts.
        item_name: what training items are, in the plural, with sections of the config in braces.
        has_domain_gate: whether a domain gate can be fitted to what it learns.
    """

    headline: ClassVar[str] = "score"
    logged_scores: ClassVar[tuple[str, ...]] = ("score",)
    shown_scores: ClassVar[tuple[str, ...]] = ("score",)
    takes_prompts: ClassVar[bool] = True
    loss_names: ClassVar[tuple[str, ...]] = ("total",)
    item_name: ClassVar[str] = "items"
    has_domain_gate: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def domain_names(self) -> list[str]:
        """The names of the domains that the run learns."""
        return [each.name for each in self.config.dataset.domains]

    # Data

    @abstractmethod
    def load_data(self) -> None:
        """Read training, validation and retention data. Raises UserError where they are missing or damaged."""

    @abstractmethod
    def data_fingerprints(self) -> dict[str, dict[str, Any]]:
        """Return what is in each data set: ``{"train": {name: …}, "valid": {name: …}}``, as checkpoints keep it."""

    @abstractmethod
    def build_items(self, views: int | None) -> Items:
        """Return the training items, in so many views; None: drawn afresh in every epoch."""

    @staticmethod
    @abstractmethod
    def collate(items: list[Any]) -> Batch | UserError | None:
        """Return a batch of items, or the first error among them, for the trainer to raise; None of no items.

        It runs in processes that load data, so it knows nothing of the run.
        """

    def describe_data(self, items: Items) -> list[str]:
        """Return lines about the data for the run's log, warnings among them."""
        return []

    def cache_identity(self, items: Items) -> list[Any]:
        """Return plain values that the features of an item depend on beside its key and the model's weights."""
        return [self.config.dataset.model_dump(mode="json"), self.config.training.seed, list(items.shares)]

    def dump_batches(self, folder: Path, batches: Sequence[Any]) -> None:
        """Write batches down to look at, such as those whose loss was not finite."""
        write_text(folder / "names.txt", "".join(f"{name}\n" for batch in batches for name in batch.names))

    # Model and loss

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model to train, with its base weights, on the CPU."""

    @abstractmethod
    def losses(
        self, model: nn.Module, batch: Any, totals: Any = None, features: Features | None = None
    ) -> dict[str, Tensor]:
        """Return ``total``, with graph, and the parts to log, of a batch or of one process' part of it.

        Args:
            model: in training mode.
            batch: of :meth:`collate`.
            totals: of :meth:`merge_totals`, for the whole batch: shares of several processes add up to its loss.
            features: of :meth:`encode`, where the encoder is frozen; the batch may then lack what they are made of.
        """

    def batch_totals(self, batch: Any) -> Any:
        """Return what other processes must know of this part of a batch."""
        return None

    def merge_totals(self, parts: Sequence[Any]) -> Any:
        """Return the totals of a whole batch, given those of its parts."""
        return None

    def seed_draws(self, model: nn.Module, rank: int, *key: int) -> None:
        """Let all that a training forward draws begin from a key, such as seed, step and micro-step."""
        torch.manual_seed(int(np.random.default_rng((*key, 1, rank)).integers(2**63)))

    def run_item(self, model: nn.Module, item: Any) -> None:
        """Run the model on one item, so that its layers see it; nothing is drawn at random."""
        self.losses(model, self.collate([item]))

    def run_general(self, model: nn.Module, count: int) -> None:
        """Run the model on general inputs, as :meth:`run_item` does on an item.

        Raises:
            UserError: there are none.
        """
        raise UserError(
            f"training.adapter_init is contrast, which model.name {self.config.model.name} has no general inputs for; "
            "take data or random",
            "adapters.no-general",
        )

    def check_adapters(self, adapters: Mapping[str, AdapterLayer]) -> None:
        """Raise UserError where the run's items would give these adapters no gradient."""
        return

    def adapter_info(self) -> dict[str, Any]:
        """Return what an adapter folder says of the model it belongs to."""
        return {"model_name": self.config.model.name}

    def check_extension(self, folder: str, info: Mapping[str, Any]) -> None:
        """Raise UserError where an expert group cannot stand beside those of an adapter folder with this info."""
        return

    def has_frozen_encoder(self, model: nn.Module) -> bool:
        """Whether :meth:`encode` gives the same all through training."""
        return False

    def encode(self, model: nn.Module, batch: Any, number: int) -> Features:
        """Return the features of one item of a batch, without a graph."""
        raise NotImplementedError

    def distillation(self, model: nn.Module) -> Distillation | None:
        """Return the objective of self-distillation, if the run has it; the model is as it is before training."""
        return None

    # Validation

    @abstractmethod
    def validate(self, model: nn.Module, label: str, shard: Shard = ALL) -> Validation:
        """Score the model on the validation data, shared between processes, and give all of them the scores.

        Args:
            model: its train or eval mode comes back afterwards.
            label: for the progress bar.
            shard: this process' share.
        """

    def extra_scores(self, model: nn.Module, validation: Validation) -> dict[str, float]:
        """Return further scores by TensorBoard tag, such as those of data that must not be forgotten."""
        return {}

    def monitored_tags(self) -> dict[str, list[str]]:
        """Return groups of score tags that stand in one chart category each: question → groups."""
        return {"Does it learn?": ["validation"]}

    def picture_data(self, validation: Validation) -> dict[str, Any]:
        """Return plain data of predictions, to be drawn beside later ones (:meth:`pictures`)."""
        return {}

    def pictures(self, validation: Validation, base: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield tags and pictures, RGB uint8 (H, W, 3); ``base`` is :meth:`picture_data` of the base."""
        return iter(())

    def is_monitored_alike(self, other: Config) -> bool:
        """Whether scores and pictures of a run of another config can stand beside this run's."""
        return True

    def measure_workload(self, model: nn.Module) -> Workload:
        """Validate a little, and return how long validation and the final table will take."""
        return Workload(0.0, 0.0)

    def advice(self) -> str | None:
        """Return what another run should change where training got no better than the base, if the task knows."""
        return None

    # Evaluation

    def evaluation_domains(self, split: Split) -> Sequence[EvaluatedDomain]:
        """Return what an evaluation reports on: the learned domains in the config's order, then all others.

        Args:
            split: the split of the learned domains.

        Raises:
            UserError: data are missing or damaged.
        """
        raise NotImplementedError

    def score_domain(
        self,
        model: nn.Module,
        domain: Any,
        prompt: Prompt,
        label: str = "",
        masks: Path | None = None,
        after_frame: Callable[[int], None] | None = None,
        shard: Shard = ALL,
    ) -> ModelResult:
        """Score the model on any domain; its train or eval mode comes back afterwards.

        Args:
            model: the model, with or without adapters.
            domain: the data, as of :meth:`evaluation_domains`.
            prompt: how objects are prompted.
            label: text of the progress bar; the domain's name if empty.
            masks: the folder to save predicted masks in; None: they are not saved.
            after_frame: called with a frame's number once all of it is computed.
            shard: this process' share; only the first process gets the results of all videos.
        """
        raise NotImplementedError

    def decide(
        self, base: nn.Module, gate: DomainGate, domain: Any, unchanged: Any, changed: Any
    ) -> GatedResult | None:
        """Return a domain's result with a domain gate deciding; None where the task has no such gate.

        Args:
            base: the base model.
            gate: the domain gate.
            domain: the data.
            unchanged, changed: results of the base and of the adapted model, without a gate.
        """
        return None

    def score_images(self, model: nn.Module, domain: Any, clicks: int, label: str = "") -> ImageResult:
        """Score the model on single images of a domain, from a box and from up to so many clicks."""
        raise NotImplementedError

    def describe_scores(self, prompt: Prompt) -> str:
        """Return one line that says what the scores of :meth:`score_domain` mean."""
        raise NotImplementedError

    # After training

    def fit_domain_gate(self, model: nn.Module, gate: DomainGate | None = None) -> DomainGate | None:
        """Return a gate that knows the learned domains beside an earlier one's; None where none can be fitted."""
        return None

    def evaluate(self, checkpoint: str | Path | None) -> FinalScores | None:
        """Score base and trained model side by side; returns the results in the main process, None in others."""
        return None


_TASKS: dict[str, type[Task]] = {}


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Make a task known by a name; one of the same name is replaced."""

    def register(task: type[Task]) -> type[Task]:
        _TASKS[name] = task
        return task

    return register


def get_task(name: str) -> type[Task]:
    """Return the task of this name; one that ships is imported when it is first asked for."""
    if name not in _TASKS:
        import_module(f".{name}.task", __package__)
    return _TASKS[name]
