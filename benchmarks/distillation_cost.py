"""What self-distillation adds to a training step, as a share of the step, on the bundled base and the sample data.

The same batches are trained on with and without it, in turn, in one process, once the teacher has answered on every
general clip (which happens once a run: its time is printed, too). Before that, an untrained student's distillation loss
is checked to be 0: it is its own teacher.
"""

from __future__ import annotations

import argparse
import itertools
import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from src import cli
from src.core.errors import UserError


def measure(settings: list[str], config_file: str, steps: int, rounds: int) -> dict[str, float]:
    """Seconds of a step without distillation and of one with it, and of the teacher's answer on a clip."""
    from src.config import load_config
    from src.train.setup import build_run

    with TemporaryDirectory() as folder:
        defaults = ["training.distill.weight=1", "training.distill.clips=12", f"output_dir={folder}"]
        run = build_run(load_config(config_file, [*defaults, *settings]))
        step = run.train_step
        if step is None or not step.objectives:
            raise UserError("training.distill.weight is 0: there is nothing to measure", "benchmark.nothing")
        objectives = step.objectives
        objective: Any = objectives[0]
        distillation = objective.distillation
        clock = time.process_time if run.device.type == "cpu" else time.perf_counter

        def ask(steps: range) -> float:
            started = clock()
            for number in steps:
                loss = distillation.losses(number).total.item()
                if abs(loss) > 1e-3:
                    raise AssertionError(f"an untrained student differs from its teacher by {loss}")
            return clock() - started

        first = range(8 * distillation.config.clips)  # enough to meet every clip
        asked = (ask(first) - ask(first)) / len(distillation.targets)
        batches = iter(run.loader)
        steps_batches = [taken for _ in range(steps) if (taken := run.next_micro_batches(batches))]
        done = itertools.count()

        def seconds(with_it: bool) -> float:
            step.objectives = objectives if with_it else []
            started = clock()
            for micro_batches in steps_batches:
                step(micro_batches, next(done))  # with training.distill.every only some numbers have it
            return (clock() - started) / len(steps_batches)

        seconds(True)  # warm up
        pairs = [(seconds(False), seconds(True)) for _ in range(rounds)]
        run.close()
    return {"without": median(a for a, _ in pairs), "with": median(b for _, b in pairs), "asked": asked}


def main(arguments: argparse.Namespace) -> None:
    found = measure(arguments.overrides, arguments.config, arguments.steps, arguments.rounds)
    print("| step | seconds | to the step without |\n|---|--:|--:|")
    for name in ("without", "with"):
        print(f"| {name} distillation | {found[name]:.3f} | {found[name] / found['without']:.2f} |")
    print(f"the teacher's answer on a clip, once a run: {found['asked']:.3f} s")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m benchmarks.distillation_cost --config src/configs/mope_memory.yaml")
    cli.add_config_arguments(parser)
    parser.add_argument("--steps", type=int, default=12, help="training steps a round (default: 12)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with and without (default: 3)")
    cli.run(main, parser)
