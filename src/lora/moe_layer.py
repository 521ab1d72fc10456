"""MoPE: a frozen Linear layer plus LoRA experts, of which a gate chooses a few per token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.lora.adapter import AdapterLayer, check_rank_and_dropout, match_dtype
from src.lora.routing import Level, TopKGatingNetwork


class MoELoRALinear(AdapterLayer):
    """A Linear layer with LoRA experts: base(x) + (alpha / rank) · Σ_k softmax(top-k logits)_k · B_k A_k x.

    The output has the dtype of base(x); at initialisation it is base(x), bit for bit. Experts live in stacked
    parameters, ``lora_A`` (E, R, D) and ``lora_B`` (E, O, R), beside ``gate.weight`` (E, D) and ``gate.bias`` (E,);
    with a null expert the gate has one row more. All experts' ranks together are few, so the layer computes h = A x for
    all of them in one thin product, masks h with the gates, and sums over experts in a second thin product.

    Args:
        base_layer: the layer to adapt, (…, D) → (…, O), any leading shape.
        num_experts: E.
        rank: R, of each expert.
        top_k: K, experts chosen per token. With K = 1 the chosen gate is always 1 and the task's loss gives the gate
            no gradient (:class:`~src.lora.routing.TopKGatingNetwork`).
        alpha: experts are scaled by alpha / rank.
        dropout: on the experts' input, not on the gate's; 0 ≤ dropout < 1.
        null_expert: whether the gate may also choose an expert that adds nothing.
        jitter: noise on the gate's input in training.
        gate_bias: whether the gate has a bias.
        level: what the gate's decisions hold for, ``token``, ``frame`` or ``video``.
        noise: standard deviation of noise on the gate's logits in training.
        balance_bias: whether the gate has a bias for balancing without a loss.
        gate_features: features of what the gate decides on; None: D. At level ``video`` those of SAM 2's memory.
    """

    def __init__(
        self,
        base_layer: nn.Linear,
        num_experts: int = 10,
        rank: int = 4,
        top_k: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.0,
        null_expert: bool = False,
        jitter: float = 0.0,
        gate_bias: bool = True,
        level: Level = "token",
        noise: float = 0.0,
        balance_bias: bool = False,
        gate_features: int | None = None,
    ) -> None:
        super().__init__(base_layer)
        check_rank_and_dropout(rank, dropout)
        device = base_layer.weight.device
        self.num_experts = num_experts
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.gate = TopKGatingNetwork(
            gate_features or self.in_features, num_experts, top_k, null_expert, jitter, gate_bias, device,
            level, noise, balance_bias,
        )  # fmt: skip
        self.lora_A = nn.Parameter(torch.empty(num_experts, rank, self.in_features, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(
            torch.empty(num_experts, self.out_features, rank, device=device, dtype=torch.float32)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each expert's A as if it stood alone, set every B to zero, and draw the gate anew."""
        for lora_A_RD in self.lora_A:
            # One call on the stacked tensor would take R · D for the fan-in and draw A too small.
            nn.init.kaiming_uniform_(lora_A_RD, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)
        self.gate.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O)."""
        base = self.base_layer(x)
        return base + self._experts(x).to(base.dtype) if self.enabled else base

    def forward_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        with self.gate.on_rows(rows):
            return super().forward_rows(x, rows)

    def _experts(self, x: Tensor) -> Tensor:
        """The experts' scaled, gated sum: (…, D) → (…, O), in the dtype of the weights, or of autocast."""
        gates_E, _ = self.gate(x)
        h = F.linear(match_dtype(self.dropout(x), self.lora_A), self.lora_A.flatten(0, 1))
        h_ER = h.unflatten(-1, (self.num_experts, self.rank))
        h_ER = h_ER * (self.scale * gates_E).to(h.dtype).unsqueeze(-1)
        lora_B_OER = self.lora_B.transpose(0, 1)
        return F.linear(h_ER.flatten(-2), lora_B_OER.flatten(1))

    def settings(self) -> dict[str, int | float | bool | str]:
        return {
            "method": "mope",
            "experts": self.num_experts,
            "rank": self.rank,
            "top_k": self.gate.top_k,
            "null_expert": self.gate.null_expert,
            "level": self.gate.level,
            "scale": self.scale,
        }
