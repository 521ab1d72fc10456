"""Fine-tune SAM 2 as a YAML says, then print what was gained on the new domain and what was forgotten on the others."""

from __future__ import annotations

import argparse
import sys

from src import cli


def main(arguments: argparse.Namespace) -> None:
    from src.config import load_config

    config = load_config(arguments.config, arguments.overrides)

    from evaluate import evaluate  # after the config, whose mistakes are told at once: these take seconds to import
    from src.errors import Stopped
    from src.train.resume import resume_command
    from src.train.trainer import Trainer

    try:
        best = Trainer(config, arguments.resume, arguments.force).fit()
    except Stopped as stop:
        raise Stopped(stop.number, f"{stop.where}; go on with: {resume_command(sys.argv)}") from None
    evaluate(config, best)


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python train.py --config src/configs/mope.yaml --set training.learning_rate=5e-4")
    cli.add_config_arguments(parser)
    cli.add_skip_bad(parser)
    parser.add_argument(
        "--resume",
        metavar="PT",
        help="go on from a checkpoint, such as experiments/checkpoints/last.pt; auto: from the newest intact one in "
        "output_dir, or from the start if there is none",
    )
    parser.add_argument(
        "--force", action="store_true", help="resume even where config, base or data differ from the earlier run's"
    )
    cli.run(main, parser)
