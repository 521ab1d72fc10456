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
    """Merge every LoRA layer of the model, for inference without a branch; merged layers stay as they are.

    Raises:
        UserError: the model has mixture-of-experts layers; none is merged.
        ValueError: the model has no adapters.
    """
    for layer in _mergeable(model).values():
        layer.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """Undo :func:`merge_adapters`, bit for bit; raises what it raises."""
    for layer in _mergeable(model).values():
        layer.unmerge()


@torch.no_grad()
def unload_merged(model: nn.Module) -> None:
    """Merge, and put plain Linear layers with the merged weights in place of the LoRA layers; there is no way back.

    The state dict then has the base model's own keys, for any program that loads the base model. Raises what
    :func:`merge_adapters` raises.
    """
    if groups := list_groups(model):
        raise UserError(
            f"the model has expert groups, {', '.join(groups)}: take one out of its folder ({PROGRAM} groups extract)"
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
            "adapters with a gate (method mope) cannot be merged, because which experts add to the weight depends "
            "on the input; keep the adapter folder beside the base, or train with method lora"
        )
    return lora


def merge_groups(groups: Sequence[ExpertGroup]) -> ExpertGroup:
    """One group of all experts, gate rows joined. The experts compete from here on: outputs are not those of before.

    Each gate learned to compare its own experts only, so the result is a start for further training, not a sum of
    what was learned.

    Raises:
        UserError: fewer than two groups, groups of method lora, with null experts (each is measured against its own
            gate's experts), or that differ in more than the number of experts.
    """
    if len(groups) < 2:
        raise UserError("two groups or more are needed to merge")
    first = groups[0]
    for group in groups:
        if group.config.method != "mope" or group.config.router.null_expert:
            raise UserError("only groups of method mope without a null expert can be merged")
        theirs, ours = group.config.model_dump(), first.config.model_dump()
        differing = [key for key in ours if key != "experts" and theirs[key] != ours[key]]
        if differing or group.weights.keys() != first.weights.keys():
            what = ", ".join(f"lora.{key}" for key in differing or ["target_modules"])
            raise UserError(f"groups that differ in {what} cannot be merged")
    weights = {name: torch.cat([group.weights[name] for group in groups]) for name in first.weights}
    total = sum(group.config.experts for group in groups)
    return ExpertGroup(first.config.model_copy(update={"experts": total}), weights)
