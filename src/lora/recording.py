"""Recording what the routers of a model decide.

``with record_routing(model) as routing:`` collects every call of every router. Losses and statistics are computed from
the record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..core.torch_compat import is_recomputing
from .router import TopKGatingNetwork


@dataclass(frozen=True)
class RouterCall:
    """N decisions of one router. E* is E, or E + 1 with a null expert, which comes last.

    Attributes:
        logits_NE: (N, E*), float32, with the graph they were computed in.
        selected_NE: (N, E*), bool, K of them true for each token.
        num_experts: E, the experts that add something.
        top_k: K.
    """

    logits_NE: Tensor
    selected_NE: Tensor
    num_experts: int
    top_k: int

    def selected_NK(self) -> Tensor:
        """Return the selected experts' indices (N, K), the one with the largest weight first."""
        return self.logits_NE.masked_fill(~self.selected_NE, -math.inf).topk(self.top_k).indices


@dataclass
class RoutingRecord:
    """What every router of a model decided while it was recorded.

    Attributes:
        calls: dotted name of each routed layer → its calls in order; empty for a layer that did not run.
    """

    calls: dict[str, list[RouterCall]] = field(default_factory=dict)

    def clear(self) -> None:
        """Drop what was recorded so far and go on recording."""
        for calls in self.calls.values():
            calls.clear()

    def layers(self) -> dict[str, RouterCall]:
        """Return the layers that routed at least one token, each with the tokens of all its calls as one."""
        joined = {}
        for name, calls in self.calls.items():
            if sum(len(call.logits_NE) for call in calls):
                # put together experts first, as routers make them
                logits_EN = torch.cat([call.logits_NE.T for call in calls], dim=1)
                selected_EN = torch.cat([call.selected_NE.T for call in calls], dim=1)
                joined[name] = RouterCall(logits_EN.T, selected_EN.T, calls[0].num_experts, calls[0].top_k)
        return joined

    def expert_counts(self) -> dict[str, Tensor]:
        """Return how often each expert was selected, per layer int64 (E*,)."""
        return {name: call.selected_NE.sum(dim=0) for name, call in self.layers().items()}

    def utilization(self) -> dict[str, Tensor]:
        """Return each expert's share of all selections, per layer (E*,); shares sum to 1."""
        return {name: count_E / count_E.sum() for name, count_E in self.expert_counts().items()}

    def mean_weights(self) -> dict[str, Tensor]:
        """Return each expert's mean routing weight, per layer (E,); weights sum to 1, less that of a null expert."""
        return {
            name: call.logits_NE.masked_fill(~call.selected_NE, -math.inf).softmax(-1).mean(0)[: call.num_experts]
            for name, call in self.layers().items()
        }

    def entropy(self) -> dict[str, float]:
        """Return the mean entropy of the full softmax, per layer in nats: 0 (sure) to log E* (even)."""
        with torch.no_grad():
            return {
                name: torch.special.entr(call.logits_NE.softmax(-1)).sum(-1).mean().item()
                for name, call in self.layers().items()
            }


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record what each router of the model decides inside the scope, including several calls of the same layer.

    Scopes may be nested; each records all that runs inside it. A forward that non-reentrant activation checkpointing
    (``use_reentrant=False``) repeats in the backward pass counts once. Reentrant checkpointing is not supported: it
    runs the first forward without a graph, so losses on the record would train nothing.
    """
    routers = _routers(model)
    record = RoutingRecord({name: [] for name in routers})
    recorders = {name: partial(_record_call, record.calls[name], router) for name, router in routers.items()}
    for name, router in routers.items():
        router.recorders.append(recorders[name])
    try:
        yield record
    finally:
        for name, router in routers.items():
            router.recorders.remove(recorders[name])


def _record_call(calls: list[RouterCall], router: TopKGatingNetwork, logits_EN: Tensor, selected_EN: Tensor) -> None:
    # Activation checkpointing runs the forward a second time inside the backward pass: the same call, not another.
    if not is_recomputing():
        calls.append(RouterCall(logits_EN.T, selected_EN.T, router.num_experts, router.top_k))


def _routers(model: nn.Module) -> dict[str, TopKGatingNetwork]:
    """Return the routers by the dotted names of their layers."""
    return {
        name.removesuffix("gate").removesuffix("."): module
        for name, module in model.named_modules()
        if isinstance(module, TopKGatingNetwork)
    }
