"""Score the base and the adapted SAM 2 side by side, on the run's domain and on those that must not be forgotten."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from sam2.modeling.sam2_base import SAM2Base

from ..config import Config, Prompt, Split, image_size_of
from ..core import distributed
from ..core.console import PROGRAM
from ..core.device import pick_device
from ..core.errors import UserError
from ..gating.domain_gate import DomainGate
from ..lora.adapter import list_groups
from ..lora.expert_groups import active_adapter
from ..models.checkpoint import load_trained
from ..models.sam2.build import build_model
from ..models.sam2.gate_hooks import decide_for_frame, gated, saved_gate
from ..tasks.tracking.evaluation import describe, evaluate_domain
from ..tasks.tracking.images import evaluate_images
from .card import card_folder, write_card
from .domains import retention_domains, target_domain
from .report import write_report
from .results import with_gate
from .tables import (
    GATE_TITLE,
    IMAGES_TITLE,
    Comparison,
    gate_table,
    image_table,
    legend,
    rates_line,
    table,
)

logger = logging.getLogger(__name__)


def evaluate(
    config: Config,
    checkpoint: str | Path | None,
    split: Split = "valid",
    prompt: Prompt | None = None,
    save_masks: bool = False,
) -> list[Comparison]:
    """Evaluate, print the tables, and write results.json, results.md and pictures into the output folder.

    Several processes share the videos to track; the first one does all else.

    Scores of the run's own adapter also go into the model card in its folder.

    Args:
        config: the run.
        checkpoint: a checkpoint or adapter folder of the run; None evaluates the base alone.
        split: which split of the domains that the run learned.
        prompt: None takes ``evaluation.prompt``.
        save_masks: whether to write the tracked masks into ``predictions`` in the output folder.

    Returns:
        A comparison for each domain, in the first process.
    """
    prompt = prompt or config.evaluation.prompt
    learned = [target_domain(config, data, split) for data in config.dataset.sets]
    domains = [*learned, *retention_domains(config)]
    folder = Path(config.output_dir)
    models = _build_models(config, checkpoint)
    gate = saved_gate(models["base"], checkpoint)
    comparisons = []
    for domain in domains:
        tracked, images = {}, {}
        for name, model in models.items():
            label = f"{domain.name}: {name}"
            masks = folder / "predictions" / name / domain.name if save_masks else None
            with _adapters_on(model, gate):
                tracked[name] = evaluate_domain(model, domain, prompt, label, masks, shard=distributed.shard())
                if config.evaluation.clicks and distributed.is_main_process():
                    images[name] = evaluate_images(model, domain, config.evaluation.clicks, label)
        if not distributed.is_main_process():
            continue
        both = (images["base"], images.get("adapted")) if images else None
        decided = None
        if gate is not None:
            decide = partial(decide_for_frame, models["base"], gate)
            decided = with_gate(domain, tracked["base"], tracked["adapted"], decide, domain.name in gate.domains)
        comparisons.append(Comparison(domain, tracked["base"], tracked.get("adapted"), both, decided))
    distributed.barrier()
    if not distributed.is_main_process():
        return []
    scores_mean = describe(config.model.name, image_size_of(config.model), prompt, config.evaluation.protocol)
    about = {
        "about": scores_mean,
        "prompt": prompt,
        "split": split,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    write_report(folder, comparisons, about, "What was gained, and what was forgotten", config.evaluation.overlays)
    print("\n".join(["", scores_mean, "", table(comparisons), "", *legend(comparisons), ""]))
    if gate is not None:
        print(f"{GATE_TITLE}\n\n{gate_table(comparisons)}\n\n{rates_line(comparisons)}\n")
    if config.evaluation.clicks:
        print(f"{IMAGES_TITLE}\n\n{image_table(comparisons)}\n")
    adapter = card_folder(folder, checkpoint)
    if adapter is not None:
        write_card(adapter, config, comparisons, split, scores_mean, gate)
    logger.info(f"written to {folder / 'results.json'} and results.md, pictures in {folder / 'overlays'}")
    if save_masks:
        logger.info(f"masks in {folder / 'predictions'}")
    return comparisons


def _adapters_on(model: SAM2Base, gate: DomainGate | None) -> AbstractContextManager[None]:
    """Adapters on whatever is shown: of several expert groups that of the nearest domain, without a gate the newest."""
    groups = list_groups(model)
    if len(groups) > 1 and gate is not None:
        return gated(model, gate, "on")
    if groups and active_adapter(model) is None:
        raise UserError(
            f"the adapter holds the groups {', '.join(groups)} and no domain gate to choose between them: "
            f"take one out with {PROGRAM} groups extract"
        )
    return nullcontext()


def _build_models(config: Config, checkpoint: str | Path | None) -> dict[str, SAM2Base]:
    """``base``, and with a checkpoint ``adapted``, on the run's device."""
    device = pick_device(config.training.device)
    models = {"base": _build_base(config).to(device)}
    if checkpoint is not None:
        adapted = _build_base(config)
        load_trained(adapted, checkpoint)
        models["adapted"] = adapted.to(device)
    return models


def _build_base(config: Config) -> SAM2Base:
    """The base of the run: without a checkpoint the random weights that its training began with."""
    torch.manual_seed(config.training.seed)
    return build_model(config.model)
