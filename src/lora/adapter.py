"""What all adapter layers have in common: a base layer, a switch, and several adapters around one layer.

Which modules of a model are adapters is asked of the modules themselves (:func:`iter_adapter_layers`), never of their
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

ActiveAdapter: TypeAlias = str | tuple[str | None, ...] | None


class WrappedLinear(nn.Module):
    """A module in a Linear layer's place, which holds that layer as ``base_layer``."""

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
    """The base class of every adapter layer: a Linear layer plus a learned branch.

    ``base_layer`` is the base, and everything else in the module is the adapter. The base is not frozen here
    (:func:`~src.lora.injection.freeze_base` freezes a whole model). ``enabled`` is a plain attribute and not part of
    the state dict. While it is False the output is the base layer's, bit for bit, and the branch is not run.

    Args:
        base_layer: the Linear layer to adapt, (…, D) → (…, O).
    """

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.enabled = True

    def named_adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapter's own parameters with their names inside this layer, such as ``gate.weight``."""
        for name, parameter in self.named_parameters():
            if not name.startswith("base_layer."):
                yield name, parameter

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the adapter's own parameters, without the base layer's."""
        for _, parameter in self.named_adapter_parameters():
            yield parameter

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the adapter's own weights and saved buffers by their names inside this layer."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("base_layer.")}

    def settings(self) -> dict[str, int | float | bool | str]:
        """Return what decides the output besides weights: layers of equal settings compute the same."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings().items())


class MultiAdapterLinear(WrappedLinear):
    """A Linear layer with several named adapters around it, of which the active one is used.

    Each adapter is an :class:`AdapterLayer` of any kind around the same base layer. With one active the output is that
    adapter's, bit for bit, whatever other adapters there are. With none it is the base layer's.

    Args:
        base_layer: the layer to adapt, (…, D) → (…, O).

    Attributes:
        groups: the adapters by name of their expert group; a group need not adapt every layer of a model.
        active_adapter: the active adapter's name; None for the base; or one of these for each element of the batch.
    """

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__(base_layer)
        self.groups = nn.ModuleDict()
        self.active_adapter: ActiveAdapter = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O); with an adapter per element (B, …, D) → (B, …, O), each run on its own elements."""
        active = self.active_adapter
        if not isinstance(active, tuple):
            out: Tensor = self._layer(active)(x)
            return out
        if len(active) != len(x):
            raise ValueError(f"{len(active)} active adapters were given for a batch of {len(x)}")
        rows_of = {
            name: torch.tensor([i for i, other in enumerate(active) if other == name], device=x.device)
            for name in dict.fromkeys(active)
        }
        parts = [self._layer(name)(x[rows]) for name, rows in rows_of.items()]
        return torch.cat(parts)[torch.cat(list(rows_of.values())).argsort()]

    @property
    def adapters(self) -> dict[str, AdapterLayer]:
        """The adapters by name."""
        return cast(dict[str, AdapterLayer], dict(self.groups.items()))

    def _layer(self, name: str | None) -> nn.Module:
        return self.base_layer if name is None else self.adapters.get(name, self.base_layer)

    def extra_repr(self) -> str:
        return f"active_adapter={self.active_adapter}"


def iter_wrapped_linears(model: nn.Module) -> Iterator[tuple[str, AdapterLayer | MultiAdapterLinear]]:
    """Yield the wrapped Linear layers by dotted name: single adapters, or layers with several."""
    grouped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer | MultiAdapterLinear) and not name.startswith(grouped):
            yield name, module
        if isinstance(module, MultiAdapterLinear):
            grouped += (f"{name}.",)


def iter_adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    """Yield the adapter layers of all groups by dotted name, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield name, module


def list_groups(model: nn.Module) -> list[str]:
    """Return the names of a model's expert groups; none where its adapters are in no group."""
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
    """Run the base model inside the scope; every adapter is as before on leaving it, also after an error."""
    before = [(adapter, adapter.enabled) for _, adapter in iter_adapter_layers(model)]
    set_adapters_enabled(model, False)
    try:
        yield
    finally:
        for adapter, enabled in before:
            adapter.enabled = enabled


def match_dtype(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x`` in the dtype of a weight, unless autocast chooses one for both.

    Adapters are float32 on a base of any dtype, so that small optimizer steps are not rounded away.
    """
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def check_rank_and_dropout(rank: int, dropout: float) -> None:
    """Raise ValueError unless rank is at least 1 and 0 ≤ dropout < 1."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
