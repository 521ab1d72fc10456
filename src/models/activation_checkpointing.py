"""Activation checkpointing: activations of some blocks are computed twice instead of kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(model: nn.Module, blocks: Iterable[str]) -> list[str]:
    """Recompute the activations of a model's blocks in the backward pass, and return the blocks' names.

    Args:
        model: changed in place.
        blocks: patterns of dotted names, in which ``*`` stands for one part, such as a block's number
            (:attr:`~src.models.spec.ModelSpec.checkpointed_blocks`).
    """
    patterns = [re.compile(re.escape(block).replace(r"\*", r"[^.]+")) for block in blocks]
    chosen = {name: m for name, m in model.named_modules() if any(pattern.fullmatch(name) for pattern in patterns)}
    for block in chosen.values():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return list(chosen)
