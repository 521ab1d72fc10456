"""How experts are used: the routers' selections by layer and frame while a domain is scored, and what pruning costs.

Adapters without groups get a name first (:func:`~src.lora.expert_groups.adopt_unnamed`). ``docs/experts.md`` defines
every number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..config import LoraConfig
from ..core.errors import UserError
from ..lora.expert_groups import group_adapters, use_adapter
from ..lora.moe_layer import MoELoRALinear
from ..lora.pruning import best_experts, experts_pruned
from ..lora.recording import RoutingRecord, record_routing
from ..lora.router import TopKGatingNetwork
from .domains import Domain
from .intervals import change, intervals
from .results import ModelResult

NULL = "null"
SCORE = "J&F"  # the score that the cost of pruning is measured in


@dataclass(frozen=True)
class LayerUtilization:
    """One layer's decisions on a domain; E* is E, or E + 1 with a null expert, which comes last.

    Attributes:
        names: E* names: the experts' numbers, and ``null``.
        decisions_T: (T,), number of decisions on each frame of all clips.
        share_TE: (T, E*), each expert's share of the selections on a frame; NaN without decisions.
        entropy_T: (T,), mean entropy of the router's softmax in nats; NaN without decisions.
    """

    names: list[str]
    decisions_T: np.ndarray
    share_TE: np.ndarray
    entropy_T: np.ndarray

    @property
    def share_E(self) -> np.ndarray:
        """(E*,), the shares over all frames; each decision counts the same; NaN if the layer never ran."""
        return _weighted_mean(self.share_TE, self.decisions_T)

    @property
    def entropy(self) -> float:
        """The mean over all decisions, in nats; NaN if the layer never ran."""
        return float(_weighted_mean(self.entropy_T, self.decisions_T))

    @property
    def entropy_share(self) -> float:
        """:attr:`entropy` as a share of log E*, the most there can be; NaN with a single choice."""
        return self.entropy / math.log(len(self.names)) if len(self.names) > 1 else math.nan

    @property
    def null_share(self) -> float:
        """The null expert's share of all choices, 0 where there is none; NaN if the layer never ran."""
        return float(self.share_E[-1]) if self.names[-1] == NULL else float(0 * self.share_E[0])


@dataclass(frozen=True)
class DomainUtilization:
    """How a group's experts are used on a domain.

    Attributes:
        domain: name of the domain.
        group: name of the expert group.
        result: the scores with its experts.
        layers: by the adapted layer's dotted name, in the model's order, including layers that never ran.
    """

    domain: str
    group: str
    result: ModelResult
    layers: dict[str, LayerUtilization]

    def mean(self, number: str) -> float:
        """Return the mean over layers that ran of one of their numbers, such as ``entropy_share``."""
        return _nan_mean([getattr(layer, number) for layer in self.layers.values()])

    def by_projection(self) -> dict[str, DomainUtilization]:
        """Split by projection: layers with the same last part of the name, such as ``q_proj``."""
        last = {layer: layer.rpartition(".")[2] for layer in self.layers}
        return {
            projection: DomainUtilization(
                self.domain,
                self.group,
                self.result,
                {layer: of_layer for layer, of_layer in self.layers.items() if last[layer] == projection},
            )
            for projection in dict.fromkeys(last.values())
        }


@dataclass
class _Sums:
    """Sums that make a :class:`LayerUtilization`, by frame number."""

    decisions: dict[int, int] = field(default_factory=dict)
    share: dict[int, Tensor] = field(default_factory=dict)
    entropy: dict[int, float] = field(default_factory=dict)

    def add(self, frame: int, decisions: int, share_E: Tensor, entropy: float) -> None:
        self.decisions[frame] = self.decisions.get(frame, 0) + decisions
        self.share[frame] = self.share.get(frame, torch.zeros(())) + decisions * share_E.double().cpu()
        self.entropy[frame] = self.entropy.get(frame, 0.0) + decisions * entropy

    def means(self, names: list[str], frames: int) -> LayerUtilization:
        decisions_T = np.array([self.decisions.get(t, 0) for t in range(frames)])
        share_TE, entropy_T = np.full((frames, len(names)), np.nan), np.full(frames, np.nan)
        for t in self.decisions:
            share_TE[t] = self.share[t].numpy() / self.decisions[t]
            entropy_T[t] = self.entropy[t] / self.decisions[t]
        return LayerUtilization(names, decisions_T, share_TE, entropy_T)


class ScoreDomain(Protocol):
    """Scores a model on a domain, such as :func:`~src.tasks.tracking.evaluation.evaluate_domain` with its prompt."""

    def __call__(
        self,
        model: nn.Module,
        domain: Domain,
        *,
        label: str = "",
        after_frame: Callable[[int], None] | None = None,
    ) -> ModelResult:
        """Return the scores.

        Args:
            model: in any mode, which it has again afterwards.
            domain: the data to score.
            label: text of the progress bar.
            after_frame: called with a frame's number once all of it is computed.
        """
        ...


def measure_utilization(model: nn.Module, group: str, domain: Domain, score: ScoreDomain) -> DomainUtilization:
    """Score a domain with a group's experts, and record the routers' selections on every frame.

    Records are summed frame by frame, so memory does not grow with the domain. A layer that does not run on a frame,
    as memory attention does not on a prompted frame, has no selections there.

    Args:
        model: the model with the group in it.
        group: name of an expert group of method mope.
        domain: the data to score.
        score: how the domain is scored.

    Raises:
        UserError: there is no such group, it has no experts, or the domain cannot be scored.
    """
    sums: dict[str, _Sums] = {}
    frames = 0

    def add_frame(t: int) -> None:
        nonlocal frames
        frames = max(frames, t + 1)
        _add(routing, t, sums)
        routing.clear()

    with use_adapter(model, group), record_routing(model) as routing:
        routers = {
            layer: adapter.gate
            for layer, adapter in group_adapters(model, group).items()
            if isinstance(adapter, MoELoRALinear)
        }
        if not routers:
            raise UserError(
                f"the adapters of '{group}' are of method lora: they have no experts", code="experts.no-experts"
            )
        result = score(model, domain, after_frame=add_frame)
    layers = {}
    for layer, router in routers.items():
        layers[layer] = sums.get(f"{layer}.groups.{group}", _Sums()).means(choice_names(router), frames)
    return DomainUtilization(domain.name, group, result, layers)


def choice_names(router: TopKGatingNetwork) -> list[str]:
    """Return the names that a router selects from, in its order: the experts' numbers, and ``null``."""
    return [*map(str, range(router.num_experts)), *([NULL] if router.null_expert else [])]


def _add(routing: RoutingRecord, frame: int, sums: dict[str, _Sums]) -> None:
    share, entropy = routing.utilization(), routing.entropy()
    for name, call in routing.layers().items():
        sums.setdefault(name, _Sums()).add(frame, len(call.selected_NE), share[name], entropy[name])


def dead_experts(utilizations: Sequence[DomainUtilization], below: float) -> dict[str, list[int]]:
    """Return for each layer the numbers of experts that no domain uses; layers without any are left out.

    The null expert is never dead. Domains on which a layer did not run do not count for it.

    Args:
        utilizations: those of one group.
        below: an expert is unused where its share of all selections is below this times 1 / E*, the even share.
    """
    dead = {}
    for layer in utilizations[0].layers:
        share_DE, names = _of_layer(utilizations, layer), utilizations[0].layers[layer].names
        if len(share_DE):
            unused_E = np.all(share_DE < below / len(names), axis=0).tolist()
            dead[layer] = [int(name) for name, unused in zip(names, unused_E, strict=True) if unused and name != NULL]
    return {layer: experts for layer, experts in dead.items() if experts}


def mean_utilization(utilizations: Sequence[DomainUtilization]) -> dict[str, Tensor]:
    """Return for each layer (E*,) the mean of the domains' shares; 0 where the layer ran on none.

    Each domain counts the same. These are scores for :func:`~src.lora.pruning.pruned`.
    """
    scores = {}
    for layer, first in utilizations[0].layers.items():
        share_DE = _of_layer(utilizations, layer)
        mean_E = share_DE.mean(axis=0) if len(share_DE) else np.zeros(len(first.names))
        scores[layer] = torch.from_numpy(mean_E)
    return scores


def overlap(a: DomainUtilization, b: DomainUtilization) -> dict[str, float]:
    """Return for each layer how alike two domains use its experts: 1 − ½ Σ_e |p_e − q_e|, with the null expert.

    It is 1 where all shares are equal, and 0 where no expert is used by both. It equals Σ_e min(p_e, q_e), one minus
    the total variation distance (Levin, Peres and Wilmer, Markov Chains and Mixing Times, 2009, section 4.1). NaN where
    the layer did not run on both domains, or the domains used different groups, whose experts are different ones.
    """
    if a.group != b.group:
        return dict.fromkeys([*a.layers, *b.layers], math.nan)
    return {layer: 1 - float(np.abs(of.share_E - b.layers[layer].share_E).sum()) / 2 for layer, of in a.layers.items()}


def mean_overlap(a: DomainUtilization, b: DomainUtilization) -> float:
    """Return the mean of :func:`overlap` over the layers that ran on both; NaN where there are none."""
    return _nan_mean(list(overlap(a, b).values()))


@dataclass(frozen=True)
class Pruning:
    """The cost of fewer experts in a group.

    Attributes:
        experts: E, the number of experts per layer.
        kept: number of experts kept per layer → layer → their numbers; without E.
        results: number of experts kept per layer, E first → domain → scores.
    """

    experts: int
    kept: dict[int, dict[str, list[int]]]
    results: dict[int, dict[str, ModelResult]]

    def change(self, keep: int, domain: str) -> float:
        """Return J&F less that of all experts."""
        return self.results[keep][domain].scores[SCORE] - self.results[self.experts][domain].scores[SCORE]

    def interval(self, keep: int, domain: str) -> tuple[float, float] | None:
        """Return the change's 95 % interval, by the bootstrap over videos; None with fewer than two."""
        full, fewer = (self.results[experts][domain].draws() for experts in (self.experts, keep))
        ends = intervals(change(full, fewer))
        return None if ends is None else ends[SCORE]

    def recommended(self, tolerance: float) -> int:
        """Return the smallest number at which no domain's J&F falls by more than ``tolerance``; E if there is none."""
        return min(
            keep for keep, of in self.results.items() if all(self.change(keep, domain) >= -tolerance for domain in of)
        )


def measure_pruning(
    model: nn.Module,
    config: LoraConfig,
    utilizations: Sequence[DomainUtilization],
    domains: Iterable[Domain],
    score: ScoreDomain,
    keeps: Iterable[int],
) -> Pruning:
    """Score domains with only a group's most used experts (:func:`mean_utilization`); afterwards all are back.

    Args:
        model: the model with the group in it.
        config: config of the group.
        utilizations: those of the group with all its experts, on these domains.
        domains: the data to score; domains without a utilization are left out.
        score: how a domain is scored.
        keeps: numbers of experts to keep per layer, each measured.

    Raises:
        UserError: as :func:`~src.lora.pruning.prune_experts`, or a domain cannot be scored.
    """
    group, scores = utilizations[0].group, mean_utilization(utilizations)
    results = {config.experts: {utilization.domain: utilization.result for utilization in utilizations}}
    run = [domain for domain in domains if domain.name in results[config.experts]]
    fewer = sorted(set(keeps) - {config.experts}, reverse=True)
    for keep in fewer:
        with experts_pruned(model, group, config, keep, scores), use_adapter(model, group):
            results[keep] = {
                domain.name: score(model, domain, label=f"{domain.name}: {keep} experts") for domain in run
            }
    kept = {
        keep: {layer: best_experts(share_E[: config.experts], keep).tolist() for layer, share_E in scores.items()}
        for keep in fewer
    }
    return Pruning(config.experts, kept, results)


@dataclass(frozen=True)
class GroupUtilization:
    """How a group's experts are used on each domain that it was run on.

    Attributes:
        config: config of the group.
        utilizations: one a domain.
        dead: :func:`dead_experts`.
        pruning: None where it was not measured.
    """

    config: LoraConfig
    utilizations: list[DomainUtilization]
    dead: dict[str, list[int]]
    pruning: Pruning | None


def _nan_mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are numbers; NaN where none is."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _of_layer(utilizations: Sequence[DomainUtilization], layer: str) -> np.ndarray:
    """Return (D, E*), a layer's shares on the domains where it ran."""
    share_DE = np.array([utilization.layers[layer].share_E for utilization in utilizations])
    ran_DE: np.ndarray = share_DE[~np.isnan(share_DE).any(axis=1)]
    return ran_DE


def _weighted_mean(values_T: np.ndarray, weights_T: np.ndarray) -> np.ndarray:
    """Return the weighted mean along the first dimension; NaN where no weight is above 0."""
    counted = weights_T > 0
    if not counted.any():
        return np.full(values_T.shape[1:], np.nan)
    return np.average(values_T[counted], axis=0, weights=weights_T[counted])
