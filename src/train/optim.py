"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainingConfig

MOST_WARMUP = 0.1
"""Share of a run's steps that warm-up may take; longer, a short run hardly learns at its full rate."""


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train; biases and norms are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


def bounded_warmup(config: TrainingConfig, total_steps: int) -> int:
    """``warmup_steps``, or in a run too short for them as many as :data:`MOST_WARMUP` allows."""
    return min(config.warmup_steps, round(MOST_WARMUP * total_steps))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine from ``learning_rate`` to ``min_learning_rate`` at ``total_steps``."""
    floor = min(config.min_learning_rate / config.learning_rate, 1.0)
    warmup = bounded_warmup(config, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def restore(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    optimizer_state: dict[str, Any],
    schedule_state: dict[str, Any],
) -> None:
    """Take the moments and the step from an earlier run; rates and decay are those that the two were built with.

    Raises:
        ValueError: the moments are not those of these parameters.
    """
    settings = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    groups = [
        {**own, "params": theirs["params"]}
        for own, theirs in zip(settings, optimizer_state["param_groups"], strict=True)
    ]  # before loading: they decide on which device the moments' steps are counted
    optimizer.load_state_dict({**optimizer_state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, Tensor) and moment.ndim and moment.shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(moment.shape)} for a parameter of {tuple(parameter.shape)}")
    schedule.load_state_dict({**schedule_state, "base_lrs": schedule.base_lrs})
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = rate * factor
