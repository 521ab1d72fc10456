"""Activation checkpointing: activations of some blocks are computed twice instead of kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
        contexts = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    return list(chosen)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts of a forward pass and of its repetition, whose modules are in the mode that they are in now.

    Self-distillation runs the student in eval mode, and the backward pass comes when it trains again.
    """
    return nullcontext(), _in_modes({module: module.training for module in block.modules()})


@contextmanager
def _in_modes(modes: dict[nn.Module, bool]) -> Iterator[None]:
    before = {module: module.training for module in modes}
    try:
        for module, training in modes.items():
            module.training = training
        yield
    finally:
        for module, training in before.items():
            module.training = training
