"""A domain gate at work in a model: its decisions, and the adapters that they switch.

``install_gate(model, gate, mode)`` installs a domain gate on a model, and every predictor made of the model then
decides by itself: once for a video or stream, on the frame that is prompted first, and once for each image.

Modes: ``auto`` lets the domain gate decide; ``off`` is the base model; ``on`` the nearest domain, however far; a
domain's name that domain. Where no domain is chosen, adapters are off around every computation and the masks are the
base model's, bit for bit. Adapters that somebody else has switched off stay off.

Deciding takes one pass of the image encoder, without adapters, on one frame with its exposure evened out. It is not the
pass that tracking uses, since the domain gate is to see a frame the same way in any light. An image predictor whose
adapters are all in the model's memory, which still images do not pass through, never asks the domain gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..config import GATE_MODES
from ..core.errors import UserError
from ..lora.adapter import MultiAdapterLinear, iter_adapter_layers, iter_wrapped_linears, list_groups
from ..lora.adapter_io import base_fingerprint
from ..models.spec import ModelSpec, spec_of
from .domain_gate import GATE_FILE, Decision, DomainGate
from .features import pixel_scale

Features: TypeAlias = Callable[[Any, Tensor], Tensor]
"""A model, and images (B, 3, S, S), RGB in 0–1 → what the domain gate knows of them, (B, D)."""

_INSTALLED = "domain_gate"  # the attribute of a model


class AdapterSwitch:
    """A domain gate at work in a model, made by :func:`install_gate`.

    Args:
        model: with adapters in it.
        gate: fitted on the model's base.
        mode: ``auto``, ``on``, ``off`` or a domain's name.
        spec: names the model's parts, and the scale of its pixels.
        features: computes what the domain gate knows of images.

    Attributes:
        gate: what decides.
        mode: ``auto``, ``on``, ``off`` or a domain's name.
        in_encoder: whether the image encoder has adapters, so that its features depend on the decision.
        in_images: whether still images pass through any adapter.

    Raises:
        UserError: there is no such mode, or a domain without an expert group of its name.
    """

    def __init__(self, model: nn.Module, gate: DomainGate, mode: str, spec: ModelSpec, features: Features) -> None:
        if mode not in GATE_MODES:
            gate.check_name(mode)
        self.gate, self.mode, self._spec, self._features = gate, mode, spec, features
        groups = list_groups(model)
        if groups and (strangers := [domain for domain in gate.domains if domain not in groups]):
            raise UserError(
                f"the domain gate knows {', '.join(strangers)}, but the expert groups are {', '.join(groups)}; "
                "a group must be called after its domain",
                "gate.other-groups",
            )
        self._grouped = [layer for _, layer in iter_wrapped_linears(model) if isinstance(layer, MultiAdapterLinear)]
        adapters = dict(iter_adapter_layers(model))
        self.in_encoder = any(name.startswith(spec.encoder) for name in adapters)
        self.in_images = any(not name.startswith(spec.memory) for name in adapters)
        # a model's modules are many, and a scope is entered several times a frame
        self._adapters = list(adapters.values())

    def decide(self, model: nn.Module, images_B3SS: Tensor) -> list[Decision]:
        """Return one decision an image; the images are normalised, as the model's own encoder takes them."""
        if self.mode == "off":
            return [Decision(None, {})] * len(images_B3SS)
        if self.mode in self.gate.domains:
            return [Decision(self.mode, {})] * len(images_B3SS)
        mean, std = pixel_scale(self._spec.pixel_mean, self._spec.pixel_std, images_B3SS.device)
        features_BD = self._features(model, images_B3SS.float() * std + mean)
        return [self.gate.decide(f) if self.mode == "auto" else self.gate.decide_nearest(f) for f in features_BD]

    @contextmanager
    def active(self, domain: str | None) -> Iterator[None]:
        """Compute with this domain's adapters, its expert group where there are groups, or with none of them."""
        groups = [layer.active_adapter for layer in self._grouped]
        switches = [adapter.enabled for adapter in self._adapters]
        for layer in self._grouped:
            layer.active_adapter = domain
        if domain is None:
            for adapter in self._adapters:
                adapter.enabled = False
        try:
            yield
        finally:
            for layer, active in zip(self._grouped, groups, strict=True):
                layer.active_adapter = active
            for adapter, enabled in zip(self._adapters, switches, strict=True):
                adapter.enabled = enabled


def install_gate(model: nn.Module, gate: DomainGate, mode: str = "auto") -> None:
    """Let a domain gate decide for all predictors made of a model, and for the model if it is one.

    Adapters are in place already. The model keeps its class, weights and state dict; the switch is its ``domain_gate``
    attribute. Installing again replaces the domain gate.

    Args:
        model: of a kind that is registered (:func:`~src.models.spec.spec_of`).
        gate: fitted on this model's base.
        mode: ``auto``, ``on``, ``off`` or the name of one of the domains.

    Raises:
        UserError: the mode is none of these, or domains and expert groups do not fit each other.
    """
    spec = spec_of(model)
    room = spec.load()
    install_switch(model, AdapterSwitch(model, gate, mode, spec, room.gate_features))
    room.attach_gate(model)


def install_switch(model: nn.Module, switch: AdapterSwitch) -> None:
    """Keep a switch at its model, for :func:`installed_switch`."""
    setattr(model, _INSTALLED, switch)


def installed_switch(model: nn.Module) -> AdapterSwitch | None:
    """Return the switch of the domain gate that is installed on a model, None without one."""
    return cast("AdapterSwitch | None", getattr(model, _INSTALLED, None))


def remove_gate(model: nn.Module) -> None:
    """Undo :func:`install_gate`; without a domain gate nothing happens."""
    vars(model).pop(_INSTALLED, None)
    spec_of(model).load().detach_gate(model)


@contextmanager
def gated(model: nn.Module, gate: DomainGate, mode: str = "auto") -> Iterator[None]:
    """Install a domain gate for a while; the one before, if any, comes back afterwards."""
    before = installed_switch(model)
    install_gate(model, gate, mode)
    try:
        yield
    finally:
        remove_gate(model)
        if before is not None:
            install_switch(model, before)
            spec_of(model).load().attach_gate(model)


@torch.no_grad()
def decide_for_frame(model: nn.Module, gate: DomainGate, frame: np.ndarray[Any, Any]) -> Decision:
    """Return a domain gate's decision on a frame, RGB uint8 (H, W, 3); the model is in eval mode."""
    room, device = spec_of(model).load(), next(model.parameters()).device
    return gate.decide(room.gate_features(model, room.to_pixels(model, frame)[None].to(device))[0])


def install_saved_gate(model: nn.Module, adapter: str | Path | None, mode: str = "auto") -> None:
    """Install the domain gate that is stored in an adapter folder.

    Without one, or without an adapter folder, ``auto`` and ``on`` leave the adapters on, and ``off`` puts them off.

    Raises:
        UserError: the domain gate is damaged or another base's, or the mode names a domain that no gate knows.
    """
    if (gate := gate_for(adapter, base_fingerprint(model), mode)) is not None:
        install_gate(model, gate, mode)


def gate_for(adapter: str | Path | None, fingerprint: str, mode: str) -> DomainGate | None:
    """Return the domain gate of what was trained; without one, for mode ``off`` one that knows nothing, else None.

    Args:
        adapter: the folder, if there is one; a run's checkpoint has no gate in it.
        fingerprint: of the base that the domain gate is to judge for.
        mode: ``auto``, ``on``, ``off`` or a domain's name.

    Raises:
        UserError: as :func:`install_saved_gate`.
    """
    gate = None if adapter is None else DomainGate.beside(adapter, fingerprint)
    if gate is not None:
        return gate
    if mode not in GATE_MODES:
        raise UserError(
            f"gate '{mode}': {adapter or 'the model'} has no {GATE_FILE}, so there are no domains to choose",
            "gate.none-here",
        )
    return DomainGate(fingerprint) if mode == "off" else None
