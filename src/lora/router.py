"""The top-k gate, the record of what gates chose, and how that record balances experts: by losses, or by a bias.

``with record_routing(model) as routing:`` collects every call of every gate; :func:`load_balancing_loss` and
:func:`router_z_loss` are pure functions of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Level = Literal["token", "frame", "video"]


@dataclass(frozen=True)
class GateCall:
    """What one gate decided N times: per token, or per frame. E* is E, or E + 1 with a null expert, which comes last.

    Attributes:
        logits_NE: (N, E*), float32, with the graph they were computed in.
        chosen_NE: (N, E*), bool, K of them true for each token.
        num_experts: E, the experts that add something.
        top_k: K.
    """

    logits_NE: Tensor
    chosen_NE: Tensor
    num_experts: int
    top_k: int

    def chosen_NK(self) -> Tensor:
        """(N, K), the numbers of the chosen experts, the one with the largest weight first."""
        return self.logits_NE.masked_fill(~self.chosen_NE, -math.inf).topk(self.top_k).indices


class TopKGatingNetwork(nn.Module):
    """A linear gate that chooses K of E experts per token, weighted by a softmax over the chosen logits.

    It computes in float32 outside autocast, because routing in half precision flips choices and destabilises training
    (Fedus et al., Switch Transformers, 2022, section 2.4). The softmax runs over the K chosen logits only (Shazeer et
    al., 2017, section 2.1), so with K = 1 the gate's weight is the constant 1: then only the losses on the routing, not
    the task, train the gate.

    A decision holds for a token; or, at level ``frame``, for all tokens of an element of the batch in one call, and is
    made on their mean; or, at level ``video``, for all tokens of an object in a whole video: it is made on ``context``,
    the mean of the object's memory on its first prompted frame, which every call of SAM 2's memory attention is given
    (:func:`watch_memory`). The context is the same on all frames, so training, video predictor and streaming decide
    alike, and nothing has to be remembered between frames or reset between videos.

    Args:
        in_features: D; at level ``video`` the features of the context.
        num_experts: E, without the null expert.
        top_k: K, 1 ≤ K ≤ E, or E + 1 with a null expert.
        null_expert: add a choice, in the last row, that contributes nothing: a token that chooses it gives that share
            of its weight to no expert.
        jitter: in training the gate's input is multiplied by uniform noise within 1 ± jitter (Switch Transformers,
            section 2.2).
        bias: whether there is a bias.
        device: where the parameters are made.
        level: what a decision holds for.
        noise: in training, normal noise of this standard deviation is added to the logits that choose and weigh
            experts (Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021, section 2.2, who take 1 / E;
            the noise of Shazeer et al. has a learned deviation). The logits that are returned are without it.
        balance_bias: keep a number per expert, ``balance_bias`` (E*,), that is added to the logits for the choice but
            not for the weights: balance without a loss (:func:`update_balance_bias`).

    Attributes:
        context: (B, D), what decisions at level ``video`` are made on; None before memory attention first ran.

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
        self.recorders: list[list[GateCall]] = []
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random weights, so that tokens differ in their choices from the start; no bias towards any expert."""
        nn.init.normal_(self.weight, std=0.02)
        for bias in (self.bias, self.balance_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, D) → gates (…, E), zero where not chosen, and logits (…, E or E + 1); float32.

        The gates of a token sum to 1, less the weight of the null expert where it was chosen. At the levels ``frame``
        and ``video`` the results have size 1 in the dimensions between the first and the last.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            x = self._decision_input(x, dtype).to(dtype)
            if self.training and self.jitter > 0:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            logits_EN = self.weight.to(dtype) @ x.reshape(-1, x.shape[-1]).T
            if self.bias is not None:
                logits_EN = logits_EN + self.bias.to(dtype).unsqueeze(1)
            gates_EN, selected_EN = self.select_experts(logits_EN)
        self.record(logits_EN, selected_EN)
        shape = (*x.shape[:-1], len(logits_EN))
        return gates_EN.T.reshape(shape)[..., : self.num_experts], logits_EN.T.reshape(shape)

    def decides_on(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether it decides per token on ``x`` itself, without noise on it, and on numbers of just this dtype."""
        plain = self.level == "token" and not (self.training and self.jitter > 0)
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        same = x.dtype == self.weight.dtype == wide == dtype
        return plain and same and not torch.is_autocast_enabled(x.device.type)

    def select_experts(self, logits_EN: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (E*, N) → gates (E*, N), zero where not chosen, and which are chosen, bool (E*, N).

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
        """Hand a decision for N tokens, (E*, N) both, to the scopes of :func:`record_routing` that are open."""
        # Activation checkpointing runs the forward a second time inside the backward pass: the same call, not another.
        if not self.recorders or torch._C._current_graph_task_id() != -1:
            return
        call = GateCall(logits_EN.T, selected_EN.T, self.num_experts, self.top_k)
        for calls in self.recorders:
            calls.append(call)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, null_expert={self.null_expert}"


@dataclass
class RoutingRecord:
    """What every gate of a model did while it was recorded.

    Attributes:
        calls: dotted name of each routed layer → its calls in order; empty for a layer that did not run.
    """

    calls: dict[str, list[GateCall]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget what was recorded so far, and go on recording: what comes next is counted by itself."""
        for calls in self.calls.values():
            calls.clear()

    def layers(self) -> dict[str, GateCall]:
        """The layers that routed at least one token, each with the tokens of all its calls as one."""
        joined = {}
        for name, calls in self.calls.items():
            if sum(len(call.logits_NE) for call in calls):
                # put together experts first, as gates make them
                logits_EN = torch.cat([call.logits_NE.T for call in calls], dim=1)
                selected_EN = torch.cat([call.chosen_NE.T for call in calls], dim=1)
                joined[name] = GateCall(logits_EN.T, selected_EN.T, calls[0].num_experts, calls[0].top_k)
        return joined

    def choices(self) -> dict[str, Tensor]:
        """Per layer, how often each expert was chosen, int64 (E,), or (E + 1,) with the null expert last."""
        return {name: call.chosen_NE.sum(dim=0) for name, call in self.layers().items()}

    def usage(self) -> dict[str, Tensor]:
        """Per layer, each expert's share of all choices, (E,) or (E + 1,) with the null expert last; sums to 1."""
        return {name: chosen_E / chosen_E.sum() for name, chosen_E in self.choices().items()}

    def entropy(self) -> dict[str, float]:
        """Per layer, the mean over tokens of the entropy of the full softmax, in nats: 0 (sure) to log E (even)."""
        with torch.no_grad():
            return {
                name: torch.special.entr(call.logits_NE.softmax(-1)).sum(-1).mean().item()
                for name, call in self.layers().items()
            }


def watch_memory(memory_attention: nn.Module) -> None:
    """Give the gates of level ``video`` inside SAM 2's memory attention their context whenever it is called."""
    hooks = memory_attention._forward_pre_hooks
    if _provide_context not in hooks.values():
        memory_attention.register_forward_pre_hook(_provide_context, with_kwargs=True)


def _provide_context(memory_attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Memory (M, B, C) begins with the tokens of the first prompted frame, as many as the current frame (N, B, D) has.

    The current frame is ``curr`` in SAM 2 and ``current_vision_features`` in transformers.

    It is detached, because gates keep it: activation checkpointing asks for it again in the backward pass. This is a
    plain function that looks the gates up, so that a copied model does not feed the gates of the original.
    """
    given = dict(zip(("curr", "memory"), args, strict=False)) | kwargs
    current = given["curr"] if "curr" in given else given["current_vision_features"]
    if isinstance(current, list):
        current = current[0]
    context_BC = given["memory"][: len(current)].detach().mean(dim=0, dtype=torch.float32)
    for module in memory_attention.modules():
        if isinstance(module, TopKGatingNetwork) and module.level == "video":
            module.context = context_BC


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record what each gate of the model does inside the scope, including several calls of the same layer.

    Scopes may be nested; each records all that runs inside it. A forward that non-reentrant activation checkpointing
    (``use_reentrant=False``) repeats in the backward pass counts once. Reentrant checkpointing is not supported: it
    runs the first forward without a graph, so losses on the record would train nothing.
    """
    gates = _gates(model)
    record = RoutingRecord({name: [] for name in gates})
    for name, gate in gates.items():
        gate.recorders.append(record.calls[name])
    try:
        yield record
    finally:
        for name, gate in gates.items():
            # By identity: the lists of two scopes are equal while both are empty.
            gate.recorders[:] = [calls for calls in gate.recorders if calls is not record.calls[name]]


def load_balancing_loss(routing: RoutingRecord, choices: dict[str, Tensor] | None = None) -> Tensor:
    """How unevenly experts are used: 1 when even, E / K when the same K experts have every choice and all probability.

    Per layer E · Σ_e f_e P_e, averaged over layers: f_e is expert e's share of the choices and P_e its mean probability
    under the softmax over all experts (Fedus et al., Switch Transformers, 2022, equations 4–6, which this equals for
    K = 1). The gradient flows through P. Tokens of all calls of a layer are pooled.

    With a null expert, balance is asked among the experts only, given that the null expert was not chosen: f counts
    choices of experts, P is the softmax over the experts' logits, and a token weighs in P by the number of experts that
    it chose. How often the null expert is chosen is up to the task: its logit gets no gradient from this loss.

    Args:
        routing: what gates did.
        choices: of a batch that was routed in several parts, the :meth:`RoutingRecord.choices` of all parts together,
            where ``routing`` is of one of them; None: it is of all.

    Returns:
        A scalar; 0 where nothing was routed. Of a part, its share: the parts' add up to the whole batch's.
    """
    choices = routing.choices() if choices is None else choices
    return _mean([_layer_balance(call, choices[name].to(call.logits_NE)) for name, call in routing.layers().items()])


def _layer_balance(call: GateCall, chosen_E: Tensor) -> Tensor:
    """The balance of a layer, of which all tokens together made these choices (E*,)."""
    per_token_N = call.chosen_NE[:, : call.num_experts].sum(dim=1)
    chosen_E = chosen_E[: call.num_experts]
    # Where every token chose the null expert only, all sums are 0 and so is the loss.
    total = chosen_E.sum().clamp(min=1)
    f_E = chosen_E / total
    probabilities_EN = call.logits_NE.T[: call.num_experts].softmax(dim=0)
    p_E = (probabilities_EN * per_token_N).sum(dim=1) / total
    return call.num_experts * (f_E * p_E).sum()


@torch.no_grad()
def update_balance_bias(model: nn.Module, usage: dict[str, Tensor], rate: float) -> None:
    """Balance without a loss: after an optimizer step, make experts used too much a little less likely to be chosen.

    Each expert's ``balance_bias`` moves by ``rate``, up where its use was below the layer's mean and down where above,
    and is then shifted to mean 0 over the experts, which changes no choice among them and leaves the null expert's
    chances to the task. Only the choice sees the bias, so the task's gradient is not disturbed. Source: Wang et al.,
    Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, 2024, algorithm 1 (there on sigmoid scores);
    DeepSeek-V3, 2024, section 2.1.2.

    Args:
        model: gates without a balance bias, or that are frozen, stay as they are.
        usage: per layer (E,) or (E + 1,), the use of each expert in this step, in any unit, such as
            :meth:`RoutingRecord.usage` summed over the batches of the step.
        rate: how far a bias moves, in units of logits.
    """
    for name, gate in _gates(model).items():
        if name in usage and gate.balance_bias is not None and gate.weight.requires_grad:
            bias_E = gate.balance_bias[: gate.num_experts]
            use_E = usage[name][: gate.num_experts].to(bias_E)
            bias_E += rate * (use_E.mean() - use_E).sign()
            bias_E -= bias_E.mean()


def router_z_loss(routing: RoutingRecord, choices: dict[str, Tensor] | None = None) -> Tensor:
    """How large the logits are: mean over tokens of logsumexp(logits)², averaged over layers; null expert included.

    Source: Zoph et al., ST-MoE, 2022, equation 5. Arguments and result are as of :func:`load_balancing_loss`.
    """
    choices = routing.choices() if choices is None else choices
    return _mean([_layer_z(call, choices[name].to(call.logits_NE)) for name, call in routing.layers().items()])


def _layer_z(call: GateCall, chosen_E: Tensor) -> Tensor:
    tokens = chosen_E.sum() / call.top_k
    return call.logits_NE.T.logsumexp(dim=0).square().sum() / tokens


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


def _gates(model: nn.Module) -> dict[str, TopKGatingNetwork]:
    """The gates by the dotted names of their layers."""
    return {
        name.removesuffix("gate").removesuffix("."): module
        for name, module in model.named_modules()
        if isinstance(module, TopKGatingNetwork)
    }


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean() if losses else torch.zeros(())
