"""The device that a model is on, and the mode that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .errors import UserError


def pick_device(name: str) -> torch.device:
    """The device that ``training.device`` names; ``auto``: CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"training.device: '{name}' cannot be used here: {str(error).splitlines()[0]}") from None
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, so that nothing is dropped or drawn; gradients flow as they did."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
