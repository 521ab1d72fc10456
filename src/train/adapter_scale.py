"""Keeping a share of what adapters learned.

An adapter adds to its base layer, so a share of it is on the straight line from the base's weights to the fine-tuned
ones, where much of the gain is often kept and less is forgotten (WiSE-FT: Wortsman et al., "Robust fine-tuning of
zero-shot models", CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..lora.adapter import iter_adapter_layers


@torch.no_grad()
def scale_adapters(model: nn.Module, share: float) -> None:
    """Multiply what the adapters that train add to their layers by ``share``."""
    for parameter in _outputs(model):
        parameter.mul_(share)


@contextmanager
def scaled_adapters(model: nn.Module, share: float) -> Iterator[None]:
    """Inside, adapters are as after :func:`scale_adapters`; then they are what they were, bit for bit."""
    before = [(parameter, parameter.detach().clone()) for parameter in _outputs(model)]
    scale_adapters(model, share)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)


def _outputs(model: nn.Module) -> Iterator[nn.Parameter]:
    """The factors B, in which an adapter's output is linear."""
    for _, adapter in iter_adapter_layers(model):
        for name, parameter in adapter.named_adapter_parameters():
            if name.rpartition(".")[2] == "lora_B" and parameter.requires_grad:
                yield parameter
