"""MoPE: a frozen Linear layer plus LoRA experts, of which a router selects a few for each token."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapter import AdapterLayer, check_rank_and_dropout
from .fused_experts import as_tokens, infer_experts, routed_experts, weighted_experts
from .router import TopKGatingNetwork


class MoELoRALinear(AdapterLayer):
    """A Linear layer with LoRA experts: base(x) + (alpha / rank) · Σ_k softmax(top-k logits)_k · B_k A_k x.

    The output has the dtype of base(x); at initialisation it is base(x), bit for bit. Experts are stacked parameters,
    ``lora_A`` (E, R, D) and ``lora_B`` (E, O, R). The router is ``gate``, with ``gate.weight`` (E, D) and ``gate.bias``
    (E,); with a null expert it has one row more. :meth:`reference_forward` is the formula in plain steps, and
    :mod:`~src.lora.fused_experts` computes it fast.

    Args:
        base_layer: the layer to adapt, (…, D) → (…, O), any leading shape.
        num_experts: E.
        rank: R, of each expert.
        top_k: K, experts selected per token. With K = 1 the routing weight is always 1, and the task's loss gives the
            router no gradient (:class:`~src.lora.router.TopKGatingNetwork`).
        alpha: experts are scaled by alpha / rank.
        dropout: on the experts' input, not on the router's; 0 ≤ dropout < 1.
        null_expert: whether the router may also select an expert that adds nothing.
    """

    rank_map_EX: Tensor

    def __init__(
        self,
        base_layer: nn.Linear,
        num_experts: int = 10,
        rank: int = 4,
        top_k: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.0,
        null_expert: bool = False,
    ) -> None:
        super().__init__(base_layer)
        check_rank_and_dropout(rank, dropout)
        device = base_layer.weight.device
        self.num_experts = num_experts
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.gate = TopKGatingNetwork(self.in_features, num_experts, top_k, null_expert, device)
        self.lora_A = nn.Parameter(torch.empty(num_experts, rank, self.in_features, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(
            torch.empty(num_experts, self.out_features, rank, device=device, dtype=torch.float32)
        )
        # A buffer, so that it follows .to(); not persistent, because it is always the same. A null expert's row is 0.
        rank_map_EX = torch.eye(len(self.gate.weight), num_experts, device=device).repeat_interleave(rank, dim=1)
        self.register_buffer("rank_map_EX", rank_map_EX, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each expert's A as if it stood alone, set every B to zero, and draw the router."""
        for lora_A_RD in self.lora_A:
            # One call on the stacked tensor would take R · D for the fan-in and draw A too small.
            nn.init.kaiming_uniform_(lora_A_RD, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)
        self.gate.reset_parameters()

    def reference_forward(self, x: Tensor) -> Tensor:
        """Compute :meth:`forward` as the formula says, (…, D) → (…, O), one expert after another and in one dtype."""
        logits = F.linear(x, self.gate.weight, self.gate.bias)
        top_logits, selected = logits.topk(self.gate.top_k, dim=-1)
        routing = torch.zeros_like(logits).scatter(-1, selected, top_logits.softmax(dim=-1))
        z, out = self.dropout(x), cast(Tensor, self.base_layer(x))
        for expert in range(self.num_experts):  # a null expert is the last choice, and adds nothing
            delta = F.linear(F.linear(z, self.lora_A[expert]), self.lora_B[expert])
            out = out + self.scale * routing[..., expert, None] * delta
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O): :meth:`reference_forward` by :mod:`~src.lora.fused_experts`."""
        if not self.enabled:
            base: Tensor = self.base_layer(x)
            return base
        drops = self.training and self.dropout.p > 0
        if drops or not self.gate.decides_in(x, self.lora_A.dtype):
            return self._route_first(x, self.dropout(x) if drops else None)
        if self._only_output_is_asked():
            return self._infer(x)
        out, logits_EN, selected_EN = routed_experts(
            x,
            weight=self.weight,
            bias=self.bias,
            lora_A_ERD=self.lora_A,
            lora_B_EOR=self.lora_B,
            scale=self.scale,
            router_weight=self.gate.weight,
            router_bias=self.gate.bias,
            select_experts=self.gate.select_experts,
            rank_map_EX=self.rank_map_EX,
        )
        self.gate.record(logits_EN, selected_EN)
        return out

    @torch.no_grad()
    def get_expert_usage(self, x: Tensor) -> Tensor:
        """(…, D) → each expert's mean routing weight over all tokens, (E,), float32; no output is computed.

        Weights sum to 1, less the mean weight of the null expert. It is no decision of a model's forward, so an open
        :func:`~src.lora.recording.record_routing` does not count it.
        """
        _, routing_EN, _ = self.gate.decide(x)
        return routing_EN.mean(dim=1)[: self.num_experts]

    def _route_first(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Let the router decide on x outside autocast, before experts run on z."""
        routing, _ = self.gate(x)
        return weighted_experts(
            x,
            z,
            as_tokens(routing).T,
            weight=self.weight,
            bias=self.bias,
            lora_A_ERD=self.lora_A,
            lora_B_EOR=self.lora_B,
            scale=self.scale,
            rank_map_EX=self.rank_map_EX[: self.num_experts],
        )

    def _only_output_is_asked(self) -> bool:
        """Whether nobody asks for gradients or a record; a compiler fuses as it likes."""
        return not torch.is_grad_enabled() and not self.gate.recorders and not torch.compiler.is_compiling()

    def _infer(self, x: Tensor) -> Tensor:
        """The output alone, by fewer and smaller steps."""
        return infer_experts(
            self.base_layer(x).contiguous(),
            x,
            lora_A_ERD=self.lora_A,
            lora_B_EOR=self.lora_B,
            scale=self.scale,
            router_weight=self.gate.weight,
            router_bias=self.gate.bias,
            select_experts=self.gate.select_experts,
            rank_map_EX=self.rank_map_EX,
        )

    def settings(self) -> dict[str, int | float | bool | str]:
        return {
            "method": "mope",
            "experts": self.num_experts,
            "rank": self.rank,
            "top_k": self.gate.top_k,
            "null_expert": self.gate.null_expert,
            "scale": self.scale,
        }
