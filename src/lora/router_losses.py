"""Losses on a routing record: they balance the experts and keep logits small."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .recording import RouterCall, RoutingRecord


def load_balancing_loss(routing: RoutingRecord, expert_counts: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return how unevenly experts are used: 1 when even, E / K when the same K experts take everything.

    Per layer E · Σ_e f_e P_e, averaged over layers. f_e is expert e's share of the selections, and P_e its mean
    probability under the softmax over all experts (Fedus et al., Switch Transformers, 2022, equations 4–6, which this
    equals for K = 1). The gradient flows through P. Tokens of all calls of a layer are taken together.

    With a null expert, balance is asked among the experts only, given that the null expert was not selected: f counts
    selections of experts, P is the softmax over the experts' logits, and a token weighs in P by the number of experts
    that it selected. How often the null expert is selected is up to the task: its logit gets no gradient here.

    Args:
        routing: decisions of the routers.
        expert_counts: :meth:`RoutingRecord.expert_counts` of the whole batch, where ``routing`` is only a part of it;
            None: ``routing`` is the whole batch.

    Returns:
        A scalar; 0 where nothing was routed. The parts' losses add up to the whole batch's.
    """
    counts = routing.expert_counts() if expert_counts is None else expert_counts
    return _mean([_layer_balance(call, counts[name].to(call.logits_NE)) for name, call in routing.layers().items()])


def router_z_loss(routing: RoutingRecord, expert_counts: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return how large the logits are: the mean over tokens of logsumexp(logits)², averaged over layers.

    The null expert's logits are included. Source: Zoph et al., ST-MoE, 2022, equation 5. Arguments and result are as
    of :func:`load_balancing_loss`.
    """
    counts = routing.expert_counts() if expert_counts is None else expert_counts
    return _mean([_layer_z(call, counts[name].to(call.logits_NE)) for name, call in routing.layers().items()])


def _layer_balance(call: RouterCall, count_E: Tensor) -> Tensor:
    """Return a layer's loss, given how often all tokens of the batch selected each choice (E*,)."""
    per_token_N = call.selected_NE[:, : call.num_experts].sum(dim=1)
    count_E = count_E[: call.num_experts]
    # Where every token selected the null expert only, all sums are 0 and so is the loss.
    total = count_E.sum().clamp(min=1)
    f_E = count_E / total
    probabilities_EN = call.logits_NE.T[: call.num_experts].softmax(dim=0)
    p_E = (probabilities_EN * per_token_N).sum(dim=1) / total
    return call.num_experts * (f_E * p_E).sum()


def _layer_z(call: RouterCall, count_E: Tensor) -> Tensor:
    tokens = count_E.sum() / call.top_k
    return call.logits_NE.T.logsumexp(dim=0).square().sum() / tokens


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean() if losses else torch.zeros(())
