"""Penalties that hold a model where it began, for comparison with distillation: L2-SP and EWC."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.model.segmenter import Tracked


class Anchor:
    """Half the weighted squared distance of the trainable parameters from where they were when this was made.

    With weight 1 for every parameter it is L2-SP (Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks", ICML 2018); with the diagonal of the Fisher information on the old domain,
    elastic weight consolidation (Kirkpatrick et al., PNAS 2017). Of adapters it is their distance from the start, from
    which they add nothing.

    Args:
        model: as it is before it trains.
        importance: parameter name → weights of its shape; None: 1 everywhere.
    """

    def __init__(self, model: nn.Module, importance: dict[str, Tensor] | None = None) -> None:
        self.model = model
        self.start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.importance = importance

    def penalty(self) -> Tensor:
        """The penalty, a scalar with graph."""
        device = next(self.model.parameters()).device
        total = torch.zeros((), device=device)
        for name, parameter in self.model.named_parameters():
            if name not in self.start:
                continue
            moved = (parameter - self.start[name].to(device)).square()
            total = total + (moved if self.importance is None else moved * self.importance[name].to(device)).sum()
        return total / 2


def sampled_log_likelihood(said: Tracked, generator: torch.Generator) -> Tensor:
    """The log-likelihood, per pixel and object, of masks and object scores drawn from the model's own prediction.

    Its squared gradients, averaged over draws, are the diagonal of the Fisher information.
    """
    total = torch.zeros((), device=said.scores_TO.device)
    for logits in (said.logits_TOhw, said.scores_TO):
        chance = logits.detach().sigmoid().cpu()
        drawn = torch.bernoulli(chance, generator=generator).to(logits.device)
        total = total - nn.functional.binary_cross_entropy_with_logits(logits, drawn)
    return total
