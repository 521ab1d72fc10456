"""Pruning experts of a group: the most used are kept, or those that add most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..config import LoraConfig
from ..core.errors import UserError
from .expert_groups import ExpertGroup, active_adapter, attach, check_known, group_adapters, set_adapter
from .injection import new_adapters


def prune_experts(
    model: nn.Module, name: str, config: LoraConfig, keep: int, scores: dict[str, Tensor] | None = None
) -> LoraConfig:
    """Keep some of a group's experts in each layer (:func:`pruned`) and return the group's new config.

    Raises:
        UserError: there is no such group, it has no experts, or ``keep`` is out of range; the model is unchanged.
    """
    check_known(model, [name])
    before, active = group_adapters(model, name), active_adapter(model)
    weights = {f"{layer}.{key}": t for layer, adapter in before.items() for key, t in adapter.adapter_state().items()}
    group = pruned(ExpertGroup(config, weights), keep, scores)
    adapters = new_adapters(model, group.config)
    for layer, adapter in adapters.items():
        for key, tensor in adapter.adapter_state().items():
            tensor.copy_(group.weights[f"{layer}.{key}"])
        for parameter in adapter.adapter_parameters():
            parameter.requires_grad_(next(before[layer].adapter_parameters()).requires_grad)
    attach(model, name, adapters)
    set_adapter(model, active)
    return group.config


@contextmanager
def experts_pruned(
    model: nn.Module, name: str, config: LoraConfig, keep: int, scores: dict[str, Tensor] | None = None
) -> Iterator[None]:
    """:func:`prune_experts` inside the scope; all experts are back on leaving it, also after an error.

    Raises:
        UserError: as :func:`prune_experts`.
    """
    before = group_adapters(model, name)
    prune_experts(model, name, config, keep, scores)
    try:
        yield
    finally:
        active = active_adapter(model)
        attach(model, name, before)
        set_adapter(model, active)


def pruned(group: ExpertGroup, keep: int, scores: dict[str, Tensor] | None = None) -> ExpertGroup:
    """Return a group with the experts of the highest scores in each layer, in their order; null experts stay.

    Args:
        group: of method mope.
        keep: experts kept per layer; ``top_k`` is lowered where fewer choices are left.
        scores: by layer, (E,) or (E + 1,) with the null expert last, such as
            :meth:`~src.lora.recording.RoutingRecord.utilization`; None: :func:`expert_sizes`.

    Raises:
        UserError: the group has no experts, scores are missing or for another number of experts, or ``keep`` is not
            within 1 and E.
    """
    config, experts = group.config, group.config.experts
    if config.method != "mope":
        raise UserError(
            f"only groups of method mope have experts to prune, this one is of method {config.method}",
            code="prune.no-experts",
        )
    if not 1 <= keep <= experts:
        raise UserError(f"keep must be within 1 and {experts}, the experts of the group, not {keep}", code="prune.keep")
    scores = expert_sizes(group) if scores is None else scores
    if missing := [layer for layer in group.layers() if layer not in scores]:
        raise UserError(f"no scores for {', '.join(missing[:3])}", code="prune.scores")
    choices = experts + config.router.null_expert
    for layer in group.layers():
        if len(scores[layer]) not in (experts, choices):
            raise UserError(
                f"{layer}: scores of {len(scores[layer])} experts, but the group has {experts}", code="prune.scores"
            )
    kept = {layer: best_experts(scores[layer][:experts], keep) for layer in group.layers()}
    weights = {}
    for (layer, name), tensor in group.weights_by_layer().items():
        null_rows = torch.arange(experts, len(tensor))
        weights[f"{layer}.{name}"] = tensor[torch.cat([kept[layer], null_rows]).to(tensor.device)]
    top_k = min(config.top_k, keep + config.router.null_expert)
    return ExpertGroup(config.model_copy(update={"experts": keep, "top_k": top_k}), weights)


def best_experts(scores_E: Tensor, keep: int) -> Tensor:
    """Return the indices (keep,) of the highest scores, in ascending order, on the CPU."""
    return scores_E.topk(keep).indices.sort().values.cpu()


def expert_sizes(group: ExpertGroup) -> dict[str, Tensor]:
    """Return the Frobenius norm of each expert's product B A, per layer (E,): how much it can add."""
    sizes = {}
    for layer in group.layers():
        A_ERD, B_EOR = group.weights[f"{layer}.lora_A"].double(), group.weights[f"{layer}.lora_B"].double()
        # ‖BA‖² = Σ (BᵀB) ∘ (AAᵀ), without making the (O, D) product.
        squares_E = ((B_EOR.mT @ B_EOR) * (A_ERD @ A_ERD.mT)).sum(dim=(1, 2))
        sizes[layer] = squares_E.clamp(min=0).sqrt()
    return sizes


def experts_used(utilization: dict[str, Tensor], share: float) -> int:
    """Return how many experts to keep per layer, so that all with at least this share of selections stay; 1 or more.

    Args:
        utilization: :meth:`~src.lora.recording.RoutingRecord.utilization` without null experts, per layer (E,).
        share: between 0 and 1.
    """
    return max([1, *(int((share_E >= share).sum()) for share_E in utilization.values())])
