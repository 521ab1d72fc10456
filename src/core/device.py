"""The device that a model runs on, and its evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device that ``training.device`` names; ``auto``: CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("a tensor there has a shape and no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"training.device: '{name}' cannot be used here: {str(error).splitlines()[0]}", "device.unusable"
        ) from None
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside the block, so that nothing is dropped or drawn."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
