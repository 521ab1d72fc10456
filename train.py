"""Fine-tune SAM 2 as a YAML says, then print what was gained on the new domain and what was forgotten on the others."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from src import cli


def main(arguments: argparse.Namespace) -> int | None:
    cli.let_speak(cli.is_first_launched)
    if arguments.init is not None:
        initialise(Path(arguments.init), arguments.output)
        return None
    from src.config import load_config

    extend = [] if arguments.extend is None else [f"training.extend={arguments.extend}"]
    config = load_config(arguments.config, arguments.overrides + extend)

    cli.say(f"{arguments.config}: read; loading SAM 2")  # takes seconds
    if arguments.dry_run:
        from src.train.dry_run import dry_run

        return 0 if dry_run(config) else 2
    from evaluate import evaluate  # after the config, whose mistakes are told at once
    from src.errors import Stopped
    from src.train import ranks
    from src.train.board import write_results
    from src.train.resume import resume_command
    from src.train.trainer import Trainer

    with ranks.together(config.training.device):
        try:
            trainer = Trainer(config, arguments.resume, arguments.force)
            best = trainer.fit()
        except Stopped as stop:
            raise Stopped(stop.number, f"{stop.where}; go on with: {resume_command(sys.argv)}") from None
        shown, step = trainer.board_folder, trainer.progress.step
        del trainer  # evaluation needs the memory
        comparisons = evaluate(config, best)
        if ranks.is_first():
            write_results(shown, step, config, comparisons)
    return None


def initialise(folder: Path, output: str | None) -> None:
    """Write a YAML that suits the data in a folder and this machine."""
    cli.say(f"looking at {folder}")  # what comes next takes seconds to import
    from src.train.suggest import write_suggestion

    path = Path(output or f"{Path(os.path.abspath(folder)).name}.yaml")
    write_suggestion(folder, path)
    print(f"written: {path}; next: python train.py --config {path} --dry-run")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python train.py --config src/configs/mope.yaml --set training.learning_rate=5e-4")
    task = parser.add_mutually_exclusive_group(required=True)
    cli.add_config_argument(task)
    task.add_argument("--init", metavar="FOLDER", help="look at the data in a folder and write a YAML that suits them")
    parser.add_argument("--output", metavar="YAML", help="the file that --init writes (default: FOLDER's name.yaml)")
    parser.add_argument(
        "--dry-run", action="store_true", help="build all, run a few steps, say what memory and time the run takes"
    )
    cli.add_override_argument(parser)
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
    parser.add_argument(
        "--extend", metavar="ADAPTER", help="learn the new domain as a further expert group beside an adapter's own"
    )
    cli.run(main, parser)
