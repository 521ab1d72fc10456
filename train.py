"""Fine-tune SAM 2 as a YAML says, then print what was gained on the new domain and what was forgotten on the others."""

from __future__ import annotations

import argparse

from src import cli


def main(arguments: argparse.Namespace) -> None:
    from src.config import load_config

    extend = [] if arguments.extend is None else [f"training.extend={arguments.extend}"]
    config = load_config(arguments.config, arguments.overrides + extend)

    from evaluate import evaluate  # after the config, whose mistakes are told at once: these take seconds to import
    from src.train.trainer import Trainer

    best = Trainer(config, arguments.resume).fit()
    evaluate(config, best)


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python train.py --config src/configs/mope.yaml --set training.learning_rate=5e-4")
    cli.add_config_arguments(parser)
    cli.add_skip_bad(parser)
    parser.add_argument(
        "--resume", metavar="PT", help="go on from a checkpoint, such as experiments/checkpoints/last.pt"
    )
    parser.add_argument(
        "--extend", metavar="ADAPTER", help="learn the new domain as a further expert group beside an adapter's own"
    )
    cli.run(main, parser)
