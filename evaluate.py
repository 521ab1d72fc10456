"""Score the base and the adapted SAM 2 side by side, on the run's domain and on those that must not be forgotten."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from sam2.modeling.sam2_base import SAM2Base

from src import cli
from src.config import Config, Prompt, Split, load_config
from src.errors import UserError
from src.evaluation.card import card_folder, write_card
from src.evaluation.coco_eval import evaluate_images
from src.evaluation.forgetting import describe, evaluate_domain, kept_domains, target_domain, with_gate
from src.evaluation.report import write_report
from src.evaluation.tables import (
    GATE_TITLE,
    IMAGES_TITLE,
    Comparison,
    gate_table,
    image_table,
    legend,
    rates_line,
    table,
)
from src.lora.adapter import list_groups
from src.lora.domain_gate import DomainGate
from src.lora.expert_groups import active_group
from src.model.build import build_model, pick_device
from src.model.checkpoint import load_trained
from src.model.gating import decide_for_frame, gated, saved_gate
from src.train import ranks


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
    domains = [*learned, *kept_domains(config)]
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
                tracked[name] = evaluate_domain(model, domain, prompt, label, masks, part=ranks.part())
                if config.evaluation.clicks and ranks.is_first():
                    images[name] = evaluate_images(model, domain, config.evaluation.clicks, label)
        if not ranks.is_first():
            continue
        both = (images["base"], images.get("adapted")) if images else None
        decided = None
        if gate is not None:
            decide = partial(decide_for_frame, models["base"], gate)
            decided = with_gate(domain, tracked["base"], tracked["adapted"], decide, domain.name in gate.domains)
        comparisons.append(Comparison(domain, tracked["base"], tracked.get("adapted"), both, decided))
    ranks.meet()
    if not ranks.is_first():
        return []
    about = {
        "about": describe(config, prompt),
        "prompt": prompt,
        "split": split,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    write_report(folder, comparisons, about, "What was gained, and what was forgotten", config.evaluation.overlays)
    print("\n".join(["", describe(config, prompt), "", table(comparisons), "", *legend(comparisons), ""]))
    if gate is not None:
        print(f"{GATE_TITLE}\n\n{gate_table(comparisons)}\n\n{rates_line(comparisons)}\n")
    if config.evaluation.clicks:
        print(f"{IMAGES_TITLE}\n\n{image_table(comparisons)}\n")
    adapter = card_folder(folder, checkpoint)
    if adapter is not None:
        write_card(adapter, config, comparisons, split, prompt, gate)
    cli.say(f"written to {folder / 'results.json'} and results.md, pictures in {folder / 'overlays'}")
    if save_masks:
        cli.say(f"masks in {folder / 'predictions'}")
    return comparisons


def _adapters_on(model: SAM2Base, gate: DomainGate | None) -> AbstractContextManager[None]:
    """Adapters on whatever is shown: of several expert groups that of the nearest domain, without a gate the newest."""
    groups = list_groups(model)
    if len(groups) > 1 and gate is not None:
        return gated(model, gate, "on")
    if groups and active_group(model) is None:
        raise UserError(
            f"the adapter holds the groups {', '.join(groups)} and no domain gate to choose between them: "
            "take one out with tools/groups.py extract"
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


def main(arguments: argparse.Namespace) -> None:
    cli.let_speak(cli.is_first_launched)
    clicks = [] if arguments.clicks is None else [f"evaluation.clicks={arguments.clicks}"]
    config = load_config(arguments.config, arguments.overrides + clicks)
    checkpoint = arguments.checkpoint
    if checkpoint is None and config.lora.method != "none":
        checkpoint = Path(config.output_dir) / "checkpoints" / "best.pt"
        if not checkpoint.exists():
            raise UserError(f"{checkpoint} does not exist: train first, or name a checkpoint with --checkpoint")
    with ranks.together(config.training.device):
        evaluate(config, checkpoint, arguments.split, arguments.prompt, arguments.save_masks)


if __name__ == "__main__":
    parser = cli.parser(
        __doc__, "python evaluate.py --config src/configs/mope.yaml --split test --prompt box --clicks 8"
    )
    cli.add_config_arguments(parser)
    cli.add_skip_bad(parser)
    parser.add_argument("--checkpoint", metavar="PT", help="checkpoint or adapter folder (default: the run's best.pt)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of the run's own domain")
    parser.add_argument("--prompt", choices=["mask", "box", "point"], help="default: evaluation.prompt")
    parser.add_argument(
        "--clicks", metavar="N", help="also segment single images, from a box and up to N clicks (evaluation.clicks)"
    )
    parser.add_argument("--save-masks", action="store_true", help="write the tracked masks as PNG, for official tools")
    cli.run(main, parser)
