"""What every adapter layer has in common: a base layer it adds to, and a switch; and layers with several adapters.

Which modules of a model are adapters is asked of the modules themselves (:func:`iter_adapter_layers`), never of their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

ActiveAdapter: TypeAlias = str | tuple[str | None, ...] | None


class WrappedLinear(nn.Module):
    """Stands in for a Linear layer in a model and holds it as ``base_layer``."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def in_features(self) -> int:
        """D."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """O."""
        return self.base_layer.out_features

    @property
    def weight(self) -> Tensor:
        """The base layer's weight (O, D), for code that reads a Linear's weight for its dtype, device or shape."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias (O,), or None."""
        return self.base_layer.bias


class AdapterLayer(WrappedLinear):
    """A Linear layer plus something learned beside it; the base class of every adapter layer.

    The base layer is held as ``base_layer``; everything else in the module is the adapter. The base is not frozen here
    (:func:`src.lora.injection.freeze_base` freezes a whole model). ``enabled`` is a plain attribute, not part of the
    state dict: while it is False the layer is its base layer, bit for bit, and the adapter's branch is not run.

    Args:
        base_layer: the Linear layer to adapt, (…, D) → (…, O).
    """

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.enabled = True

    def named_adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's own parameters with their names inside this layer, such as ``gate.weight``."""
        for name, parameter in self.named_parameters():
            if not name.startswith("base_layer."):
                yield name, parameter

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's own parameters, without the base layer's."""
        for _, parameter in self.named_adapter_parameters():
            yield parameter

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's own weights and saved buffers by their names inside this layer, such as ``gate.weight``."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("base_layer.")}

    def forward_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """``self(x)[rows]``, computed for these elements of the batch alone."""
        return self(x[rows])

    def settings(self) -> dict[str, int | float | bool | str]:
        """What, beside its weights, decides this layer's output: two layers of equal settings compute the same."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings().items())


class MultiAdapterLinear(WrappedLinear):
    """A Linear layer with several named adapters around it, of which the active one is used.

    Each adapter is an :class:`AdapterLayer` of any kind around the same base layer, so with a group active the layer is
    that adapter bit for bit, whatever other groups there are; with none it is the base layer alone.

    Args:
        base_layer: the layer to adapt, (…, D) → (…, O).

    Attributes:
        groups: the adapters by group; a group need not adapt every layer of a model.
        active: the group in use; None for the base; or a tuple of these, one for each element of the batch (dim 0).
    """

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.groups = nn.ModuleDict()
        self.active_adapter: ActiveAdapter = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O); with a group per element (B, …, D) → (B, …, O), each group run on its own elements."""
        if not isinstance(self.active_adapter, tuple):
            return self._layer(self.active_adapter)(x)
        if len(self.active_adapter) != len(x):
            raise ValueError(f"{len(self.active_adapter)} active groups were given for a batch of {len(x)}")
        rows_of = {
            group: torch.tensor([i for i, g in enumerate(self.active_adapter) if g == group], device=x.device)
            for group in dict.fromkeys(self.active_adapter)
        }
        parts = []
        for group, rows in rows_of.items():
            layer = self._layer(group)
            parts.append(layer.forward_rows(x, rows) if isinstance(layer, AdapterLayer) else layer(x[rows]))
        return torch.cat(parts)[torch.cat(list(rows_of.values())).argsort()]

    @property
    def adapters(self) -> dict[str, AdapterLayer]:
        """Group name → its adapter."""
        return cast(dict[str, AdapterLayer], dict(self.groups.items()))

    def _layer(self, group: str | None) -> nn.Module:
        return self.base_layer if group is None else self.adapters.get(group, self.base_layer)

    def extra_repr(self) -> str:
        return f"active_adapter={self.active_adapter}"


def iter_wrapped_linears(model: nn.Module) -> Iterator[tuple[str, AdapterLayer | MultiAdapterLinear]]:
    """The modules that stand in for a Linear layer, under its dotted name: adapters, or layers with groups of them."""
    grouped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer | MultiAdapterLinear) and not name.startswith(grouped):
            yield name, module
        if isinstance(module, MultiAdapterLinear):
            grouped += (f"{name}.",)


def iter_adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """The adapter layers of a model with their dotted names, in the model's order; those of all groups."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield name, module


def list_groups(model: nn.Module) -> list[str]:
    """The names of a model's adapter groups; empty where its adapters are in no group."""
    names = [
        name
        for _, module in iter_wrapped_linears(model)
        if isinstance(module, MultiAdapterLinear)
        for name in module.groups
    ]
    return list(dict.fromkeys(names))


def set_adapters_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch every adapter of the model on or off."""
    for _, adapter in iter_adapter_layers(model):
        adapter.enabled = enabled


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Run the base model: every adapter is off inside, and as it was before on leaving, whatever happens inside."""
    before = [(adapter, adapter.enabled) for _, adapter in iter_adapter_layers(model)]
    set_adapters_enabled(model, False)
    try:
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def match_dtype(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the dtype of the weight it is about to meet, unless autocast will choose one for both.

    Adapters are float32 on a base of any dtype, so that small optimizer steps are not rounded away.
    """
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def check_rank_and_dropout(rank: int, dropout: float) -> None:
    """Raise ValueError unless rank is at least 1 and 0 ≤ dropout < 1."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
