"""What self-distillation adds to a training step, as a share of the step, on the bundled base and the sample data.

The same batches are trained on with and without it, in turn, in one process, once the teacher has answered on every
general clip (which happens once a run: its time is printed, too). Before that, an untrained student's distillation loss
is checked to be 0: it is its own teacher.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from tempfile import TemporaryDirectory

from src import cli
from src.core.errors import UserError


def measure(settings: list[str], config_file: str, steps: int, rounds: int) -> dict[str, float]:
    """Seconds of a step without distillation and of one with it, and of the teacher's answer on a clip."""
    from src.config import load_config
    from src.train.trainer import Trainer

    with TemporaryDirectory() as folder:
        defaults = ["training.distill.weight=1", "training.distill.clips=12", f"output_dir={folder}"]
        trainer = Trainer(load_config(config_file, [*defaults, *settings]))
        distiller = trainer.distiller
        if distiller is None:
            raise UserError("training.distill.weight is 0: there is nothing to measure")
        clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter

        def ask(steps: range) -> float:
            started = clock()
            for step in steps:
                loss = distiller.losses(step)["total"].item()
                if abs(loss) > 1e-3:
                    raise AssertionError(f"an untrained student differs from its teacher by {loss}")
            return clock() - started

        first = range(8 * distiller.config.clips)  # enough to meet every clip
        asked = (ask(first) - ask(first)) / len(distiller.lessons)
        batches = iter(trainer.loader)
        windows = [window for _ in range(steps) if (window := trainer.next_window(batches))]

        def seconds(with_it: bool) -> float:
            trainer.distiller = distiller if with_it else None
            started = clock()
            for window in windows:
                trainer.train_step(window, {})
                trainer.progress.step += 1  # so that with training.distill.every only some steps are taught
            return (clock() - started) / len(windows)

        seconds(True)  # warm up
        pairs = [(seconds(False), seconds(True)) for _ in range(rounds)]
        trainer.close()
    return {"without": median(a for a, _ in pairs), "with": median(b for _, b in pairs), "asked": asked}


def main(arguments: argparse.Namespace) -> None:
    found = measure(arguments.overrides, arguments.config, arguments.steps, arguments.rounds)
    print("| step | seconds | to the step without |\n|---|--:|--:|")
    for name in ("without", "with"):
        print(f"| {name} distillation | {found[name]:.3f} | {found[name] / found['without']:.2f} |")
    print(f"the teacher's answer on a clip, once a run: {found['asked']:.3f} s")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m benchmarks.distillation_cost --config src/configs/mope.yaml")
    cli.add_config_arguments(parser)
    parser.add_argument("--steps", type=int, default=12, help="training steps a round (default: 12)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with and without (default: 3)")
    cli.run(main, parser)
