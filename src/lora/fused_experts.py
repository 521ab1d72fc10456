"""The fast forward and backward of :class:`~src.lora.moe_layer.MoELoRALinear`, equal to its ``reference_forward``.

All experts are computed at once. With X = E · R rows of all experts' A together, h = x Aᵀ is one thin product (N, X);
each of its columns is multiplied by the routing weight of the expert that it belongs to; a second thin product sums
over experts, and is added to the base layer's output in place. Their part of the gradient is added likewise. For the
backward pass x, the routing weights and the weighted thin product are kept, and nothing of the output's size.

Layout decides the speed. Thin products have the N tokens first, as BLAS writes them well in several threads. Routing
weights have experts first, so that what is done for each token runs along memory. ``rank_map_EX``, 1 where a row of A
belongs to the expert and else 0, goes from one to the other: ``routing_EN.T @ rank_map_EX`` repeats an expert's weight
for its rows, ``rank_map_EX @ h_NX.T`` sums over them. This avoids transposing the thin products.

E* is E, or E + 1 with a null expert. It comes last and its row of ``rank_map_EX`` is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..core.torch_compat import without_view
from .adapter import match_dtype

# From logits (E*, N) to routing weights and which experts are selected, (E*, N) both.
SelectExperts: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
Gradients: TypeAlias = tuple[Tensor | None, ...]


def routed_experts(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None,
    lora_A_ERD: Tensor,
    lora_B_EOR: Tensor,
    scale: float,
    router_weight: Tensor,
    router_bias: Tensor,
    select_experts: SelectExperts,
    rank_map_EX: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Route each token of x and return x Wᵀ + bias + scale · Σ_e routing_e · B_e A_e x.

    Args:
        x: (…, D).
        weight: the base layer's (O, D).
        bias: the base layer's (O,).
        lora_A_ERD: first factors of all experts.
        lora_B_EOR: second factors of all experts.
        scale: factor of all experts.
        router_weight: (E*, D).
        router_bias: (E*,).
        select_experts: the router's choice.
        rank_map_EX: see the module's docstring, (E*, X).

    Returns:
        The output (…, O), the router's logits and which experts are selected, (E*, N) both.
    """
    out: tuple[Tensor, Tensor, Tensor] = RoutedExperts.apply(
        x, weight, bias, lora_A_ERD, lora_B_EOR, router_weight, router_bias, scale, select_experts, rank_map_EX
    )
    return out


def weighted_experts(
    x: Tensor,
    z: Tensor | None,
    routing_EN: Tensor,
    *,
    weight: Tensor,
    bias: Tensor | None,
    lora_A_ERD: Tensor,
    lora_B_EOR: Tensor,
    scale: float,
    rank_map_EX: Tensor,
) -> Tensor:
    """Return x Wᵀ + bias + scale · Σ_e routing_e · B_e A_e z for routing weights that were found before.

    Args:
        x: (…, D).
        z: the experts' input (…, D), such as x after dropout; None: x.
        routing_EN: routing weights, zero where an expert is not selected.
        weight: the base layer's (O, D).
        bias: the base layer's (O,).
        lora_A_ERD: first factors of all experts.
        lora_B_EOR: second factors of all experts.
        scale: factor of all experts.
        rank_map_EX: see the module's docstring, (E, X).

    Returns:
        (…, O). A routing weight of 0 gets the gradient 0.
    """
    out: Tensor = WeightedExperts.apply(x, z, weight, bias, lora_A_ERD, lora_B_EOR, routing_EN, scale, rank_map_EX)
    return out


def infer_experts(
    out: Tensor,
    x: Tensor,
    *,
    lora_A_ERD: Tensor,
    lora_B_EOR: Tensor,
    scale: float,
    router_weight: Tensor,
    router_bias: Tensor,
    select_experts: SelectExperts,
    rank_map_EX: Tensor,
) -> Tensor:
    """Add what :func:`routed_experts` adds to the base layer's output in place, by fewer and smaller steps.

    It is for calls without gradients and results differ by rounding. ``out`` is contiguous; arguments are as there.
    """
    x_ND = as_tokens(x)
    routing_EN, _ = select_experts(_router_logits(router_weight, router_bias, x_ND))
    h_NX = x_ND @ lora_A_ERD.flatten(0, 1).T
    h_NX *= routing_EN.T @ rank_map_EX
    as_tokens(out).addmm_(h_NX, lora_B_EOR.transpose(1, 2).flatten(0, 1), alpha=scale)
    return out


class RoutedExperts(torch.autograd.Function):
    """See :func:`routed_experts`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A_ERD: Tensor,
        lora_B_EOR: Tensor,
        router_weight: Tensor,
        router_bias: Tensor,
        scale: float,
        select_experts: SelectExperts,
        rank_map_EX: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, x_ND = _base_output(x, weight, bias), as_tokens(x)
        logits_EN = _router_logits(router_weight, router_bias, x_ND)
        routing_EN, selected_EN = select_experts(logits_EN)
        kept = _add_experts(out, x_ND, lora_A_ERD, lora_B_EOR, scale, routing_EN, rank_map_EX)
        ctx.mark_non_differentiable(selected_EN)
        ctx.save_for_backward(x, weight, router_weight, *kept)
        ctx.scale, ctx.experts = scale, len(lora_A_ERD)
        ctx.set_materialize_grads(False)
        return out, logits_EN, selected_EN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_logits_EN: Tensor | None, _: None) -> Gradients:
        x, weight, router_weight, A_XD, B_XO, routing_EN, h_NX, rank_map_EX = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_A, needs_B, needs_router, needs_router_bias, *_rest = (
            ctx.needs_input_grad
        )
        grad = x.new_zeros(*x.shape[:-1], len(weight)) if grad is None else grad
        x_ND, grad_NO = as_tokens(x), as_tokens(grad)
        g_NO = grad_NO.to(h_NX.dtype)
        grad_h_NX, weighed_EN = _backward_experts(g_NO, B_XO, routing_EN, h_NX, rank_map_EX)
        # The softmax over the selected logits. The null expert's weight multiplies nothing and has no gradient.
        d_logits_EN = torch.addcmul(weighed_EN, routing_EN, weighed_EN.sum(dim=0), value=-1)
        if grad_logits_EN is not None:
            d_logits_EN += grad_logits_EN
        grad_x = None
        if needs_x:
            grad_x_ND = grad_NO @ weight.to(grad.dtype)
            _add_product(grad_x_ND, grad_h_NX, A_XD)
            _add_product(grad_x_ND, d_logits_EN.T, router_weight)
            grad_x = grad_x_ND.view_as(x)
        return (
            grad_x,
            grad_NO.T @ x_ND.to(grad.dtype) if needs_weight else None,
            grad_NO.sum(dim=0) if needs_bias else None,
            _grad_A(grad_h_NX, x_ND, ctx.experts) if needs_A else None,
            _grad_B(h_NX, g_NO, ctx.experts, ctx.scale) if needs_B else None,
            d_logits_EN @ x_ND if needs_router else None,
            d_logits_EN.sum(dim=1) if needs_router_bias else None,
            None,
            None,
            None,
        )


class WeightedExperts(torch.autograd.Function):
    """See :func:`weighted_experts`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        z: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        lora_A_ERD: Tensor,
        lora_B_EOR: Tensor,
        routing_EN: Tensor,
        scale: float,
        rank_map_EX: Tensor,
    ) -> Tensor:
        out = _base_output(x, weight, bias)
        z_ND = as_tokens(x if z is None else z)
        kept = _add_experts(out, z_ND, lora_A_ERD, lora_B_EOR, scale, routing_EN, rank_map_EX)
        ctx.save_for_backward(x, z, weight, *kept)
        ctx.scale, ctx.experts = scale, len(lora_A_ERD)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, z, weight, A_XD, B_XO, routing_EN, h_NX, rank_map_EX = ctx.saved_tensors
        needs_x, needs_z, needs_weight, needs_bias, needs_A, needs_B, needs_routing, *_rest = ctx.needs_input_grad
        x_ND, grad_NO = as_tokens(x), as_tokens(grad)
        z_ND = x_ND if z is None else as_tokens(z)
        g_NO = grad_NO.to(h_NX.dtype)
        grad_h_NX, weighed_EN = _backward_experts(g_NO, B_XO, routing_EN, h_NX, rank_map_EX)
        grad_x = None
        if needs_x:
            grad_x_ND = grad_NO @ weight.to(grad.dtype)
            if z is None:
                _add_product(grad_x_ND, grad_h_NX, A_XD)
            grad_x = grad_x_ND.view_as(x)
        return (
            grad_x,
            (grad_h_NX @ A_XD).view_as(x) if needs_z else None,
            grad_NO.T @ x_ND.to(grad.dtype) if needs_weight else None,
            grad_NO.sum(dim=0) if needs_bias else None,
            _grad_A(grad_h_NX, z_ND, ctx.experts) if needs_A else None,
            _grad_B(h_NX, g_NO, ctx.experts, ctx.scale) if needs_B else None,
            torch.where(routing_EN > 0, weighed_EN / routing_EN, 0) if needs_routing else None,
            None,
            None,
        )


def as_tokens(x: Tensor) -> Tensor:
    """(…, D) → (N, D)."""
    return x.reshape(-1, x.shape[-1])


def _base_output(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The base layer's output, contiguous and no view."""
    out = F.linear(x, weight, bias).contiguous()
    # Older versions of torch return a view here, which forbids what SAM 2 does: it changes keys in place.
    return without_view(out)


def _router_logits(weight: Tensor, bias: Tensor, x_ND: Tensor) -> Tensor:
    """(E*, N). On a CPU a product turns what BLAS writes tokens first, faster than BLAS writes experts first."""
    logits_EN = (x_ND @ weight.T).T
    if not logits_EN.is_cpu:
        return logits_EN + bias.unsqueeze(1)
    return torch.addmm(bias.unsqueeze(1), torch.eye(len(weight), dtype=logits_EN.dtype), logits_EN)


def _add_experts(
    out: Tensor,
    z_ND: Tensor,
    lora_A_ERD: Tensor,
    lora_B_EOR: Tensor,
    scale: float,
    routing_EN: Tensor,
    rank_map_EX: Tensor,
) -> tuple[Tensor, ...]:
    """Add the experts to ``out`` in place, in the dtype of A or of autocast.

    Returns:
        What the backward pass keeps: A (X, D), B with the scale in it (X, O), routing weights, the weighted thin
        product (N, X) and the rank map, all in one dtype.
    """
    A_XD, B_XO = lora_A_ERD.flatten(0, 1), (scale * lora_B_EOR).transpose(1, 2).flatten(0, 1)
    h_NX = match_dtype(z_ND, A_XD) @ A_XD.T
    A_XD, B_XO, routing_EN, rank_map_EX = (each.to(h_NX.dtype) for each in (A_XD, B_XO, routing_EN, rank_map_EX))
    h_NX *= routing_EN.T @ rank_map_EX
    _add_product(as_tokens(out), h_NX, B_XO)
    return A_XD, B_XO, routing_EN, h_NX, rank_map_EX


def _backward_experts(
    g_NO: Tensor, B_XO: Tensor, routing_EN: Tensor, h_NX: Tensor, rank_map_EX: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of z Aᵀ (N, X); and each routing weight times its gradient (E*, N)."""
    grad_h_NX = g_NO @ B_XO.T
    # Times the routing weights, since the thin product from before they were multiplied in is not kept.
    weighed_EN = rank_map_EX @ (grad_h_NX * h_NX).T
    grad_h_NX *= routing_EN.T @ rank_map_EX
    return grad_h_NX, weighed_EN


def _grad_A(grad_h_NX: Tensor, z_ND: Tensor, experts: int) -> Tensor:
    """(E, R, D)."""
    grad_A_XD = grad_h_NX.T @ z_ND.to(grad_h_NX.dtype)
    return grad_A_XD.view(experts, -1, grad_A_XD.shape[1])


def _grad_B(h_NX: Tensor, g_NO: Tensor, experts: int, scale: float) -> Tensor:
    """(E, O, R)."""
    grad_B_XO = (h_NX.T @ g_NO).mul_(scale)
    return grad_B_XO.view(experts, -1, grad_B_XO.shape[1]).transpose(1, 2)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, in place and without an intermediate result where dtypes are the same."""
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b
