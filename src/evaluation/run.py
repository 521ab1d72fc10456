"""Score the base and the adapted model side by side, on the run's domains and on those that must not be forgotten."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config, ModelConfig, Prompt, Split
from ..core import distributed
from ..core.console import PROGRAM
from ..core.device import pick_device
from ..core.errors import UserError
from ..gating.domain_gate import DomainGate
from ..gating.switching import gated
from ..lora.adapter import list_groups
from ..lora.expert_groups import active_adapter
from ..models.build import build_model
from ..models.checkpoint import load_trained, saved_gate
from ..models.spec import model_spec
from ..tasks.base import Task, get_task
from .card import card_folder, write_card
from .report import results_json, write_report
from .results import Comparison, EvaluatedDomain
from .tables import results_text

logger = logging.getLogger(__name__)

TITLE = "What was gained, and what was forgotten"


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        about: what the scores mean, in one line.
        comparisons: base and adapted model, domain by domain; in several processes only the first one has them.
        facts: what was evaluated, and how, as results.json says it.
    """

    about: str
    comparisons: list[Comparison]
    facts: dict[str, Any] = field(default_factory=dict)

    def tables(self) -> str:
        """Return the tables as plain text."""
        return results_text(self.comparisons, self.about)

    def to_json(self) -> str:
        """Return what results.json holds."""
        return json.dumps(results_json(self.comparisons, self.facts), indent=2)


def evaluate(
    config: Config,
    checkpoint: str | Path | None,
    split: Split = "valid",
    prompt: Prompt | None = None,
    save_masks: bool = False,
) -> Evaluation:
    """Score both models, and write results.json, results.md and pictures into the output folder.

    Several processes share the data to score; the first one does all else. Scores of the run's own adapter also go
    into the model card in its folder.

    Args:
        config: the run.
        checkpoint: a checkpoint or adapter folder of the run; None evaluates the base alone.
        split: the split of the domains that the run learned.
        prompt: how objects are prompted; None takes ``evaluation.prompt``.
        save_masks: whether to write the predicted masks into ``predictions`` in the output folder.
    """
    task = get_task(model_spec(config.model.name).task)(config)
    if prompt is not None and not task.takes_prompts:
        raise UserError(
            f"--prompt {prompt}: model.name {config.model.name} finds phrases, and nothing is prompted from the truth; "
            "leave it out",
            code="evaluation.no-prompts",
        )
    settings, prompt = config.evaluation, prompt or config.evaluation.prompt
    domains = task.evaluation_domains(split)
    folder = Path(config.output_dir)
    models = _build_models(config, checkpoint)
    gate = saved_gate(models["base"], checkpoint)
    masks = folder / "predictions" if save_masks else None
    comparisons = [_compare(task, models, gate, domain, prompt, masks, settings.clicks) for domain in domains]
    distributed.barrier()
    about = task.describe_scores(prompt)
    if not distributed.is_main_process():
        return Evaluation(about, [])
    facts = {
        "about": about,
        **({"prompt": prompt} if task.takes_prompts else {}),
        "split": split,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    evaluation = Evaluation(about, [comparison for comparison in comparisons if comparison is not None], facts)
    write_report(folder, evaluation.comparisons, facts, TITLE, settings.overlays)
    adapter = card_folder(folder, checkpoint)
    if adapter is not None:
        write_card(adapter, config, evaluation.comparisons, split, about, gate)
    logger.info(f"written to {folder / 'results.json'} and results.md, pictures in {folder / 'overlays'}")
    if masks is not None:
        logger.info(f"masks in {masks}")
    return evaluation


def _compare(
    task: Task,
    models: Mapping[str, nn.Module],
    gate: DomainGate | None,
    domain: EvaluatedDomain,
    prompt: Prompt,
    masks: Path | None,
    clicks: int,
) -> Comparison | None:
    """Score the models on a domain; in several processes only the first one returns the results.

    Args:
        task: the models' task.
        models: ``base``, and where there is one ``adapted``.
        gate: the adapter's domain gate.
        domain: the evaluated data set.
        prompt: how objects are prompted.
        masks: the folder to save predicted masks in.
        clicks: the largest number of clicks on single images; 0: single images are not scored.
    """
    results, images = {}, {}
    for name, model in models.items():
        label = f"{domain.name}: {name}"
        own_masks = None if masks is None else masks / name / domain.name
        with _adapters_on(model, gate):
            results[name] = task.score_domain(model, domain, prompt, label, own_masks, shard=distributed.shard())
            if clicks and distributed.is_main_process():
                images[name] = task.score_images(model, domain, clicks, label)
    if not distributed.is_main_process():
        return None
    both = (images["base"], images.get("adapted")) if images else None
    decided = None
    if gate is not None:
        decided = task.decide(models["base"], gate, domain, results["base"], results["adapted"])
    return Comparison(domain, results["base"], results.get("adapted"), both, decided)


def _adapters_on(model: nn.Module, gate: DomainGate | None) -> AbstractContextManager[None]:
    """Keep adapters on for every input: the nearest domain's expert group, or without a domain gate the active one.

    Raises:
        UserError: there are several groups, none is active, and no domain gate can choose one.
    """
    groups = list_groups(model)
    if len(groups) > 1 and gate is not None:
        return gated(model, gate, "on")
    if groups and active_adapter(model) is None:
        raise UserError(
            f"the adapter holds the groups {', '.join(groups)} and no domain gate to choose between them: "
            f"take one out with {PROGRAM} groups extract",
            code="evaluation.no-gate-for-groups",
        )
    return nullcontext()


def _build_models(config: Config, checkpoint: str | Path | None) -> dict[str, nn.Module]:
    """Return ``base``, and with a checkpoint ``adapted``, on the run's device."""
    device = pick_device(config.training.device)
    models: dict[str, nn.Module] = {"base": _build_base(config.model, config.training.seed).to(device)}
    if checkpoint is not None:
        adapted = _build_base(config.model, config.training.seed)
        load_trained(adapted, checkpoint)
        models["adapted"] = adapted.to(device)
    return models


def _build_base(model: ModelConfig, seed: int) -> nn.Module:
    """Return the run's base; without a checkpoint it has the random weights that training began with."""
    torch.manual_seed(seed)
    return build_model(model)
