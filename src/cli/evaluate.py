"""Score the base and the adapted model side by side, on the run's domain and on those that must not be forgotten."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.errors import UserError
from . import command


def main(arguments: argparse.Namespace) -> None:
    """Print the tables of base and adapted model."""
    from ..config import load_config

    clicks = [] if arguments.clicks is None else [f"evaluation.clicks={arguments.clicks}"]
    config = load_config(arguments.config, arguments.overrides + clicks)
    checkpoint = arguments.checkpoint
    if checkpoint is None and config.lora.method != "none":
        checkpoint = Path(config.output_dir) / "checkpoints" / "best.pt"
        if not checkpoint.exists():
            raise UserError(
                f"{checkpoint} does not exist: train first, or name a checkpoint with --checkpoint",
                "evaluate.no-checkpoint",
            )
    from ..core import distributed  # after the config, whose mistakes are reported at once
    from ..evaluation.run import evaluate

    with distributed.process_group(config.training.device):
        evaluation = evaluate(config, checkpoint, arguments.split, arguments.prompt, arguments.save_masks)
        if distributed.is_main_process():
            print(evaluation.to_json() if arguments.json else evaluation.tables())


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(
        __doc__, "sam2-mope evaluate --config src/configs/mope.yaml --split test --prompt box --clicks 8"
    )
    command.add_config_arguments(parser)
    command.add_skip_bad(parser)
    parser.add_argument("--checkpoint", metavar="PT", help="checkpoint or adapter folder (default: the run's best.pt)")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of the run's own domain")
    parser.add_argument("--prompt", choices=["mask", "box", "point"], help="default: evaluation.prompt")
    parser.add_argument(
        "--clicks", metavar="N", help="also segment single images, from a box and up to N clicks (evaluation.clicks)"
    )
    parser.add_argument(
        "--save-masks", action="store_true", help="write the predicted masks: PNG for official tools, JSON of concepts"
    )
    parser.add_argument("--json", action="store_true", help="print results.json in place of the tables")
    return parser
