"""Putting adapters into a model: find the layers, wrap them, choose what trains, count, and describe."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeGuard

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..config import ADAPTER_METHODS, LoraConfig
from ..core.errors import UserError
from .adapter import AdapterLayer, iter_adapter_layers, iter_wrapped_linears, list_groups
from .lora_layer import LoRALinear
from .moe_layer import MoELoRALinear


def find_targets(model: nn.Module, target_modules: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the Linear layers that ``target_modules`` selects, by dotted name, in the model's order.

    An entry is ``all``, a dotted suffix (``q_proj``, ``self_attn.q_proj``), or a glob over the full dotted name or a
    dotted suffix of it (``memory_attention.*.q_proj``), in which ``*`` may span dots. Only Linear layers are selected.
    A wrapped layer counts as its base layer, and what is inside an adapter is never selected. An entry that begins with
    ``!`` takes back what it matches of those before it.

    Raises:
        UserError: entries match nothing, or only layers that are not Linear; all of them are listed, with near names.
    """
    candidates = _candidates(model)
    linears = {name: module for name, module in candidates.items() if _is_adaptable(module)}
    selected: set[str] = set()
    mistakes = []
    for entry in target_modules:
        wanted = entry.removeprefix("!")
        matched = [name for name in candidates if _matches(name, wanted)]
        hits = {name for name in matched if name in linears}
        selected = selected - hits if entry.startswith("!") else selected | hits
        if not hits:
            others = sorted({type(candidates[name]).__name__ for name in matched})
            what = f"matches no Linear layer, only {', '.join(others)}" if others else "matches no layer"
            mistakes.append(f"  '{entry}' {what}; {_near_names(wanted, list(linears))}")
    if mistakes:
        raise UserError("lora.target_modules: nothing to adapt for\n" + "\n".join(mistakes), code="targets.no-match")
    return {name: linear for name, linear in linears.items() if name in selected}


def new_adapters(model: nn.Module, config: LoraConfig) -> dict[str, AdapterLayer]:
    """Return adapters around the config's target layers, by dotted name, without putting them into the model.

    Adapter parameters are float32, on the device of the layer they wrap; base weights keep their dtype and device.

    Raises:
        UserError: target_modules does not fit the model (:func:`find_targets`); the model is unchanged.
    """
    targets = find_targets(model, config.target_modules)
    return {name: new_adapter(linear, config).train(linear.training) for name, linear in targets.items()}


def new_adapter(base_layer: nn.Linear, config: LoraConfig) -> AdapterLayer:
    """Return the adapter layer that the config asks for (method ``lora`` or ``mope``), around ``base_layer``."""
    if config.method == "lora":
        return LoRALinear(base_layer, config.rank, config.alpha, config.dropout)
    if config.method == "mope":
        return MoELoRALinear(
            base_layer,
            num_experts=config.experts,
            rank=config.rank,
            top_k=config.top_k,
            alpha=config.alpha,
            dropout=config.dropout,
            null_expert=config.router.null_expert,
        )
    raise ValueError(f"method '{config.method}' has no adapters")


def inject_adapters(model: nn.Module, config: LoraConfig) -> dict[str, AdapterLayer]:
    """Wrap the target layers in place and return the adapters by dotted name; other methods change nothing.

    Raises:
        UserError: the config does not fit the model (:func:`new_adapters`); the model is unchanged.
        ValueError: the model has adapters already.
    """
    if config.method not in ADAPTER_METHODS:
        return {}
    if any(iter_wrapped_linears(model)):
        raise ValueError("the model has adapters already; adapters are injected once")
    adapters = new_adapters(model, config)
    for name, adapter in adapters.items():
        replace_module(model, name, adapter)
    return adapters


def remove_adapters(model: nn.Module) -> None:
    """Put every base layer back in place of its adapters."""
    for name, wrapped in list(iter_wrapped_linears(model)):
        replace_module(model, name, wrapped.base_layer)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the submodule at a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def freeze_base(model: nn.Module) -> None:
    """Train the adapters' parameters and nothing else."""
    model.requires_grad_(False)
    for _, adapter in iter_adapter_layers(model):
        for parameter in adapter.adapter_parameters():
            parameter.requires_grad_(True)


def apply_method(model: nn.Module, config: LoraConfig, decoder: Sequence[str] = ()) -> dict[str, AdapterLayer]:
    """Make the model ready to train by ``config.method``, in place, and return its adapters by dotted name.

    ``mope`` and ``lora`` inject adapters and freeze the rest; ``full`` trains every parameter, ``decoder`` those of the
    decoder, ``none`` no parameter.

    Args:
        model: without adapters.
        config: method, adapters and target layers.
        decoder: prefixes of the decoder's parameter names (:attr:`~src.models.spec.ModelSpec.decoder`).

    Raises:
        UserError: the config does not fit the model; the model is unchanged.
        ValueError: the model has adapters already, or the decoder to train has no parameters.
    """
    adapters = inject_adapters(model, config)
    freeze_base(model)
    if config.method == "full":
        model.requires_grad_(True)
    elif config.method == "decoder":
        found = [parameter for name, parameter in model.named_parameters() if name.startswith(tuple(decoder))]
        if not found:
            raise ValueError(
                f"method decoder: the model has no parameters named {', '.join(decoder) or 'as a decoder'}"
            )
        for parameter in found:
            parameter.requires_grad_(True)
    return adapters


def routed_layers(model: nn.Module) -> dict[str, MoELoRALinear]:
    """Return the layers with a router, by dotted name."""
    return {name: adapter for name, adapter in iter_adapter_layers(model) if isinstance(adapter, MoELoRALinear)}


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of scalar parameters."""

    total: int
    trainable: int
    adapter: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count all parameters, those that train, and those of adapters."""
    parameters = list(model.parameters())
    return ParameterCount(
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        adapter=sum(p.numel() for _, adapter in iter_adapter_layers(model) for p in adapter.adapter_parameters()),
    )


def describe_adapters(model: nn.Module, adapters: dict[str, AdapterLayer]) -> str:
    """Return a table of adapted layers by name, numbers as ``*``, and how many parameters train."""
    layers: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    for name, adapter in adapters.items():
        group = (_starred(name), f"{adapter.in_features}→{adapter.out_features}")
        layers[group] += 1
        parameters[group] += sum(p.numel() for p in adapter.adapter_parameters())
    width = max((len(pattern) for pattern, _ in layers), default=0)
    lines = [
        f"{pattern:<{width}}  ×{count:<3} {shape:>10}  {parameters[pattern, shape]:>10,}"
        for (pattern, shape), count in layers.items()
    ]
    kinds = Counter(adapter.extra_repr() for adapter in adapters.values())
    lines += [f"{count} adapted layers: {settings}" for settings, count in kinds.items()] or ["no adapters"]
    lines += [f"expert groups: {', '.join(groups)}"] if (groups := list_groups(model)) else []
    count = count_parameters(model)
    share = count.trainable / max(count.total, 1)
    lines.append(f"{count.trainable:,} of {count.total:,} parameters train ({share:.2%})")
    return "\n".join(lines)


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module but the root, as if the model had no adapters."""
    base_layers = {name: wrapped.base_layer for name, wrapped in iter_wrapped_linears(model)}
    inside = tuple(f"{name}." for name in base_layers)
    return {
        name: base_layers.get(name, module)
        for name, module in model.named_modules()
        if name and not name.startswith(inside)
    }


def _is_adaptable(module: nn.Module) -> TypeGuard[nn.Linear]:
    # nn.MultiheadAttention reads its out_proj's weight and never calls it, so an adapter there would do nothing.
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _matches(name: str, entry: str) -> bool:
    return entry == "all" or fnmatchcase(name, entry) or fnmatchcase(name, f"*.{entry}")


def _near_names(entry: str, names: list[str]) -> str:
    """Return a hint: suffixes of Linear layers' names that look like the entry, with layer numbers as ``*``."""
    known: dict[str, None] = {}
    for name in names:
        parts = _starred(name).split(".")
        suffixes = [".".join(parts[i:]) for i in range(len(parts)) if parts[i] != "*"]
        known.update(dict.fromkeys([*suffixes, *([f"{parts[0]}.*.{parts[-1]}"] if len(parts) > 2 else [])]))
    near = difflib.get_close_matches(entry, list(known), n=3, cutoff=0.5)
    if near:
        return f"near names: {', '.join(near)}"
    last = sorted({part for name in names if not (part := name.rpartition(".")[2]).isdigit()})
    return f"Linear layers here: {', '.join(last[:12])}{', …' if len(last) > 12 else ''}"


def _starred(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
