"""Score the base and the adapted SAM 2 side by side, on the run's domain and on those that must not be forgotten."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sam2.modeling.sam2_base import SAM2Base

from src import cli
from src.config import Config, Prompt, Split, load_config
from src.errors import UserError
from src.evaluation.forgetting import describe, evaluate_domain, kept_domains, target_domain
from src.evaluation.report import Comparison, table, write_report
from src.model.build import build_model, pick_device
from src.model.checkpoint import load_trained


def evaluate(
    config: Config, checkpoint: str | Path | None, split: Split = "valid", prompt: Prompt | None = None
) -> list[Comparison]:
    """Evaluate, print the table, and write results.json, results.md and overlays into the output folder.

    Args:
        config: the run.
        checkpoint: a checkpoint or adapter folder of the run; None evaluates the base alone.
        split: which split of the domains that the run learned.
        prompt: None takes ``evaluation.prompt``.
    """
    prompt = prompt or config.evaluation.prompt
    learned = [target_domain(config, data, split) for data in config.dataset.sets]
    domains = [*learned, *kept_domains(config)]
    device = pick_device(config.training.device)
    base, adapted = _build_base(config).to(device), None
    if checkpoint is not None:
        adapted = _build_base(config)
        load_trained(adapted, checkpoint)
        adapted.to(device)
    comparisons = [
        Comparison(
            domain,
            evaluate_domain(base, domain, prompt, f"{domain.name}: base"),
            evaluate_domain(adapted, domain, prompt, f"{domain.name}: adapted") if adapted is not None else None,
        )
        for domain in domains
    ]
    folder = Path(config.output_dir)
    about = {
        "about": describe(config, prompt),
        "prompt": prompt,
        "split": split,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    write_report(folder, comparisons, about, "What was gained, and what was forgotten", config.evaluation.overlays)
    print(f"\n{about['about']}\n\n{table(comparisons)}\n")
    print(f"written to {folder / 'results.json'} and results.md, pictures in {folder / 'overlays'}")
    return comparisons


def _build_base(config: Config) -> SAM2Base:
    """The base of the run: without a checkpoint the random weights that its training began with."""
    torch.manual_seed(config.training.seed)
    return build_model(config.model)


def main(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.overrides)
    checkpoint = arguments.checkpoint
    if checkpoint is None and config.lora.method != "none":
        checkpoint = Path(config.output_dir) / "checkpoints" / "best.pt"
        if not checkpoint.exists():
            raise UserError(f"{checkpoint} does not exist: train first, or name a checkpoint with --checkpoint")
    evaluate(config, checkpoint, arguments.split, arguments.prompt)


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python evaluate.py --config src/configs/mope.yaml --split test --prompt box")
    cli.add_config_arguments(parser)
    cli.add_skip_bad(parser)
    parser.add_argument("--checkpoint", metavar="PT", help="checkpoint or adapter folder (default: the run's best.pt)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of the run's own domain")
    parser.add_argument("--prompt", choices=["mask", "box", "point"], help="default: evaluation.prompt")
    cli.run(main, parser)
