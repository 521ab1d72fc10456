"""Expert groups: a model learns one domain after another, each with adapters of its own, and one of them is in use.

A group is a named set of adapters, one for each layer that its config's target_modules select, of method mope (experts
and their gate) or lora. Routing has two steps: first a group is made active (:func:`set_adapter`), then its gate chooses
among its own experts. So a group's output depends on no other group: learning, adding or removing others leaves it as
it was, bit for bit. With no group active the model is the base, at the base's speed.

    add_group(model, "cells", config)          # the only part that trains, and active
    ...                                        # train
    add_group(model, "endoscopy", other)       # "cells" is frozen from here on
    ...
    with activated(model, "cells"): ...        # or activate(model, None): the base
    save_adapter(model, folder, {"cells": config, "endoscopy": other}, extra)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import LoraConfig
from ..core.errors import UserError
from .adapter import ActiveAdapter, AdapterLayer, MultiAdapterLinear, iter_wrapped_linears, list_groups
from .injection import new_adapters, replace_module

DEFAULT_ADAPTER = "default"  # what adapters without a group are called where they need a name


def add_adapter(model: nn.Module, name: str, config: LoraConfig) -> dict[str, AdapterLayer]:
    """Add a group of untrained adapters, which becomes active and all that trains; other groups stay as they are.

    The model computes what the base computes until the group is trained.

    Args:
        model: without adapters, or with groups; adapters without a name get one by :func:`adopt_unnamed` first.
        name: letters, digits, ``-`` and ``_``.
        config: of method mope or lora; groups may differ in everything, target_modules included.

    Returns:
        The group's adapters by the dotted names of the layers that they adapt.

    Raises:
        UserError: the name is taken or not a name, or the config does not fit the model; the model is unchanged.
        ValueError: the model has adapters without a name, or the config's method has none.
    """
    _check_new_name(model, name)
    adapters = new_adapters(model, config)
    attach(model, name, adapters)
    set_adapter(model, name)
    freeze_groups_except(model, name)
    return adapters


def adopt_unnamed(model: nn.Module, name: str) -> None:
    """Make the adapters of a model without groups its first group, which is active; nothing else changes.

    Raises:
        UserError: ``name`` is not a name.
        ValueError: the model has no adapters, or groups already.
    """
    adapters = {layer: adapted for layer, adapted in iter_wrapped_linears(model) if isinstance(adapted, AdapterLayer)}
    if not adapters or list_groups(model):
        raise ValueError("only adapters without groups can be named")
    check_name(name)
    for layer, adapter in adapters.items():
        replace_module(model, layer, adapter.base_layer)
    attach(model, name, adapters)
    set_adapter(model, name)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Take a group out of the model; where it was active the base is. Layers without another group are plain again.

    Raises:
        UserError: there is no such group.
    """
    check_known(model, [name])
    for layer, grouped in list(_grouped(model)):
        if name in grouped.groups:
            del grouped.groups[name]
        if not grouped.groups:
            replace_module(model, layer, grouped.base_layer)
    active = active_adapter(model)
    if isinstance(active, tuple):
        set_adapter(model, [None if group == name else group for group in active])
    elif active == name:
        set_adapter(model, None)


def set_adapter(model: nn.Module, active: str | Sequence[str | None] | None) -> None:
    """Choose the group to use.

    Args:
        model: with groups.
        active: a group's name; None for the base alone; or one of these for each element of the batch, as memory
            attention and mask decoder see it: for each object. Then every adapted layer that is called must be given a
            batch of that size.

    Raises:
        UserError: there is no such group; the choice is as before.
    """
    chosen: ActiveAdapter = active if isinstance(active, str | None) else tuple(active)
    check_known(model, [group for group in (chosen if isinstance(chosen, tuple) else [chosen]) if group is not None])
    for _, grouped in _grouped(model):
        grouped.active_adapter = chosen


@contextmanager
def use_adapter(model: nn.Module, active: str | Sequence[str | None] | None) -> Iterator[None]:
    """:func:`set_adapter` inside the scope; as before on leaving it, whatever happens inside."""
    before = active_adapter(model)
    set_adapter(model, active)
    try:
        yield
    finally:
        set_adapter(model, before)


def active_adapter(model: nn.Module) -> ActiveAdapter:
    """What :func:`set_adapter` was last given; None for a model without groups."""
    return next((grouped.active_adapter for _, grouped in _grouped(model)), None)


def freeze_groups_except(model: nn.Module, name: str) -> None:
    """Train the parameters of this group and nothing else.

    Raises:
        UserError: there is no such group.
    """
    check_known(model, [name])
    model.requires_grad_(False)
    for adapter in group_adapters(model, name).values():
        for parameter in adapter.adapter_parameters():
            parameter.requires_grad_(True)


def group_adapters(model: nn.Module, name: str) -> dict[str, AdapterLayer]:
    """A group's adapters by the dotted names of the layers that they adapt; empty if there is no such group."""
    return {layer: grouped.adapters[name] for layer, grouped in _grouped(model) if name in grouped.groups}


@dataclass(frozen=True)
class ExpertGroup:
    """A group outside a model.

    Attributes:
        config: what its adapters are.
        weights: by the adapted layer's dotted name and the adapter's own, such as ``….q_proj.lora_A``.
    """

    config: LoraConfig
    weights: dict[str, Tensor]

    def layers(self) -> list[str]:
        """The dotted names of the adapted layers."""
        own = ".lora_A" if self.config.method == "mope" else ".adapter.lora_A"
        return [name.removesuffix(own) for name in self.weights if name.endswith(own)]

    def weights_by_layer(self) -> dict[tuple[str, str], Tensor]:
        """The weights by layer and by the name inside the layer's adapter."""
        return {
            (layer, name.removeprefix(f"{layer}.")): tensor
            for layer in self.layers()
            for name, tensor in self.weights.items()
            if name.startswith(f"{layer}.")
        }


def check_name(name: str) -> None:
    """Raise UserError unless the text can name a group: letters, digits, ``-`` and ``_``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"'{name}' cannot name an expert group: use letters, digits, '-' and '_'")
    if hasattr(nn.ModuleDict(), name):
        raise UserError(f"'{name}' cannot name an expert group: torch uses it itself; choose another name")


def _grouped(model: nn.Module) -> Iterator[tuple[str, MultiAdapterLinear]]:
    for layer, adapted in iter_wrapped_linears(model):
        if isinstance(adapted, MultiAdapterLinear):
            yield layer, adapted


def attach(model: nn.Module, name: str, adapters: dict[str, AdapterLayer]) -> None:
    """Put adapters, by layer, into a model under a group's name; no group is active on layers that had none."""
    grouped = dict(_grouped(model))
    for layer, adapter in adapters.items():
        if layer not in grouped:
            grouped[layer] = MultiAdapterLinear(adapter.base_layer).train(adapter.training)
            replace_module(model, layer, grouped[layer])
        grouped[layer].groups[name] = adapter


def _check_new_name(model: nn.Module, name: str) -> None:
    check_name(name)
    groups = list_groups(model)
    if name in groups:
        raise UserError(f"the model has a group '{name}' already; its groups are {', '.join(groups)}")
    if not groups and any(iter_wrapped_linears(model)):
        raise ValueError("the model has adapters without a name: give them one with name_adapters")


def check_known(model: nn.Module, names: list[str]) -> None:
    groups = list_groups(model)
    for name in names:
        if name not in groups:
            raise UserError(f"no expert group '{name}'; the model has {', '.join(groups) or 'none'}")
