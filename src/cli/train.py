"""Fine-tune SAM 2 as a YAML says, then print what was gained on the new domain and what was forgotten on the others."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import command
from .init import add_mask_threshold
from .objectives import extra_objectives

if TYPE_CHECKING:
    from ..config import Config

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> int | None:
    if arguments.init is not None:
        from .init import write_config

        write_config(arguments.init, arguments.output, arguments.mask_threshold)
        return None
    from ..config import load_config

    extend = [] if arguments.extend is None else [f"training.extend={arguments.extend}"]
    config = load_config(arguments.config, arguments.overrides + extend)

    logger.info(f"{arguments.config}: read; loading {config.model.name}")  # takes seconds
    if arguments.dry_run:
        from ..train.dry_run import dry_run

        return 0 if dry_run(config, print, objectives=extra_objectives(config)) else 2
    from ..core import distributed
    from ..core.folder_lock import check_held, main_process_holding
    from ..models.spec import model_spec
    from ..tasks.base import get_task
    from ..train.tensorboard_events import write_results

    folder = Path(config.output_dir)
    with distributed.process_group(config.training.device), main_process_holding(folder, arguments.force):
        best, events, step = fit(config, arguments.resume, arguments.force)
        check_held(folder)
        results = get_task(model_spec(config.model.name).task)(config).evaluate(best)
        if results is not None:
            print(results.text)
            write_results(events, step, results)
    return None


def fit(config: Config, resume: str | None = None, force: bool = False) -> tuple[Path | None, Path, int]:
    """Train; signals such as SIGTERM let the step at hand be finished and saved.

    Returns:
        The best checkpoint, the folder of the run's TensorBoard events, and its last step.

    Raises:
        Stopped: by a signal; its message ends with the command that goes on.
        UserError: as :meth:`~src.train.trainer.Trainer.fit`.
    """
    from ..core import distributed
    from ..core.errors import Stopped
    from ..core.shutdown import GracefulShutdown
    from ..train.resume import resume_command
    from ..train.trainer import Trainer

    trainer = Trainer.from_config(config, resume, force, extra_objectives(config))
    try:
        with GracefulShutdown(tells=distributed.is_main_process()) as shutdown:
            best = trainer.fit(shutdown)
    except Stopped as stop:
        raise Stopped(stop.number, f"{stop.where}; go on with: {resume_command(sys.argv)}") from None
    return best, trainer.events_folder, trainer.state.step


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope train --config src/configs/mope.yaml --set training.learning_rate=5e-4")
    task = parser.add_mutually_exclusive_group(required=True)
    command.add_config_argument(task)
    task.add_argument("--init", metavar="FOLDER", help="look at the data in a folder and write a YAML that suits them")
    parser.add_argument("--output", metavar="YAML", help="the file that --init writes (default: FOLDER's name.yaml)")
    add_mask_threshold(parser, "of --init: ")
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
        "--force",
        action="store_true",
        help="resume even where config, base or data differ from the earlier run's; take output_dir over from a "
        "run that is at work there",
    )
    parser.add_argument(
        "--extend", metavar="ADAPTER", help="learn the new domain as a further expert group beside an adapter's own"
    )
    return parser
