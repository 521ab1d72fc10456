"""The router of a mixture-of-experts layer.

E* is E, or E + 1 with a null expert, which comes last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

Recorder: TypeAlias = Callable[[Tensor, Tensor], None]


class TopKGatingNetwork(nn.Module):
    """A linear router that selects K of E experts per token, weighted by a softmax over the selected logits.

    It computes in float32 outside autocast, because half precision flips selections and destabilises training (Fedus
    et al., Switch Transformers, 2022, section 2.4). The softmax runs over the K selected logits only (Shazeer et al.,
    2017, section 2.1). So with K = 1 the routing weight is the constant 1, and only the losses on the routing train the
    router, not the task.

    Args:
        in_features: D.
        num_experts: E, without the null expert.
        top_k: K, 1 ≤ K ≤ E, or E + 1 with a null expert.
        null_expert: add a choice, in the last row, that contributes nothing: a token that selects it gives that share
            of its weight to no expert.
        device: where the parameters are made.

    Attributes:
        recorders: called with the logits and the selection of each decision, (E*, N) both.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        top_k: int,
        null_expert: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        choices = num_experts + null_expert
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {num_experts}")
        if not 1 <= top_k <= choices:
            raise ValueError(f"top_k must be within 1 and {choices}, the experts to choose from, not {top_k}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.null_expert = null_expert
        self.weight = nn.Parameter(torch.empty(choices, in_features, device=device, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(choices, device=device, dtype=torch.float32))
        self.recorders: list[Recorder] = []
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random weights, so that tokens differ in their selections from the start; no bias to any expert."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, D) → routing weights (…, E), zero where not selected, and logits (…, E*); float32.

        A token's weights sum to 1, less the null expert's weight where it was selected.
        """
        logits_EN, routing_EN, selected_EN = self.decide(x)
        self.record(logits_EN, selected_EN)
        shape = (*x.shape[:-1], len(logits_EN))
        return routing_EN.T.reshape(shape)[..., : self.num_experts], logits_EN.T.reshape(shape)

    def decide(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, D) → logits, routing weights, and what is selected, (E*, N) each; nothing is recorded."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits_EN = self.weight.to(dtype) @ x.to(dtype).reshape(-1, x.shape[-1]).T
            logits_EN = logits_EN + self.bias.to(dtype).unsqueeze(1)
            return logits_EN, *self.select_experts(logits_EN)

    def decides_in(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Return whether it decides on ``x`` in just this dtype, without converting any number."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        same = x.dtype == self.weight.dtype == wide == dtype
        return same and not torch.is_autocast_enabled(x.device.type)

    def select_experts(self, logits_EN: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (E*, N) → routing weights (E*, N), zero where not selected, and which are selected, bool (E*, N).

        Experts come before tokens, so that what is done for each token runs along memory.
        """
        selected_EN = _largest(logits_EN.detach(), self.top_k)
        return torch.where(selected_EN, logits_EN, -math.inf).softmax(dim=0), selected_EN

    def record(self, logits_EN: Tensor, selected_EN: Tensor) -> None:
        """Hand a decision for N tokens to the open scopes of :func:`~src.lora.recording.record_routing`."""
        for recorder in self.recorders:
            recorder(logits_EN, selected_EN)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, null_expert={self.null_expert}"


def _largest(scores_EN: Tensor, count: int) -> Tensor:
    """Where the largest scores of each column are, bool (E*, N): ``count`` of them, also among equal ones.

    By maxima, one for each: topk takes longer for few rows, and on a CPU their places take longer than their values.
    """
    if scores_EN.is_cpu and not torch.compiler.is_compiling():
        rest_EN = scores_EN
        for _ in range(count - 1):
            rest_EN = torch.where(rest_EN < rest_EN.amax(dim=0, keepdim=True), rest_EN, -math.inf)
        selected_EN = scores_EN >= rest_EN.amax(dim=0, keepdim=True)
        if int(selected_EN.count_nonzero()) == count * scores_EN.shape[1]:
            return selected_EN
    selected_EN = torch.zeros_like(scores_EN, dtype=torch.bool)
    for _ in range(count):
        rest_EN = scores_EN.masked_fill(selected_EN, -math.inf)
        selected_EN = selected_EN.scatter(0, rest_EN.max(dim=0, keepdim=True).indices, True)
    return selected_EN
