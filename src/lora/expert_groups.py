"""Expert groups: named sets of adapters in one model, one for each domain it learned, of which one is active.

A group has an adapter for each layer that its config's target_modules select, of method mope (experts and their
router) or lora. Routing has two steps: a group is set active (:func:`set_adapter`), then its router selects among its
own experts. So a group's output depends on no other group. Learning, adding or deleting others does not change it by
one bit. With no group active the model is the base, at the base's speed.

    add_adapter(model, "cells", config)        # active, and all that trains
    ...                                        # train
    add_adapter(model, "endoscopy", other)     # "cells" is frozen from here on
    ...
    with use_adapter(model, "cells"): ...      # or set_adapter(model, None): the base
    save_adapter(model, folder, {"cells": config, "endoscopy": other}, extra)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import LoraConfig
from ..core.errors import UserError
from .adapter import ActiveAdapter, AdapterLayer, MultiAdapterLinear, iter_wrapped_linears, list_groups
from .injection import new_adapters, replace_module

DEFAULT_ADAPTER = "default"  # the name of adapters in no group, where they need one


def add_adapter(model: nn.Module, name: str, config: LoraConfig) -> dict[str, AdapterLayer]:
    """Add a group of untrained adapters, which becomes active and the only one that trains.

    Other groups do not change. The model computes what the base computes until the group is trained.

    Args:
        model: without adapters or with groups; adapters in no group become one by :func:`adopt_unnamed`.
        name: letters, digits, ``-`` and ``_``.
        config: of method mope or lora; groups may differ in all of it, target_modules included.

    Returns:
        The group's adapters by the dotted names of their layers.

    Raises:
        UserError: the name is taken or not allowed, or the config does not fit the model, which is unchanged.
        ValueError: the model has adapters in no group, or the config's method has none.
    """
    _check_new_name(model, name)
    adapters = new_adapters(model, config)
    attach(model, name, adapters)
    set_adapter(model, name)
    freeze_groups_except(model, name)
    return adapters


def adopt_unnamed(model: nn.Module, name: str) -> None:
    """Make the adapters of a model without groups its first group, which is active.

    Raises:
        UserError: the name cannot be a group's.
        ValueError: the model has no adapters, or groups already.
    """
    adapters = {layer: wrapped for layer, wrapped in iter_wrapped_linears(model) if isinstance(wrapped, AdapterLayer)}
    if not adapters or list_groups(model):
        raise ValueError("the model has no adapters, or they are in groups already")
    check_name(name)
    for layer, adapter in adapters.items():
        replace_module(model, layer, adapter.base_layer)
    attach(model, name, adapters)
    set_adapter(model, name)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Delete a group; where it was active the base is. Layers in no other group become plain again.

    Raises:
        UserError: there is no such group.
    """
    check_known(model, [name])
    for layer, multi in list(_multi_adapter_layers(model)):
        if name in multi.groups:
            del multi.groups[name]
        if not multi.groups:
            replace_module(model, layer, multi.base_layer)
    active = active_adapter(model)
    if isinstance(active, tuple):
        set_adapter(model, [None if group == name else group for group in active])
    elif active == name:
        set_adapter(model, None)


def set_adapter(model: nn.Module, name: str | Sequence[str | None] | None) -> None:
    """Set the active group.

    Args:
        model: with groups.
        name: a group's name; None for the base alone; or one of these for each element of the batch as the adapted
            layers see it, such as each object. Then every adapted layer that runs must get a batch of that size.

    Raises:
        UserError: there is no such group; the active group is as before.
    """
    active: ActiveAdapter = name if isinstance(name, str | None) else tuple(name)
    names = active if isinstance(active, tuple) else (active,)
    check_known(model, [each for each in names if each is not None])
    for _, layer in _multi_adapter_layers(model):
        layer.active_adapter = active


@contextmanager
def use_adapter(model: nn.Module, name: str | Sequence[str | None] | None) -> Iterator[None]:
    """:func:`set_adapter` inside the scope; as before on leaving it, also after an error."""
    before = active_adapter(model)
    set_adapter(model, name)
    try:
        yield
    finally:
        set_adapter(model, before)


def active_adapter(model: nn.Module) -> ActiveAdapter:
    """Return what :func:`set_adapter` was last given; None for a model without groups."""
    return next((layer.active_adapter for _, layer in _multi_adapter_layers(model)), None)


def freeze_groups_except(model: nn.Module, name: str) -> None:
    """Let the parameters of this group train and no others.

    Raises:
        UserError: there is no such group.
    """
    check_known(model, [name])
    model.requires_grad_(False)
    for adapter in group_adapters(model, name).values():
        for parameter in adapter.adapter_parameters():
            parameter.requires_grad_(True)


def group_adapters(model: nn.Module, name: str) -> dict[str, AdapterLayer]:
    """Return a group's adapters by the dotted names of their layers; none if there is no such group."""
    return {layer: multi.adapters[name] for layer, multi in _multi_adapter_layers(model) if name in multi.groups}


@dataclass(frozen=True)
class ExpertGroup:
    """A group outside a model.

    Attributes:
        config: the configuration of its adapters.
        weights: by the layer's dotted name and the name inside its adapter, such as ``….q_proj.lora_A``.
    """

    config: LoraConfig
    weights: dict[str, Tensor]

    def layers(self) -> list[str]:
        """Return the dotted names of the adapted layers."""
        own = ".lora_A" if self.config.method == "mope" else ".adapter.lora_A"
        return [name.removesuffix(own) for name in self.weights if name.endswith(own)]

    def weights_by_layer(self) -> dict[tuple[str, str], Tensor]:
        """Return the weights by layer and by the name inside the layer's adapter."""
        return {
            (layer, name.removeprefix(f"{layer}.")): tensor
            for layer in self.layers()
            for name, tensor in self.weights.items()
            if name.startswith(f"{layer}.")
        }


def check_name(name: str) -> None:
    """Raise UserError unless the text can name a group: letters, digits, ``-`` and ``_``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(
            f"'{name}' cannot name an expert group: use letters, digits, '-' and '_'", code="groups.invalid-name"
        )
    if hasattr(nn.ModuleDict(), name):
        raise UserError(
            f"'{name}' cannot name an expert group: torch uses it itself; choose another name",
            code="groups.invalid-name",
        )


def check_known(model: nn.Module, names: Sequence[str]) -> None:
    """Raise UserError where the model lacks a group of one of these names."""
    groups = list_groups(model)
    for name in names:
        if name not in groups:
            raise UserError(
                f"no expert group '{name}'; the model has {', '.join(groups) or 'none'}", code="groups.unknown"
            )


def attach(model: nn.Module, name: str, adapters: Mapping[str, AdapterLayer]) -> None:
    """Put adapters, by layer, into a model as a group; newly wrapped layers have no active group."""
    wrapped = dict(_multi_adapter_layers(model))
    for layer, adapter in adapters.items():
        if layer not in wrapped:
            wrapped[layer] = MultiAdapterLinear(adapter.base_layer).train(adapter.training)
            replace_module(model, layer, wrapped[layer])
        wrapped[layer].groups[name] = adapter


def _multi_adapter_layers(model: nn.Module) -> Iterator[tuple[str, MultiAdapterLinear]]:
    for layer, wrapped in iter_wrapped_linears(model):
        if isinstance(wrapped, MultiAdapterLinear):
            yield layer, wrapped


def _check_new_name(model: nn.Module, name: str) -> None:
    check_name(name)
    groups = list_groups(model)
    if name in groups:
        raise UserError(
            f"the model has a group '{name}' already; its groups are {', '.join(groups)}", code="groups.name-taken"
        )
    if not groups and any(iter_wrapped_linears(model)):
        raise ValueError("the model has adapters in no group: make them one with adopt_unnamed")
