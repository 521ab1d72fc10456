"""MoPE: a frozen Linear layer plus LoRA experts, of which a gate chooses a few per token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from src.lora.adapter import AdapterLayer, check_rank_and_dropout, match_dtype
from src.lora.routing import Level, TopKGatingNetwork

# From logits (E*, N) to gates (E*, N) and chosen experts (K, N).
Choice: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class LinearWithExperts(torch.autograd.Function):
    """x Wᵀ + bias + Σ_e gates_e · B_e A_e z, where gates are given, or made of the logits that a gate finds in x.

    What experts add is summed into the base layer's output, and their part of the gradient into the base layer's. For
    the backward pass x, z, gates and the gated thin products gates_e · A_e z (and logits) are kept, nothing of the size
    of the output. A gate that is 0 gets the gradient 0: nothing else is asked of gates that are 0 where not chosen.
    E experts of rank R have X = E · R rows in all; with the gate's own E* they are P. Experts come before the N tokens,
    so that what is done for each token runs along memory. Thin products have the dtype of A, or of autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        z: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        thin_PD: Tensor,
        B_ERO: Tensor,
        gates_EN: Tensor | None,
        gate_bias: Tensor | None,
        choose: Choice,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            ctx: autograd's.
            x: (…, D).
            z: the experts' input (…, D), where it is not x.
            weight, bias: the base layer's.
            thin_PD: A of all experts, and, without ``gates_EN``, the gate's weight below it.
            B_ERO: B of all experts, scaled.
            gates_EN: each expert's weight on each token; None: the gate decides on x here.
            gate_bias: (E*,), for a gate that decides here and has one.
            choose: how it decides.

        Returns:
            The output (…, O); and logits (E*, N) and chosen experts (K, N), which are empty with ``gates_EN``.
        """
        out = F.linear(x, weight, bias).contiguous()
        tokens_ND = match_dtype(_tokens(x if z is None else z), thin_PD)
        thin_PN = (tokens_ND @ thin_PD.T).T.contiguous()  # BLAS takes longer to write experts first itself
        experts, rank, _ = B_ERO.shape
        logits_EN = thin_PN[experts * rank :]
        chosen_KN = torch.empty_like(logits_EN, dtype=torch.int64)
        ctx.gate_decides = gates_EN is None
        if gates_EN is None:
            if gate_bias is not None:
                logits_EN += gate_bias.unsqueeze(1)
            gates_EN, chosen_KN = choose(logits_EN)
        gates_EN = gates_EN.to(thin_PN.dtype)
        gated_ERN = _experts_rows(thin_PN, B_ERO)
        gated_ERN *= gates_EN[:experts].unsqueeze(1)
        _add_product(_tokens(out), gated_ERN.flatten(0, 1).T, B_ERO.flatten(0, 1).to(thin_PN.dtype))
        ctx.save_for_backward(x, z, weight, thin_PD, B_ERO, gates_EN, thin_PN)
        ctx.mark_non_differentiable(chosen_KN)
        ctx.set_materialize_grads(False)
        return out, logits_EN.clone(), chosen_KN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_logits_EN: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        x, z, weight, thin_PD, B_ERO, gates_EN, thin_PN = ctx.saved_tensors
        names = ("x", "z", "weight", "bias", "thin", "B", "gates", "gate_bias", "choose")
        wanted = dict(zip(names, ctx.needs_input_grad, strict=True))
        grad = x.new_zeros(*x.shape[:-1], len(weight)) if grad is None else grad
        grad_NO, g_NO = _tokens(grad), _tokens(grad).to(thin_PN.dtype)
        found: dict[str, Tensor] = {}

        gated_ERN = _experts_rows(thin_PN, B_ERO)
        grad_thin_PN = torch.empty_like(thin_PN)
        grad_ERN = _experts_rows(grad_thin_PN, B_ERO)
        grad_ERN.flatten(0, 1).copy_((g_NO @ B_ERO.flatten(0, 1).to(thin_PN.dtype).T).T)
        # Each expert's gate times its gradient, for which the products before they were gated need not be kept.
        weighed_EN = (grad_ERN * gated_ERN).sum(dim=1)
        experts = len(gated_ERN)
        grad_ERN *= gates_EN[:experts].unsqueeze(1)
        if ctx.gate_decides:
            # Of the softmax over the chosen logits. The null expert's gate, multiplied by nothing, has no gradient.
            grad_logits = grad_thin_PN[-len(gates_EN) :]
            torch.mul(gates_EN, weighed_EN.sum(dim=0).neg(), out=grad_logits)
            grad_logits[:experts] += weighed_EN
            if grad_logits_EN is not None:
                grad_logits += grad_logits_EN
            if wanted["gate_bias"]:
                found["gate_bias"] = grad_logits.sum(dim=1)
        elif wanted["gates"]:
            found["gates"] = torch.where(gates_EN > 0, weighed_EN / gates_EN, 0)

        thin_grad_NP, thin = grad_thin_PN.T, thin_PD.to(thin_PN.dtype)
        if wanted["thin"]:
            found["thin"] = grad_thin_PN @ _tokens(x if z is None else z).to(thin_PN.dtype)
        if wanted["B"]:
            found["B"] = (gated_ERN.flatten(0, 1) @ g_NO).view_as(B_ERO)
        if wanted["x"]:
            grad_x_ND = grad_NO @ weight.to(grad.dtype)
            if z is None:
                _add_product(grad_x_ND, thin_grad_NP, thin)
            found["x"] = grad_x_ND.view_as(x)
        if wanted["z"]:
            found["z"] = (thin_grad_NP @ thin).view_as(x)
        if wanted["weight"]:
            found["weight"] = grad_NO.T @ _tokens(x).to(grad.dtype)
        if wanted["bias"]:
            found["bias"] = grad_NO.sum(dim=0)
        return tuple(found.get(name) for name in names)


def _tokens(x: Tensor) -> Tensor:
    """(…, D) → (N, D)."""
    return x.reshape(-1, x.shape[-1])


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, which is written nowhere else where dtypes are the same."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b


def _experts_rows(thin_PN: Tensor, B_ERO: Tensor) -> Tensor:
    """The experts' rows of all thin products, (E, R, N)."""
    experts, rank, _ = B_ERO.shape
    return thin_PN[: experts * rank].view(experts, rank, thin_PN.shape[1])


class MoELoRALinear(AdapterLayer):
    """A Linear layer with LoRA experts: base(x) + (alpha / rank) · Σ_k softmax(top-k logits)_k · B_k A_k x.

    The output has the dtype of base(x); at initialisation it is base(x), bit for bit. Experts live in stacked
    parameters, ``lora_A`` (E, R, D) and ``lora_B`` (E, O, R), beside ``gate.weight`` (E, D) and ``gate.bias`` (E,);
    with a null expert the gate has one row more. All experts' ranks together are few, so the layer computes h = A x for
    all of them in one thin product, masks h with the gates, and sums over experts in a second thin product
    (:class:`LinearWithExperts`). Where the gate decides on just what the experts get, in the same precision, its logits
    are rows of the first product. There, a call that asks for no gradients computes the same, up to rounding, by fewer
    and smaller steps.

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

    ranks_of_expert_EX: Tensor

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
        # A buffer, so that it follows .to(); not persistent, because it is always the same.
        ranks_of_expert_EX = torch.eye(num_experts, device=device).repeat_interleave(rank, dim=1)
        self.register_buffer("ranks_of_expert_EX", ranks_of_expert_EX, persistent=False)
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
        if not self.enabled:
            return self.base_layer(x)
        gate, base = self.gate, (self.weight, self.bias)
        z = self.dropout(x) if self.training and self.dropout.p > 0 else None
        if z is None and self._only_output_is_asked() and gate.decides_on(x, self.lora_A.dtype):
            return self._infer(x)
        A_XD, B_ERO = self.lora_A.flatten(0, 1), self.scale * self.lora_B.transpose(1, 2)
        if z is None and gate.decides_on(x, A_XD.dtype):
            thin_PD = torch.cat([A_XD, gate.weight])
            out, *decision = LinearWithExperts.apply(x, z, *base, thin_PD, B_ERO, None, gate.bias, gate.choose)
            gate.record(*decision)
            return out
        gates, _ = gate(x)
        gates_EN = _tokens(gates.expand(*x.shape[:-1], -1)).T
        return LinearWithExperts.apply(x, z, *base, A_XD, B_ERO, gates_EN, None, gate.choose)[0]

    def _only_output_is_asked(self) -> bool:
        """Whether nobody asks for gradients or for what the gate decided; a compiler fuses as it likes."""
        return not torch.is_grad_enabled() and not self.gate.recorders and not torch.compiler.is_compiling()

    def _infer(self, x: Tensor) -> Tensor:
        """The output alone.

        The experts' thin product stays tokens first, as BLAS writes it well in several threads; gates are found experts
        first, and a product with ones in the right places turns them and repeats them for each of an expert's ranks.
        """
        out, x_ND, gate = self.base_layer(x).contiguous(), _tokens(x), self.gate
        if gate.bias is None:
            logits_EN = gate.weight @ x_ND.T
        else:
            logits_EN = torch.addmm(gate.bias.unsqueeze(1), gate.weight, x_ND.T)
        gated_NX = gate.weigh(logits_EN)[: self.num_experts].T @ self.ranks_of_expert_EX
        gated_NX *= x_ND @ self.lora_A.flatten(0, 1).T
        _tokens(out).addmm_(gated_NX, self.lora_B.transpose(1, 2).flatten(0, 1), alpha=self.scale)
        return out

    def forward_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        with self.gate.on_rows(rows):
            return super().forward_rows(x, rows)

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
