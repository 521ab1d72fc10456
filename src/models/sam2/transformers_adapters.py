"""Adapters of an adapter folder in Hugging Face ``transformers``' models of SAM 2 and of SAM 3's tracker.

    model = Sam2VideoModel.from_pretrained(exported)             # of sam2-mope export --format transformers
    add_adapter_to_transformers(model, exported + "/adapter")    # LoRA, MoPE, expert groups; the domain gate decides

The layers are this project's own, so :func:`~src.lora.adapter.disable_adapters`,
:func:`~src.lora.expert_groups.set_adapter` and :func:`~src.lora.recording.record_routing` work on such a model too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...config import GATE_MODES, LoraConfig
from ...core.console import PROGRAM
from ...core.errors import UserError
from ...gating.domain_gate import DomainGate
from ...gating.switching import AdapterSwitch, gate_for, install_switch, installed_switch
from ...lora.adapter import AdapterLayer, iter_wrapped_linears, list_groups, set_adapters_enabled
from ...lora.adapter_io import (
    AdapterConfig,
    check_base,
    fingerprint,
    key_mistakes,
    read_adapter,
    split_groups,
)
from ...lora.expert_groups import DEFAULT_ADAPTER, ExpertGroup, attach, set_adapter
from ...lora.injection import freeze_base, new_adapter, remove_adapters, replace_module
from ..spec import ModelSpec
from .gate_hooks import gate_features
from .inference_state import DECISION
from .patches import rebind
from .pixels import FAMILY
from .transformers_format import FINGERPRINT, load_transformers, sam2_state_dict, transformers_name

if TYPE_CHECKING:
    from transformers import Sam2Model, Sam2VideoModel, Sam3TrackerVideoModel, Sam3VideoModel

logger = logging.getLogger(__name__)

_MEMORY = ("memory_attention.", "memory_encoder.", "obj_ptr_")  # the parts of SAM 2 that Sam2Model lacks


@dataclass(frozen=True)
class StockKind:
    """What has to be known of a class of transformers.

    Attributes:
        spec: the model's, with the encoder's prefix in transformers.
        layer_name: a layer's name there, by that of SAM 2's classes.
        base_weights: the base's state dict by the names of SAM 2's classes, from the model's; None where it is a part
            of the base only, without memory.
        has_sessions: whether its forward takes a session of prompted objects, which a domain gate can decide for.
    """

    spec: ModelSpec
    layer_name: Callable[[str], str]
    base_weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None
    has_sessions: bool


def _kind_of(model: nn.Module) -> StockKind:
    transformers = load_transformers()
    sam2 = replace(FAMILY, encoder=("vision_encoder.",))
    if isinstance(model, transformers.Sam2VideoModel):
        return StockKind(sam2, transformers_name, sam2_state_dict, has_sessions=True)
    if isinstance(model, transformers.Sam2Model):
        return StockKind(sam2, transformers_name, None, has_sessions=False)
    if type(model).__name__ in ("Sam3TrackerVideoModel", "Sam3VideoModel"):
        from ..sam3_tracker.transformers_form import stock_kind  # it builds on this folder

        return stock_kind(model)
    raise ValueError(
        f"a Sam2VideoModel, Sam2Model, Sam3TrackerVideoModel or Sam3VideoModel is needed, not a {type(model).__name__}"
    )


def add_adapter_to_transformers(
    model: Sam2VideoModel | Sam2Model | Sam3TrackerVideoModel | Sam3VideoModel, folder: str | Path, gate: str = "auto"
) -> AdapterConfig:
    """Put the adapters of a folder into a transformers model with the base they were trained on, and freeze the base.

    A single expert group is active; of several none is, until the domain gate or
    :func:`~src.lora.expert_groups.set_adapter` chooses one. A Sam2Model has no memory, so adapters
    there are left out, with a log message.

    Args:
        model: with its base weights in float32, without adapters. A Sam2Model holds a part of the base only, so it must
            come from a folder that ``sam2-mope export`` wrote, whose config says which base it is.
        folder: as written by :func:`~src.lora.adapter_io.save_adapter`.
        gate: whether adapters are on: ``auto``, the domain gate in the folder decides for each inference session on the
            frame that is prompted first (without one they are on); ``on``; ``off``; or the name of one of its domains.
            A Sam2Model and a Sam3VideoModel ask no gate: with one in the folder, say ``off`` or the domain's name
            there.

    Returns:
        The content of the folder's JSON file.

    Raises:
        UserError: a file is missing or damaged, the base is another, the model lacks what is adapted, or the gate's
            mode cannot be had; the model is unchanged.
        ValueError: it is another kind of model, or has adapters already.
    """
    kind = _kind_of(model)
    if any(iter_wrapped_linears(model)):
        raise ValueError("the model has adapters already; they are added once")
    file = read_adapter(folder)
    base = _claimed_base(model) if kind.base_weights is None else fingerprint(kind.base_weights(model.state_dict()))
    check_base(folder, file.config, base)
    adapters = {
        name: _new_adapters(model, group, folder, kind) for name, group in split_groups(file, DEFAULT_ADAPTER).items()
    }
    domain_gate = gate_for(folder, base, gate)
    try:
        _inject(model, adapters, grouped=not isinstance(file.config.lora, LoraConfig))
        if domain_gate is not None:
            if kind.has_sessions:
                _install_gate(model, domain_gate, gate, kind.spec)
            else:
                _switch_by_hand(model, domain_gate, gate)
    except UserError:
        remove_adapters(model)
        raise
    freeze_base(model)
    return file.config


def _claimed_base(model: nn.Module) -> str:
    """Return the base's fingerprint as the config has it."""
    claimed = getattr(model.config, FINGERPRINT, None)
    if claimed is None:
        raise UserError(
            "a Sam2Model holds a part of SAM 2 only, so whether the adapters fit its base cannot be measured, and its "
            f"config has no {FINGERPRINT}: load it from a folder that {PROGRAM} export --format transformers wrote",
            "transformers.base-unknown",
        )
    return str(claimed)


def _new_adapters(model: nn.Module, group: ExpertGroup, folder: str | Path, kind: StockKind) -> dict[str, AdapterLayer]:
    """Return trained adapters by transformers' names of their layers, without putting them into the model.

    Raises:
        UserError: the model lacks the layers, or the weights are not those of such adapters.
    """
    config, modules, adapters = group.config, dict(model.named_modules()), {}
    in_memory = [layer for layer in group.layers() if layer.startswith(_MEMORY)] if kind.base_weights is None else []
    if len(in_memory) == len(group.layers()):
        raise UserError(
            f"{folder}: all of these adapters are in SAM 2's memory, which a Sam2Model lacks: it computes what "
            "the base does; take Sam2VideoModel",
            "transformers.only-memory",
        )
    if in_memory:
        logger.info(
            f"{folder}: {len(in_memory)} of {len(group.layers())} adapted layers are in SAM 2's memory, which a\n"
            "Sam2Model lacks; they are left out"
        )
    weights: dict[str, dict[str, Tensor]] = {}
    for (layer, key), tensor in group.weights_by_layer().items():
        weights.setdefault(layer, {})[key] = tensor
    for layer in [layer for layer in group.layers() if layer not in in_memory]:
        name = kind.layer_name(layer)
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise UserError(
                f"{folder}: adapts {layer}, but the model has no Linear layer {name}", "transformers.no-layer"
            )
        adapters[name] = new_adapter(linear, config).train(linear.training)
        expected = adapters[name].adapter_state()
        if mistakes := key_mistakes(expected, weights[layer]):
            raise UserError(f"{folder}: {layer}: {'; '.join(mistakes)}", "transformers.other-weights")
        for key, tensor in expected.items():
            tensor.copy_(weights[layer][key])
    return adapters


def _inject(model: nn.Module, adapters: dict[str, dict[str, AdapterLayer]], grouped: bool) -> None:
    """Put adapters, by group and layer, into their places."""
    if not grouped:
        for layer, adapter in adapters[DEFAULT_ADAPTER].items():
            replace_module(model, layer, adapter)
        return
    for group, of_layers in adapters.items():
        attach(model, group, of_layers)
    set_adapter(model, next(iter(adapters)) if len(adapters) == 1 else None)


def _switch_by_hand(model: nn.Module, gate: DomainGate, mode: str) -> None:
    """Switch adapters off, or a domain's on, as the mode says; the domain gate is not asked."""
    if mode == "auto" or (mode == "on" and len(gate.domains) > 1):
        raise UserError(
            f"gate '{mode}': a {type(model).__name__} asks no domain gate; say off, or which domain its images are of: "
            f"{', '.join(gate.domains)}",
            "transformers.gate-mode",
        )
    if mode not in GATE_MODES:
        gate.check_name(mode)
    if mode == "off":
        set_adapters_enabled(model, False)
    elif list_groups(model):
        set_adapter(model, next(iter(gate.domains)) if mode == "on" else mode)


def _install_gate(model: nn.Module, gate: DomainGate, mode: str, spec: ModelSpec) -> None:
    """Let the domain gate decide for every inference session."""

    def features(model: Sam2VideoModel, pixels_B3SS: Tensor) -> Tensor:
        return gate_features(model, pixels_B3SS, functools.partial(_feature_maps, model), spec)

    install_switch(model, AdapterSwitch(model, gate, mode, spec, features))
    rebind(model, ("forward",), _run_gated)


def _feature_maps(model: Sam2VideoModel, images_B3SS: Tensor) -> list[Tensor]:
    """Return the encoder's three feature maps, each (B, C, h, w)."""
    sizes = model.backbone_feature_sizes
    maps_NBC = model.get_image_features(images_B3SS).fpn_hidden_states
    return [x.permute(1, 2, 0).unflatten(2, tuple(size)) for x, size in zip(maps_NBC, sizes, strict=True)]


def _run_gated(
    model: Sam2VideoModel,
    name: str,
    inference_session: Any,
    frame_idx: int | None = None,
    frame: Tensor | None = None,
    **options: Any,
) -> Any:
    """``Sam2VideoModel.forward``, through which all of a session goes, with the adapters that the decision turns on."""
    switch = installed_switch(model)
    assert switch is not None
    if not hasattr(inference_session, DECISION) and inference_session.get_obj_num():
        image = inference_session.get_frame(frame_idx) if frame is None else frame
        image_13SS = image.reshape(1, *image.shape[-3:]).to(inference_session.inference_device)
        setattr(inference_session, DECISION, switch.decide(model, image_13SS)[0])
    decided = getattr(inference_session, DECISION, None)  # a session without objects has none
    with switch.active(None if decided is None else decided.domain):
        return getattr(type(model), name)(model, inference_session, frame_idx, frame, **options)
