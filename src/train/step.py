"""One optimizer step: the losses of its objectives, their gradients, and the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import RouterConfig
from ..core import distributed
from ..core.errors import UserError
from ..lora.injection import routed_layers
from ..lora.recording import record_routing
from ..lora.router_losses import load_balancing_loss, router_z_loss
from ..tasks.base import LossTerms, Task
from .feature_cache import FrozenEncoder
from .precision import Precision
from .safety import NotFinite, bad_gradients, bad_weights, quoted, watching_layers

_BAD = "bad"  # among the losses that processes exchange: in how many of them the total is not finite


class Objective(Protocol):
    """A loss that a step minimises beside the supervised one; :class:`src.tasks.base.Distillation` is one.

    ``source`` says in messages what it is computed on.
    """

    source: str

    def is_due(self, step: int) -> bool:
        """Whether this step has it."""
        ...

    def losses(self, step: int) -> LossTerms:
        """Return this process' share of the loss, the same one whenever the step is repeated."""
        ...


@dataclass
class StepResult:
    """What a step did.

    Attributes:
        losses: by name, of all processes together; empty where the step was skipped.
        expert_use: per routed layer, each expert's share of choices, summed over micro-batches.
    """

    losses: dict[str, float] = field(default_factory=dict)
    expert_use: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: dict[str, float], expert_counts: dict[str, Tensor]) -> None:
        """Add an objective's share."""
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        for layer, counts_E in expert_counts.items():
            self.expert_use[layer] = self.expert_use.get(layer, 0) + counts_E / counts_E.sum()


class SupervisedLoss:
    """The task's loss on labelled items, and the losses of the routers.

    Args:
        task: says the loss.
        model: in training mode.
        encoder: runs a frozen encoder apart, or not at all where its features are kept; None: there is none.
        precision: of the forward pass.
        router: weights of the routers' losses.
        seed: random seed of the run.
    """

    def __init__(
        self, task: Task, model: nn.Module, encoder: FrozenEncoder | None, precision: Precision, router: RouterConfig,
        seed: int,
    ) -> None:  # fmt: skip
        self.task, self.model, self.encoder, self.precision = task, model, encoder, precision
        self.router, self.seed = router, seed
        self.routed = bool(routed_layers(model))
        self._totals: Any = None

    def losses(self, batch: Any, step: int, micro_step: int, micro_steps: int) -> LossTerms:
        """Return this process' share of a micro-batch's loss, averaged over the step's micro-batches.

        Args:
            batch: this process' part of the micro-batch; None where it has none.
            step: steps done before this one.
            micro_step: number of the micro-batch, from 0 on.
            micro_steps: how many there are.
        """
        parts = distributed.all_gather_object(None if batch is None else self.task.batch_totals(batch))
        self._totals = self.task.merge_totals([part for part in parts if part is not None])
        if batch is None:
            return LossTerms(None, {}, distributed.all_reduce_sum({}))
        with record_routing(self.model) as routing:
            losses = self._forward(batch, step, micro_step)
        own = {layer: counts_E.cpu() for layer, counts_E in routing.expert_counts().items()}
        counts = distributed.all_reduce_sum(own)
        if self.routed:
            losses["balance"] = load_balancing_loss(routing, counts)
            losses["router_z"] = router_z_loss(routing, counts)
            weighted = self.router.balance_weight * losses["balance"] + self.router.z_weight * losses["router_z"]
            losses["total"] = losses["total"] + weighted
        if not losses["total"].requires_grad:
            raise UserError(
                "lora.target_modules: no adapter takes part in the training forward, nothing can be learned",
                "adapters.no-gradient",
            )
        logged = {name: value / micro_steps for name, value in losses.items()}
        return LossTerms(logged["total"], logged, counts)

    def _forward(self, batch: Any, step: int, micro_step: int) -> dict[str, Tensor]:
        """The task's losses; always the same ones for the same part of a batch at the same step."""
        self.task.seed_draws(self.model, distributed.rank(), self.seed, step, micro_step)
        with self.precision.training():
            features = self.encoder(batch) if self.encoder is not None else None
            return self.task.losses(self.model, batch, self._totals, features)

    def diagnose(self, terms: LossTerms, batch: Any, step: int, micro_step: int) -> NotFinite:
        """Return what is wrong: weights are bad already, or a layer, which trying the batch once more finds."""
        if terms.total is None or terms.is_finite:
            return NotFinite.elsewhere()
        if layers := bad_weights(self.model):
            cause = f": weights are not finite, of {quoted(layers)}"
        else:
            with torch.no_grad(), watching_layers(self.model) as layers:
                self._forward(batch, step, micro_step)
            cause = f": the first layer to give such numbers is {layers[0]}" if layers else ""
        return NotFinite(f"the loss is {terms.total.item()}", ", ".join(batch.names) + cause, [batch])


class TrainStep:
    """Takes optimizer steps: ``step(micro_batches, number)``.

    Args:
        model: in training mode.
        supervised: the loss on labelled items.
        objectives: what is minimised beside it.
        optimizer, schedule, scaler: of the model's parameters that train.
        max_grad_norm: gradients are clipped to it; None: they are not.
    """

    def __init__(
        self, model: nn.Module, supervised: SupervisedLoss, objectives: Sequence[Objective],
        optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR,
        scaler: torch.amp.GradScaler, max_grad_norm: float | None,
    ) -> None:  # fmt: skip
        self.model, self.supervised, self.objectives = model, supervised, list(objectives)
        self.optimizer, self.schedule, self.scaler = optimizer, schedule, scaler
        self.max_grad_norm = max_grad_norm or math.inf

    def __call__(self, micro_batches: Sequence[Any], step: int) -> StepResult:
        """Take a step on micro-batches, each with the same weight.

        Args:
            micro_batches: this process' part of each; None where it has none of one.
            step: steps done before this one.

        Raises:
            NotFinite: a loss or a gradient is not; in all processes. Weights are as they were.
            UserError: nothing can be learned.
        """
        result = StepResult()
        for micro_step, batch in enumerate(micro_batches):
            terms = self.supervised.losses(batch, step, micro_step, len(micro_batches))
            if not self._backward(terms, result):
                raise self.supervised.diagnose(terms, batch, step, micro_step)
        for objective in self.objectives:
            if objective.is_due(step):
                terms = objective.losses(step)
                if not self._backward(terms, result):
                    raise NotFinite.of_terms(terms, objective.source)
        distributed.sum_gradients([p for p in self.model.parameters() if p.requires_grad])
        self._check_gradients(micro_batches, step)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        result.losses["grad_norm"] = float(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return result

    def _backward(self, terms: LossTerms, result: StepResult) -> bool:
        """Add an objective's gradients and losses; returns False, with nothing added, where a total is not finite."""
        own = {name: float(value.detach()) for name, value in terms.logged.items()}
        losses = distributed.all_reduce_sum({**own, _BAD: float(not terms.is_finite)})
        if losses.pop(_BAD):
            return False
        if terms.total is not None:
            self.scaler.scale(terms.total).backward()
        result.add(losses, dict(terms.expert_counts))
        return True

    def _check_gradients(self, micro_batches: Sequence[Any], step: int) -> None:
        """Undo the loss' scale, and refuse gradients that are not finite, or absent in the first step."""
        if step == 0 and not any(p.grad is not None and p.grad.any() for p in self.model.parameters()):
            raise UserError(
                "no trainable parameter got a gradient in the first step; check lora.target_modules",
                "adapters.no-gradient",
            )
        self.scaler.unscale_(self.optimizer)
        if layers := bad_gradients(self.model):
            self.scaler.update()  # to a smaller scale, where there is one
            own = [batch for batch in micro_batches if batch is not None]
            names = ", ".join(name for batch in own for name in batch.names)
            raise NotFinite(f"the gradient of {quoted(layers)} is not finite", names, own, of_gradient=True)

    def skip(self) -> None:
        """Leave a step out: no weight moves, the learning rate goes on."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.step()  # without gradients nothing moves; the schedule wants to come after one
        self.schedule.step()
