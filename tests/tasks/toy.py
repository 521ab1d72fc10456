"""A task and a model of its own: two Linear layers that learn a regression. As a script it runs a command with them.

``python -m tests.tasks.toy train --config toy.yaml …``; with ``TOY_KILL_AT_STEP`` set the process kills itself there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from src.config import ModelConfig
from src.core.device import evaluating
from src.core.distributed import ALL, Shard
from src.models.checkpoint import load_trained
from src.models.spec import ModelSpec, register_model
from src.tasks.base import Features, FinalScores, Task, Validation, register_task

NAME, ITEMS, WIDTH = "toy", 10, 4


class ToyModel(nn.Module):
    """x (B, 4) → y (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def build_model(config: ModelConfig) -> nn.Module:
    """What a room offers: the base model."""
    return ToyModel()


register_model(
    ModelSpec(
        name=NAME, task=NAME, room=__name__, image_size=4, stride=1, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1),
        default_targets=("first", "second"), encoder=("first.",), memory=(), decoder=("second.",),
        model_class=f"{__name__}.{ToyModel.__qualname__}",
    )
)  # fmt: skip


@dataclass(frozen=True)
class ToyBatch:
    """Items put together."""

    names: tuple[str, ...]
    keys: tuple[tuple[int, int], ...]
    x: Tensor
    y: Tensor


class ToyItems:
    """Pairs (x, y), drawn from their key."""

    shares: ClassVar[Sequence[int]] = (ITEMS,)

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, key: tuple[int, int]) -> ToyBatch:
        x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(key[0] * ITEMS + key[1]))
        return ToyBatch((f"pair {key[1]}",), (key[:2],), x, x.sum(dim=1, keepdim=True))

    def sample_key(self, epoch: int, index: int) -> tuple[int, int]:
        return epoch, index

    def count_samples(self, views: int) -> int:
        return views * ITEMS

    def with_pixels(self, batch: ToyBatch) -> ToyBatch:
        return batch


@register_task(NAME)
class ToyTask(Task):
    """Mean squared error; a score of minus that."""

    headline: ClassVar[str] = "fit"
    logged_scores: ClassVar[tuple[str, ...]] = ("fit",)
    shown_scores: ClassVar[tuple[str, ...]] = ("fit",)

    def load_data(self) -> None:
        """There is nothing to read."""

    def data_fingerprints(self) -> dict[str, dict[str, Any]]:
        return {"train": {"pairs": {"items": ITEMS}}, "valid": {}}

    def build_items(self, views: int | None) -> ToyItems:
        return ToyItems()

    @staticmethod
    def collate(items: list[ToyBatch]) -> ToyBatch | None:
        if not items:
            return None
        names, keys = ([each for item in items for each in getattr(item, name)] for name in ("names", "keys"))
        return ToyBatch(tuple(names), tuple(keys), torch.cat([i.x for i in items]), torch.cat([i.y for i in items]))

    def build_model(self) -> nn.Module:
        return build_model(self.config.model)

    def batch_totals(self, batch: ToyBatch) -> int:
        return len(batch.x)

    def merge_totals(self, parts: Sequence[int]) -> int:
        return sum(parts)

    def seed_draws(self, model: nn.Module, rank: int, *key: int) -> None:
        super().seed_draws(model, rank, *key)
        if str(key[1]) == os.environ.get("TOY_KILL_AT_STEP"):
            os.kill(os.getpid(), signal.SIGKILL)

    def losses(
        self, model: nn.Module, batch: ToyBatch, totals: Any = None, features: Features | None = None
    ) -> dict[str, Tensor]:
        count = len(batch.x) if totals is None else totals
        return {"total": (model(batch.x) - batch.y).square().sum() / count}

    def validate(self, model: nn.Module, label: str, shard: Shard = ALL) -> Validation:
        batch = self.collate([ToyItems()[99, index] for index in range(ITEMS)])
        with torch.no_grad(), evaluating(model):
            return Validation({"fit": -float((model(batch.x) - batch.y).square().mean())})

    def evaluate(self, checkpoint: str | Path | None) -> FinalScores | None:
        scores = {}
        for name in ("base", "trained"):
            torch.manual_seed(self.config.training.seed)
            model = self.build_model()
            if name == "trained" and checkpoint is not None:
                load_trained(model, checkpoint)
            scores[f"final/{name}"] = self.validate(model, name).scores["fit"]
        text = "\n".join(f"{name} {value:.6f}" for name, value in scores.items())
        return FinalScores(scores, text, text)


if __name__ == "__main__":
    import tests.tasks.toy  # noqa: F401  (under its own name, which the spec has)
    from src.cli.main import main

    try:
        main(sys.argv[1], sys.argv[2:])
    finally:
        packages = {"sam2", "training", "transformers"} & {name.split(".")[0] for name in sys.modules}
        print(f"imported: {sorted(packages)}")
