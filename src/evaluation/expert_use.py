"""How experts are used: what gates choose while objects are tracked, by layer and frame, and what fewer experts cost.

Adapters without groups get a name first (:func:`~src.lora.expert_groups.adopt_unnamed`). What every number means is in
``docs/experts.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ..config import LoraConfig, Prompt
from ..core.errors import UserError
from ..lora.expert_groups import group_adapters, use_adapter
from ..lora.moe_layer import MoELoRALinear
from ..lora.pruning import best_experts, experts_pruned
from ..lora.recording import RoutingRecord, record_routing
from ..lora.router import TopKGatingNetwork
from ..tasks.tracking.evaluation import evaluate_domain
from .domains import Domain
from .intervals import bootstrap, change, intervals
from .results import DomainResult

NULL = "null"
SCORE = "J&F"  # what pruning costs is counted in


@dataclass(frozen=True)
class LayerUse:
    """What one layer's gate decided on a domain; E* is E, or E + 1 with a null expert, which comes last.

    A decision is of a token, or at the router's levels ``frame`` and ``video`` of an object in one call of the layer.

    Attributes:
        names: E* names: the experts' numbers, and ``null``.
        decisions_T: (T,), how many decisions were made on each frame of all clips together.
        use_TE: (T, E*), each expert's share of the choices made on a frame; NaN where there were none.
        entropy_T: (T,), the mean entropy of the gate's softmax in nats; NaN where nothing was decided.
    """

    names: list[str]
    decisions_T: np.ndarray
    use_TE: np.ndarray
    entropy_T: np.ndarray

    @property
    def use_E(self) -> np.ndarray:
        """(E*,), the shares over all frames, each decision counting the same; NaN if the layer never ran."""
        return _weighted_mean(self.use_TE, self.decisions_T)

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
        return float(self.use_E[-1]) if self.names[-1] == NULL else float(0 * self.use_E[0])


@dataclass(frozen=True)
class DomainUse:
    """What the experts of a group did on a domain.

    Attributes:
        domain: its name.
        group: whose experts they are.
        result: how well the objects were tracked with them.
        layers: use by the adapted layer's dotted name, in the model's order, also of layers that never ran.
    """

    domain: str
    group: str
    result: DomainResult
    layers: dict[str, LayerUse]

    def mean(self, number: str) -> float:
        """The plain mean over the layers that ran of one of :class:`LayerUse`'s numbers, such as ``entropy_share``."""
        return _nan_mean([getattr(layer, number) for layer in self.layers.values()])

    def by_projection(self) -> dict[str, DomainUse]:
        """The same for each projection: the layers with the same last part of the name, such as ``q_proj``."""
        last = {layer: layer.rpartition(".")[2] for layer in self.layers}
        return {
            projection: DomainUse(
                self.domain,
                self.group,
                self.result,
                {layer: use for layer, use in self.layers.items() if last[layer] == projection},
            )
            for projection in dict.fromkeys(last.values())
        }


@dataclass
class _Sums:
    """What adds up to a :class:`LayerUse`, by frame number."""

    decisions: dict[int, int] = field(default_factory=dict)
    use: dict[int, Tensor] = field(default_factory=dict)
    entropy: dict[int, float] = field(default_factory=dict)

    def add(self, frame: int, decisions: int, use_E: Tensor, entropy: float) -> None:
        self.decisions[frame] = self.decisions.get(frame, 0) + decisions
        self.use[frame] = self.use.get(frame, torch.zeros(())) + decisions * use_E.double().cpu()
        self.entropy[frame] = self.entropy.get(frame, 0.0) + decisions * entropy

    def means(self, names: list[str], frames: int) -> LayerUse:
        decisions_T = np.array([self.decisions.get(t, 0) for t in range(frames)])
        use_TE, entropy_T = np.full((frames, len(names)), np.nan), np.full(frames, np.nan)
        for t in self.decisions:
            use_TE[t] = self.use[t].numpy() / self.decisions[t]
            entropy_T[t] = self.entropy[t] / self.decisions[t]
        return LayerUse(names, decisions_T, use_TE, entropy_T)


def measure_utilization(model: SAM2Base, group: str, domain: Domain, prompt: Prompt) -> DomainUse:
    """Track the objects of a domain with a group's experts, and record what its gates choose on every frame.

    What is recorded is summed up frame by frame, so memory does not grow with the domain. A layer that does not run on
    a frame, as memory attention does not where an object is prompted, has no use there.

    Args:
        model: with the group.
        group: of method mope.
        domain: what to track.
        prompt: how objects are prompted.

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
        gates = {
            layer: adapter.gate
            for layer, adapter in group_adapters(model, group).items()
            if isinstance(adapter, MoELoRALinear)
        }
        if not gates:
            raise UserError(f"the adapters of '{group}' are of method lora: they have no experts")
        result = evaluate_domain(model, domain, prompt, after_frame=add_frame)
    layers = {}
    for layer, gate in gates.items():
        layers[layer] = sums.get(f"{layer}.groups.{group}", _Sums()).means(choice_names(gate), frames)
    return DomainUse(domain.name, group, result, layers)


def choice_names(gate: TopKGatingNetwork) -> list[str]:
    """What a gate chooses from, in its order: the experts' numbers, and ``null``."""
    return [*map(str, range(gate.num_experts)), *([NULL] if gate.null_expert else [])]


def _add(routing: RoutingRecord, frame: int, sums: dict[str, _Sums]) -> None:
    usage, entropy = routing.utilization(), routing.entropy()
    for name, call in routing.layers().items():
        sums.setdefault(name, _Sums()).add(frame, len(call.selected_NE), usage[name], entropy[name])


def dead_experts(uses: Sequence[DomainUse], below: float) -> dict[str, list[int]]:
    """Per layer the experts, by number, that no domain uses; layers without any are left out, and null is never dead.

    Args:
        uses: of one group.
        below: an expert is unused where its share of all choices is below this times 1 / E*, the even share. Domains
            on which the layer did not run are not asked; where it ran on none, nothing is said.
    """
    dead = {}
    for layer in uses[0].layers:
        use_DE, names = _of_layer(uses, layer), uses[0].layers[layer].names
        if len(use_DE):
            unused_E = np.all(use_DE < below / len(names), axis=0).tolist()
            dead[layer] = [int(name) for name, unused in zip(names, unused_E, strict=True) if unused and name != NULL]
    return {layer: experts for layer, experts in dead.items() if experts}


def mean_use(uses: Sequence[DomainUse]) -> dict[str, Tensor]:
    """Per layer (E*,), the mean of the domains' shares, each domain counting the same; 0 where the layer ran on none.

    These are scores for :func:`~src.lora.pruning.pruned`.
    """
    scores = {}
    for layer, first in uses[0].layers.items():
        use_DE = _of_layer(uses, layer)
        mean_E = use_DE.mean(axis=0) if len(use_DE) else np.zeros(len(first.names))
        scores[layer] = torch.from_numpy(mean_E)
    return scores


def overlap(a: DomainUse, b: DomainUse) -> dict[str, float]:
    """Per layer how alike two domains use its experts: 1 − ½ Σ_e |p_e − q_e|, the null expert included.

    1 where all shares are equal, 0 where no expert is used by both; one minus the total variation distance (Levin,
    Peres and Wilmer, Markov Chains and Mixing Times, 2009, section 4.1), which is Σ_e min(p_e, q_e). NaN where the
    layer ran on only one of the domains or on none, and where the domains used experts of different groups, which are
    not the same experts.
    """
    if a.group != b.group:
        return dict.fromkeys([*a.layers, *b.layers], math.nan)
    return {layer: 1 - float(np.abs(of.use_E - b.layers[layer].use_E).sum()) / 2 for layer, of in a.layers.items()}


def mean_overlap(a: DomainUse, b: DomainUse) -> float:
    """The plain mean of :func:`overlap` over the layers that ran on both; NaN where there are none."""
    return _nan_mean(list(overlap(a, b).values()))


@dataclass(frozen=True)
class Pruning:
    """What fewer experts of a group cost.

    Attributes:
        experts: E, all there are.
        kept: experts kept per layer → layer → their numbers; without E.
        results: experts kept per layer, all of them first → domain → scores.
    """

    experts: int
    kept: dict[int, dict[str, list[int]]]
    results: dict[int, dict[str, DomainResult]]

    def change(self, keep: int, domain: str) -> float:
        """How much J&F is above that of all experts."""
        return self.results[keep][domain].scores[SCORE] - self.results[self.experts][domain].scores[SCORE]

    def interval(self, keep: int, domain: str) -> tuple[float, float] | None:
        """The change's 95 %, by the bootstrap over videos; None with fewer than two."""
        full, fewer = (
            bootstrap([list(video.scores.values()) for video in self.results[n][domain].videos])
            for n in (self.experts, keep)
        )
        ends = intervals(change(full, fewer))
        return None if ends is None else ends[SCORE]

    def recommended(self, tolerance: float) -> int:
        """The smallest number kept at which no domain's J&F falls by more than ``tolerance``; E if there is none."""
        return min(
            keep for keep, of in self.results.items() if all(self.change(keep, domain) >= -tolerance for domain in of)
        )


def measure_pruning(
    model: SAM2Base,
    config: LoraConfig,
    uses: Sequence[DomainUse],
    domains: Iterable[Domain],
    prompt: Prompt,
    keeps: Iterable[int],
) -> Pruning:
    """Score domains with a group's most used experts only (:func:`mean_use`); the model has all of them afterwards.

    Args:
        model: with the group.
        config: the group's.
        uses: of the group with all its experts, on these domains.
        domains: what to track; those without a use are left out.
        prompt: how objects are prompted.
        keeps: how many experts to keep per layer, each measured.

    Raises:
        UserError: as :func:`~src.lora.pruning.prune_experts`, or a domain cannot be scored.
    """
    group, scores = uses[0].group, mean_use(uses)
    results = {config.experts: {use.domain: use.result for use in uses}}
    run = [domain for domain in domains if domain.name in results[config.experts]]
    fewer = sorted(set(keeps) - {config.experts}, reverse=True)
    for keep in fewer:
        with experts_pruned(model, group, config, keep, scores), use_adapter(model, group):
            results[keep] = {
                domain.name: evaluate_domain(model, domain, prompt, f"{domain.name}: {keep} experts") for domain in run
            }
    kept = {
        keep: {layer: best_experts(use_E[: config.experts], keep).tolist() for layer, use_E in scores.items()}
        for keep in fewer
    }
    return Pruning(config.experts, kept, results)


@dataclass(frozen=True)
class GroupUse:
    """How a group's experts are used: on each domain that it was run on, and what follows from that.

    Attributes:
        config: the group's.
        uses: one a domain.
        dead: :func:`dead_experts`.
        pruning: None where it was not measured.
    """

    config: LoraConfig
    uses: list[DomainUse]
    dead: dict[str, list[int]]
    pruning: Pruning | None


def _nan_mean(values: Sequence[float]) -> float:
    """The mean of those that are numbers; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _of_layer(uses: Sequence[DomainUse], layer: str) -> np.ndarray:
    """(D, E*), a layer's use on the domains where it ran."""
    use_DE = np.array([use.layers[layer].use_E for use in uses])
    return use_DE[~np.isnan(use_DE).any(axis=1)]


def _weighted_mean(values_T: np.ndarray, weights_T: np.ndarray) -> np.ndarray:
    """The mean along the first dimension over places of a weight above 0; NaN where there are none."""
    counted = weights_T > 0
    if not counted.any():
        return np.full(values_T.shape[1:], np.nan)
    return np.average(values_T[counted], axis=0, weights=weights_T[counted])
