"""The router of a mixture-of-experts layer.

E* is E, or E + 1 with a null expert, which comes last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Level = Literal["token", "frame", "video"]
Recorder: TypeAlias = Callable[[Tensor, Tensor], None]


class TopKGatingNetwork(nn.Module):
    """A linear router that selects K of E experts per token, weighted by a softmax over the selected logits.

    It computes in float32 outside autocast, because half precision flips selections and destabilises training (Fedus
    et al., Switch Transformers, 2022, section 2.4). The softmax runs over the K selected logits only (Shazeer et al.,
    2017, section 2.1). So with K = 1 the routing weight is the constant 1, and only the losses on the routing train the
    router, not the task.

    A decision holds for a token; or, at level ``frame``, for all tokens of an element of the batch in one call, and is
    made on their mean; or, at level ``video``, for all tokens of an object in a whole video: it is made on ``context``,
    the mean of the object's memory on its first prompted frame, which every call of SAM 2's memory attention is given
    (:func:`watch_memory`). The context is the same on all frames, so training, video predictor and streaming decide
    alike, and nothing has to be remembered between frames or reset between videos.

    Args:
        in_features: D; at level ``video`` the features of the context.
        num_experts: E, without the null expert.
        top_k: K, 1 ≤ K ≤ E, or E + 1 with a null expert.
        null_expert: add a choice, in the last row, that contributes nothing: a token that selects it gives that share
            of its weight to no expert.
        jitter: in training the input is multiplied by uniform noise within 1 ± jitter (Switch Transformers, section
            2.2).
        bias: whether there is a bias.
        device: where the parameters are made.
        level: what a decision holds for.
        noise: in training, normal noise of this standard deviation is added to the logits that select and weigh
            experts (Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021, section 2.2, who take 1 / E;
            the noise of Shazeer et al. has a learned deviation). The logits that are returned are without it.
        balance_bias: keep a number per expert, ``balance_bias`` (E*,), that is added to the logits for the selection
            but not for the weights: balance without a loss
            (:func:`~src.lora.router_losses.update_balance_bias`).

    Attributes:
        context: (B, D), what decisions at level ``video`` are made on; None before memory attention first ran.
        recorders: called with the logits and the selection of each decision, (E*, N) both.

    Raises:
        ValueError: a number is out of range.
    """

    balance_bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        top_k: int,
        null_expert: bool = False,
        jitter: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        level: Level = "token",
        noise: float = 0.0,
        balance_bias: bool = False,
    ) -> None:
        super().__init__()
        choices = num_experts + null_expert
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {num_experts}")
        if not 1 <= top_k <= choices:
            raise ValueError(f"top_k must be within 1 and {choices}, the experts to choose from, not {top_k}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, not {jitter}")
        if noise < 0:
            raise ValueError(f"noise must be at least 0, not {noise}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.null_expert = null_expert
        self.jitter = jitter
        self.level = level
        self.noise = noise
        self.context: Tensor | None = None
        self.weight = nn.Parameter(torch.empty(choices, in_features, device=device, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(choices, device=device, dtype=torch.float32)) if bias else None
        zeros = torch.zeros(choices, device=device, dtype=torch.float32) if balance_bias else None
        self.register_buffer("balance_bias", zeros)
        self.recorders: list[Recorder] = []
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random weights, so that tokens differ in their choices from the start; no bias towards any expert."""
        nn.init.normal_(self.weight, std=0.02)
        for bias in (self.bias, self.balance_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, D) → routing weights (…, E), zero where not selected, and logits (…, E or E + 1); float32.

        A token's weights sum to 1, less the null expert's weight where it was selected. At the levels ``frame`` and
        ``video`` the results have size 1 in the dimensions between the first and the last.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            x = self._decision_input(x, dtype).to(dtype)
            if self.training and self.jitter > 0:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            logits_EN = self.weight.to(dtype) @ x.reshape(-1, x.shape[-1]).T
            if self.bias is not None:
                logits_EN = logits_EN + self.bias.to(dtype).unsqueeze(1)
            routing_EN, selected_EN = self.select_experts(logits_EN)
        self.record(logits_EN, selected_EN)
        shape = (*x.shape[:-1], len(logits_EN))
        return routing_EN.T.reshape(shape)[..., : self.num_experts], logits_EN.T.reshape(shape)

    def decides_on(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Return whether it decides per token on ``x`` itself, without noise on it, in just this dtype."""
        plain = self.level == "token" and not (self.training and self.jitter > 0)
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        same = x.dtype == self.weight.dtype == wide == dtype
        return plain and same and not torch.is_autocast_enabled(x.device.type)

    def select_experts(self, logits_EN: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (E*, N) → routing weights (E*, N), zero where not selected, and which are selected, bool (E*, N).

        Experts come before tokens, so that what is done for each token runs along memory.
        """
        weighed_EN = logits_EN
        if self.training and self.noise > 0:
            weighed_EN = logits_EN + self.noise * torch.randn_like(logits_EN)
        scores_EN = weighed_EN if self.balance_bias is None else weighed_EN + self.balance_bias.unsqueeze(1)
        selected_EN = _largest(scores_EN.detach(), self.top_k)
        return torch.where(selected_EN, weighed_EN, -math.inf).softmax(dim=0), selected_EN

    @contextmanager
    def on_rows(self, rows: Tensor) -> Iterator[None]:
        """Inside, the input is that of these elements of the batch alone."""
        context = self.context
        self.context = None if context is None else context[rows]
        try:
            yield
        finally:
            self.context = context

    def _decision_input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What is decided on, (B, …, D): of size 1 in the dimensions that share a decision; means are in ``dtype``."""
        if self.level == "token" or (self.level == "frame" and x.ndim < 3):
            return x
        if self.level == "frame":
            return x.mean(dim=tuple(range(1, x.ndim - 1)), keepdim=True, dtype=dtype)
        if self.context is None or len(self.context) != len(x):
            found = "no memory" if self.context is None else f"the memory of {len(self.context)} objects"
            raise ValueError(f"level video: an input of batch size {len(x)} came with {found} (see watch_memory)")
        return self.context.reshape(len(x), *[1] * (x.ndim - 2), -1)

    def record(self, logits_EN: Tensor, selected_EN: Tensor) -> None:
        """Hand a decision for N tokens to the open scopes of :func:`~src.lora.recording.record_routing`."""
        for recorder in self.recorders:
            recorder(logits_EN, selected_EN)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, null_expert={self.null_expert}"


def watch_memory(memory_attention: nn.Module) -> None:
    """Give the routers of level ``video`` inside SAM 2's memory attention their context whenever it is called."""
    hooks = memory_attention._forward_pre_hooks
    if _provide_context not in hooks.values():
        memory_attention.register_forward_pre_hook(_provide_context, with_kwargs=True)


def _provide_context(memory_attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Memory (M, B, C) begins with the tokens of the first prompted frame, as many as the current frame (N, B, D) has.

    The current frame is ``curr`` in SAM 2 and ``current_vision_features`` in transformers.

    It is detached, because routers keep it: activation checkpointing asks for it again in the backward pass. This is a
    plain function that looks the routers up, so that a copied model does not feed those of the original.
    """
    given = dict(zip(("curr", "memory"), args, strict=False)) | kwargs
    current = given["curr"] if "curr" in given else given["current_vision_features"]
    if isinstance(current, list):
        current = current[0]
    context_BC = given["memory"][: len(current)].detach().mean(dim=0, dtype=torch.float32)
    for module in memory_attention.modules():
        if isinstance(module, TopKGatingNetwork) and module.level == "video":
            module.context = context_BC


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
