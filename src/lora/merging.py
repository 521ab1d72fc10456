"""Merging: LoRA layers into their base weights, and expert groups into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..core.console import PROGRAM
from ..core.errors import UserError
from .adapter import iter_adapter_layers, list_groups
from .expert_groups import ExpertGroup
from .injection import replace_module
from .lora_layer import LoRALinear


def merge_adapters(model: nn.Module) -> None:
    """Merge every LoRA layer of the model, for inference without a branch; merged layers do not change.

    Raises:
        UserError: the model has mixture-of-experts layers; none is merged.
        ValueError: the model has no adapters.
    """
    for layer in _mergeable(model).values():
        layer.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """Undo :func:`merge_adapters`, bit for bit; it raises the same errors."""
    for layer in _mergeable(model).values():
        layer.unmerge()


@torch.no_grad()
def unload_merged(model: nn.Module) -> None:
    """Merge, and replace LoRA layers by plain Linear layers with the merged weights, for good.

    The state dict then has the base model's own keys, for any program that loads the base model.

    Raises:
        UserError: the model has expert groups or mixture-of-experts layers.
        ValueError: the model has no adapters.
    """
    if groups := list_groups(model):
        raise UserError(
            f"the model has expert groups, {', '.join(groups)}: take one out of its folder ({PROGRAM} groups extract)",
            code="merge.groups",
        )
    merge_adapters(model)
    for name, layer in _mergeable(model).items():
        assert layer.merged_weight is not None
        layer.base_layer.weight.copy_(layer.merged_weight)
        replace_module(model, name, layer.base_layer)


def _mergeable(model: nn.Module) -> dict[str, LoRALinear]:
    adapters = dict(iter_adapter_layers(model))
    if not adapters:
        raise ValueError("the model has no adapters to merge")
    lora = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, LoRALinear)}
    if len(lora) < len(adapters):
        raise UserError(
            "adapters with a router (method mope) cannot be merged, because which experts add to the weight depends "
            "on the input; keep the adapter folder beside the base, or train with method lora",
            code="merge.router",
        )
    return lora


def merge_groups(groups: Sequence[ExpertGroup]) -> ExpertGroup:
    """Return one group with the experts of all, which compete from here on: outputs differ from the groups'.

    Each router learned to compare its own experts only. So the result is a start for further training, not a sum of
    what was learned.

    Raises:
        UserError: there are fewer than two groups; or groups are of method lora, have a null expert (which its router
            compares with its own experts), or differ in more than the number of experts.
    """
    if len(groups) < 2:
        raise UserError("two groups or more are needed to merge", code="merge.one-group")
    first = groups[0]
    for group in groups:
        if group.config.method != "mope" or group.config.router.null_expert:
            raise UserError("only groups of method mope without a null expert can be merged", code="merge.method")
        theirs, ours = group.config.model_dump(), first.config.model_dump()
        differing = [key for key in ours if key != "experts" and theirs[key] != ours[key]]
        if differing or group.weights.keys() != first.weights.keys():
            what = ", ".join(f"lora.{key}" for key in differing or ["target_modules"])
            raise UserError(f"groups that differ in {what} cannot be merged", code="merge.different")
    weights = {name: torch.cat([group.weights[name] for group in groups]) for name in first.weights}
    total = sum(group.config.experts for group in groups)
    return ExpertGroup(first.config.model_copy(update={"experts": total}), weights)
