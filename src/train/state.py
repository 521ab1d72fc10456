"""Where a run is: all that a checkpoint must hold beside weights, optimizer and schedule to go on exactly."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ..core.errors import UserError
from ..models.checkpoint import describe_types

OLD_NAMES = {"base_J": "base_score", "best_J": "best_score", "strength": "adapter_scale"}
"""Fields by their names in checkpoints of earlier versions."""

OLD_TAGS = {"kept/": "retention/"}
"""Beginnings of score tags in checkpoints of earlier versions."""


@dataclass
class TrainState:
    """Where a run is. Fields that begin with ``epoch_`` are of the epoch under way, and empty between epochs."""

    run_name: str
    """The folder of its TensorBoard events: the time of its start, and the method."""

    epoch: int = 0
    """Epochs that are complete."""

    clips: int = 0
    """Clips done in the epoch under way."""

    step: int = 0
    """Optimizer steps done, skipped ones among them."""

    skipped: int = 0
    """Steps skipped in a row, up to now."""

    base_score: float = math.nan
    """Headline score of the model before training."""

    base_scores: dict[str, float] = field(default_factory=dict)
    """Scores of the model before training by TensorBoard tag, to be shown beside later ones."""

    base_masks: dict[str, Any] = field(default_factory=dict)
    """Predictions of the model before training by TensorBoard tag, as the task draws them beside later ones."""

    best_score: float = -math.inf
    """Best headline score so far."""

    since_best: int = 0
    """Validations since then."""

    adapter_scale: float | None = None
    """Scale that the best adapters were given at the end; None: not yet chosen."""

    history: list[dict[str, float]] = field(default_factory=list)
    """For each epoch its mean losses, and its validation's scores as ``val_<name>``."""

    epoch_steps: int = 0
    """Steps done."""

    epoch_skipped: int = 0
    """Steps skipped."""

    epoch_sums: dict[str, float] = field(default_factory=dict)
    """Sum of each loss over the steps that had it."""

    epoch_counts: dict[str, int] = field(default_factory=dict)
    """How many steps had each loss."""

    epoch_use: dict[str, list[float]] = field(default_factory=dict)
    """Per routed layer, each expert's shares of choices, summed over batches."""

    epoch_clips: dict[str, int] = field(default_factory=dict)
    """Clips that were learned from, by data set."""

    @classmethod
    def from_checkpoint(cls, progress: dict[str, Any], path: str | Path | None) -> TrainState:
        """Read the ``progress`` of a checkpoint, also of an earlier version.

        Raises:
            UserError: it is not that of a training run.
        """
        fields = {OLD_NAMES.get(name, name): value for name, value in progress.items()}
        try:
            state = cls(**fields)
        except TypeError as error:
            raise UserError(f"{path}: not a checkpoint of a training run: {error}", "checkpoint.not-a-run") from None
        if not re.fullmatch(r"\w[\w-]*", str(state.run_name)):  # it becomes the name of a folder
            raise UserError(
                f"{path}: not a checkpoint of a training run: its name is {state.run_name!r}", "checkpoint.not-a-run"
            )
        try:
            _types().model_validate(fields)
        except ValidationError as error:
            raise UserError(
                f"{path}: not a checkpoint of a training run: {describe_types(error)}", "checkpoint.not-a-run"
            ) from None
        if min(state.epoch, state.clips, state.step, state.epoch_steps) < 0:
            raise UserError(f"{path}: damaged: it counts steps below 0", "checkpoint.not-a-run")
        for old, new in OLD_TAGS.items():
            state.base_scores = {
                new + tag.removeprefix(old) if tag.startswith(old) else tag: value
                for tag, value in state.base_scores.items()
            }
        return state

    def to_checkpoint(self) -> dict[str, Any]:
        """Return it as plain numbers, text, lists and mappings."""
        return asdict(self)

    def add_losses(self, losses: dict[str, float]) -> None:
        """Count a step's losses into the epoch."""
        for name, value in losses.items():
            self.epoch_sums[name] = self.epoch_sums.get(name, 0.0) + value
            self.epoch_counts[name] = self.epoch_counts.get(name, 0) + 1

    def epoch_means(self) -> dict[str, float]:
        """Return the epoch's mean losses so far, each over the steps that had it."""
        return {name: value / self.epoch_counts[name] for name, value in self.epoch_sums.items()}

    def reset_epoch(self) -> None:
        """Empty what belongs to the epoch that is over."""
        self.epoch_steps, self.epoch_skipped = 0, 0
        self.epoch_sums, self.epoch_counts, self.epoch_use, self.epoch_clips = {}, {}, {}, {}


@cache
def _types() -> type[BaseModel]:
    """Return a model of the fields' types, of which a checkpoint need not have all."""
    fields: dict[str, Any] = {name: (kind, None) for name, kind in get_type_hints(TrainState).items()}
    return create_model("TrainStateTypes", __config__=ConfigDict(strict=True), **fields)
