"""Numbers that go bad: found, named, and written down to look at; and signs of a run that learns nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks.base import LossTerms

QUOTED = 3
"""Layers that a message names."""

EPOCHS_TO_MOVE, LEAST_MOVE = 3, 0.01
"""After so many epochs a loss should have fallen by more than this share."""


class NotFinite(Exception):
    """A loss or a gradient is infinite or NaN.

    Args:
        problem: what is, and where.
        names: of the clips it came of.
        batches: these clips; none if they are not the run's own.
        of_gradient: whether it is a gradient, which float16 is tried for with a smaller scale.
    """

    def __init__(self, problem: str, names: str, batches: Sequence[Any], of_gradient: bool = False) -> None:
        super().__init__(problem, names, batches, of_gradient)  # which makes it pickle
        self.problem, self.names, self.batches, self.of_gradient = problem, names, batches, of_gradient

    @classmethod
    def elsewhere(cls) -> NotFinite:
        """Return what a process raises where another one's numbers are bad."""
        return cls("", "", [])

    @classmethod
    def of_terms(cls, terms: LossTerms, source: str) -> NotFinite:
        """Return what is wrong with an objective that is computed on ``source``."""
        if terms.total is None or terms.is_finite:
            return cls.elsewhere()
        return cls(f"the loss is {terms.total.item()}", source, [])

    @classmethod
    def of_all(cls, found: Sequence[NotFinite]) -> NotFinite:
        """What the processes of a run have found, some of which may have found nothing (an empty ``problem``)."""
        bad = [each for each in found if each.problem]
        batches = [batch for each in bad for batch in each.batches]
        return cls(bad[0].problem, ", ".join(each.names for each in bad), batches, bad[0].of_gradient)


def bad_gradients(model: nn.Module) -> list[str]:
    """The parameters whose gradient is not finite; waits for the device once where all are."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not gradients or torch.stack([g.isfinite().all() for g in gradients.values()]).all():
        return []
    return [name for name, gradient in gradients.items() if not gradient.isfinite().all()]


def bad_weights(model: nn.Module) -> list[str]:
    """The parameters that are not finite."""
    return [name for name, p in model.named_parameters() if not p.isfinite().all()]


@contextmanager
def watching_layers(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of the layers that give something that is not finite inside the scope, in order."""
    found: list[str] = []

    def watch(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    handles = [
        layer.register_forward_hook(partial(watch, name)) for name, layer in model.named_modules() if name
    ]  # fmt: skip
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def quoted(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - QUOTED} more" if len(names) > QUOTED else ""
    return ", ".join(names[:QUOTED]) + more


def dead_experts(usage: dict[str, Tensor], experts: int) -> str | None:
    """Return a warning about experts that no router selected, if there are any.

    Args:
        usage: per layer, how often each expert was selected, (E,), or (E + 1,) with the null expert last.
        experts: E.
    """
    dead = {layer: (use[:experts] == 0).nonzero().flatten().tolist() for layer, use in usage.items()}
    lines = [f"{layer} (expert {', '.join(map(str, numbers))})" for layer, numbers in dead.items() if numbers]
    if not lines:
        return None
    return (
        f"experts were never chosen in {len(lines)} of {len(usage)} layers: {quoted(lines)}; a higher "
        "lora.router.balance_weight spreads the choices"
    )


def check_unused_datasets(names: Sequence[str], clips: dict[str, int]) -> str | None:
    """A warning about data sets of which no clip was trained on, given the number of clips of the others."""
    absent = [name for name in names if not clips.get(name)]
    if not absent:
        return None
    return f"no clip of {', '.join(absent)} was trained on; the epoch was cut short, or its steps were skipped"


def check_loss_plateau(history: Sequence[dict[str, float]]) -> str | None:
    """A warning, once, when some epochs have not made the loss smaller than the first one's."""
    means = [entry["total"] for entry in history if "total" in entry]
    if len(means) != EPOCHS_TO_MOVE or min(means[1:]) < means[0] - LEAST_MOVE * abs(means[0]):
        return None
    return (
        f"after {len(means)} epochs the loss is {means[-1]:.4g}, at first it was {means[0]:.4g}: nothing seems to be "
        "learned; try a higher training.learning_rate, or a lower one if the loss jumps"
    )
