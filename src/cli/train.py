"""Fine-tune SAM 2 as a YAML says, then print what was gained on the new domain and what was forgotten on the others."""

from __future__ import annotations

import argparse
import logging
import sys

from . import command

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> int | None:
    if arguments.init is not None:
        from .init import write_config

        write_config(arguments.init, arguments.output)
        return None
    from ..config import load_config

    extend = [] if arguments.extend is None else [f"training.extend={arguments.extend}"]
    config = load_config(arguments.config, arguments.overrides + extend)

    logger.info(f"{arguments.config}: read; loading SAM 2")  # takes seconds
    if arguments.dry_run:
        from ..train.dry_run import dry_run

        return 0 if dry_run(config) else 2
    from ..core import distributed
    from ..core.errors import Stopped
    from ..evaluation.run import evaluate  # after the config, whose mistakes are told at once
    from ..train.board import write_results
    from ..train.resume import resume_command
    from ..train.trainer import Trainer

    with distributed.process_group(config.training.device):
        try:
            trainer = Trainer(config, arguments.resume, arguments.force)
            best = trainer.fit()
        except Stopped as stop:
            raise Stopped(stop.number, f"{stop.where}; go on with: {resume_command(sys.argv)}") from None
        shown, step = trainer.board_folder, trainer.progress.step
        del trainer  # evaluation needs the memory
        evaluation = evaluate(config, best)
        if distributed.is_main_process():
            print(evaluation.tables())
            write_results(shown, step, config, evaluation.comparisons)
    return None


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope train --config src/configs/mope.yaml --set training.learning_rate=5e-4")
    task = parser.add_mutually_exclusive_group(required=True)
    command.add_config_argument(task)
    task.add_argument("--init", metavar="FOLDER", help="look at the data in a folder and write a YAML that suits them")
    parser.add_argument("--output", metavar="YAML", help="the file that --init writes (default: FOLDER's name.yaml)")
    parser.add_argument(
        "--dry-run", action="store_true", help="build all, run a few steps, say what memory and time the run takes"
    )
    command.add_override_argument(parser)
    command.add_skip_bad(parser)
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
    return parser
