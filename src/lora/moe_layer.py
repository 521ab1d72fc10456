"""MoPE: a frozen Linear layer plus LoRA experts, of which a gate chooses a few per token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .adapter import AdapterLayer, check_rank_and_dropout, match_dtype
from .router import Level, TopKGatingNetwork

# From logits (E*, N) to gates and which experts are chosen, (E*, N) both.
Choice: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class LinearWithExperts(torch.autograd.Function):
    """x Wᵀ + bias + Σ_e gates_e · B_e A_e z, where gates are given, or made of the logits that a gate finds in x.

    What experts add is summed into the base layer's output, and their part of the gradient into the base layer's. For
    the backward pass x, z, gates and the gated thin products gates_e · A_e z are kept, nothing of the size of the
    output. A gate that is 0 gets the gradient 0: nothing else is asked of gates that are 0 where not chosen.
    E experts of rank R have X = E · R rows in all; E* are E, and the null expert where there is one. Thin products have
    the N tokens first, as BLAS writes them well in several threads, and the dtype of A, or of autocast. Gates have
    experts first, so that what is done for each token runs along memory. Products with ``ranks_EX`` go from one to the
    other, and repeat a gate for its expert's ranks, or sum over them: turning thin products takes longer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        z: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        A_ERD: Tensor,
        B_EOR: Tensor,
        scale: float,
        gates_EN: Tensor | None,
        gate_weight: Tensor | None,
        gate_bias: Tensor | None,
        ranks_EX: Tensor,
        select_experts: Choice,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            ctx: autograd's.
            x: (…, D).
            z: the experts' input (…, D), where it is not x.
            weight, bias: the base layer's.
            A_ERD, B_EOR: of all experts; their products are multiplied by ``scale``.
            gates_EN: each expert's weight on each token; None: a gate decides on x here.
            gate_weight: (E*, D), of a gate that decides here.
            gate_bias: (E*,), of one that has a bias.
            ranks_EX: as many rows as gates; 1 where a row of A belongs to the expert, else 0.
            choose: how the gate decides.

        Returns:
            The output (…, O); and of a gate that decides here logits and which experts are chosen, (E*, N) both.
        """
        out = F.linear(x, weight, bias).contiguous()
        # Older versions of torch return a view here, which forbids what SAM 2 does: it changes keys in place.
        if not torch.compiler.is_compiling() and out._is_view():
            out = torch.ops.aten._unsafe_view(out, out.shape)
        x_ND, logits_EN, selected_EN = _tokens(x), None, None
        ctx.gate_decides = gate_weight is not None
        if gate_weight is not None:
            logits_EN = _gate_logits(gate_weight, gate_bias, x_ND)
            gates_EN, selected_EN = select_experts(logits_EN)
            ctx.mark_non_differentiable(selected_EN)
        assert gates_EN is not None
        A_XD, B_XO = A_ERD.flatten(0, 1), (scale * B_EOR).transpose(1, 2).flatten(0, 1)
        z_ND = match_dtype(x_ND if z is None else _tokens(z), A_XD)
        gated_NX = z_ND @ A_XD.T
        gates_EN, A_XD, B_XO, ranks_EX = (each.to(gated_NX.dtype) for each in (gates_EN, A_XD, B_XO, ranks_EX))
        gated_NX *= gates_EN.T @ ranks_EX
        _add_product(_tokens(out), gated_NX, B_XO)
        ctx.save_for_backward(x, z, weight, A_XD, B_XO, gate_weight, gates_EN, gated_NX, ranks_EX)
        ctx.scale, ctx.experts = scale, len(A_ERD)
        ctx.set_materialize_grads(False)
        return out, logits_EN, selected_EN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_logits_EN: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        x, z, weight, A_XD, B_XO, gate_weight, gates_EN, gated_NX, ranks_EX = ctx.saved_tensors
        names = ("x", "z", "weight", "bias", "A", "B", "scale", "gates", "gate_weight", "gate_bias", "ranks", "choose")
        wanted = dict(zip(names, ctx.needs_input_grad, strict=True))
        grad = x.new_zeros(*x.shape[:-1], len(weight)) if grad is None else grad
        x_ND, grad_NO = _tokens(x), _tokens(grad)
        g_NO = grad_NO.to(gated_NX.dtype)
        found: dict[str, Tensor] = {}

        grad_NX = g_NO @ B_XO.T
        # Each expert's gate times its gradient, for which the products before they were gated need not be kept.
        weighed_EN = ranks_EX @ (grad_NX * gated_NX).T
        grad_NX *= gates_EN.T @ ranks_EX
        if ctx.gate_decides:
            # Of the softmax over the chosen logits. The null expert's gate, multiplied by nothing, has no gradient.
            of_logits_EN = torch.addcmul(weighed_EN, gates_EN, weighed_EN.sum(dim=0), value=-1)
            if grad_logits_EN is not None:
                of_logits_EN += grad_logits_EN
            if wanted["gate_weight"]:
                found["gate_weight"] = of_logits_EN @ x_ND
            if wanted["gate_bias"]:
                found["gate_bias"] = of_logits_EN.sum(dim=1)
        elif wanted["gates"]:
            found["gates"] = torch.where(gates_EN > 0, weighed_EN / gates_EN, 0)

        if wanted["A"]:
            grad_A_XD = grad_NX.T @ (x_ND if z is None else _tokens(z)).to(grad_NX.dtype)
            found["A"] = grad_A_XD.view(ctx.experts, -1, grad_A_XD.shape[1])
        if wanted["B"]:
            grad_B_XO = (gated_NX.T @ g_NO).mul_(ctx.scale)
            found["B"] = grad_B_XO.view(ctx.experts, -1, grad_B_XO.shape[1]).transpose(1, 2)
        if wanted["x"]:
            grad_x_ND = grad_NO @ weight.to(grad.dtype)
            if z is None:
                _add_product(grad_x_ND, grad_NX, A_XD)
            if ctx.gate_decides:
                _add_product(grad_x_ND, of_logits_EN.T, gate_weight)
            found["x"] = grad_x_ND.view_as(x)
        if wanted["z"]:
            found["z"] = (grad_NX @ A_XD).view_as(x)
        if wanted["weight"]:
            found["weight"] = grad_NO.T @ x_ND.to(grad.dtype)
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


def _gate_logits(weight: Tensor, bias: Tensor | None, x_ND: Tensor) -> Tensor:
    """(E*, N). On a CPU a product turns what BLAS writes tokens first, faster than BLAS writes experts first."""
    logits_EN = (x_ND @ weight.T).T
    if not logits_EN.is_cpu:
        return logits_EN.contiguous() if bias is None else logits_EN + bias.unsqueeze(1)
    ones = torch.eye(len(weight), dtype=logits_EN.dtype)
    return ones @ logits_EN if bias is None else torch.addmm(bias.unsqueeze(1), ones, logits_EN)


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
            no gradient (:class:`~src.lora.router.TopKGatingNetwork`).
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
        # A buffer, so that it follows .to(); not persistent, because it is always the same. A null expert's row is 0.
        ranks_of_expert_EX = torch.eye(len(self.gate.weight), num_experts, device=device).repeat_interleave(rank, dim=1)
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
        experts, ranks_EX = (self.lora_A, self.lora_B, self.scale), self.ranks_of_expert_EX
        if z is None and gate.decides_on(x, self.lora_A.dtype):
            own = None, gate.weight, gate.bias, ranks_EX, gate.select_experts
            out, *decision = LinearWithExperts.apply(x, z, *base, *experts, *own)
            gate.record(*decision)
            return out
        gates, _ = gate(x)
        given = (
            _tokens(gates.expand(*x.shape[:-1], -1)).T,
            None,
            None,
            ranks_EX[: self.num_experts],
            gate.select_experts,
        )
        return LinearWithExperts.apply(x, z, *base, *experts, *given)[0]

    def _only_output_is_asked(self) -> bool:
        """Whether nobody asks for gradients or for what the gate decided; a compiler fuses as it likes."""
        return not torch.is_grad_enabled() and not self.gate.recorders and not torch.compiler.is_compiling()

    def _infer(self, x: Tensor) -> Tensor:
        """The output alone, where it is found by fewer and smaller steps."""
        out, x_ND, gate = self.base_layer(x).contiguous(), _tokens(x), self.gate
        gates_EN, _ = gate.select_experts(_gate_logits(gate.weight, gate.bias, x_ND))
        gated_NX = x_ND @ self.lora_A.flatten(0, 1).T
        gated_NX *= gates_EN.T @ self.ranks_of_expert_EX
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
