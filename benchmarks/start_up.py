"""Where the time goes from ``python train.py`` to the end of the first step: a table of stages, and of slow imports.

The run is that of ``--config`` in a process of its own, in which nothing is imported yet, into an empty folder; the
first validation is left out (``--set`` changes what is run). Beside seconds by the wall clock stand seconds of the CPU,
user and system, which say more on a machine that does other things as well. Which packages are slow to import is shown
by ``python -X importtime``, in another process, as shares of all imports, what a package imports of others left out.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]

IMPORTS = "import src.evaluation.run, src.train.trainer"  # what train.py imports before it trains


def stages(config_file: str, overrides: list[str]) -> list[tuple[str, float, float]]:
    """Run to the end of the first step in this process: (stage, seconds, CPU seconds), all since the process began."""
    found: list[tuple[str, float, float]] = []
    last = [0.0, 0.0]

    def done(stage: str) -> None:
        now = [_seconds_since_birth(), sum(os.times()[:2])]
        found.append((stage, now[0] - last[0], now[1] - last[1]))
        last[:] = now

    done("python itself")
    import torch  # noqa: F401

    done("import torch")
    from src.config import load_config

    config = load_config(config_file, overrides)
    done("read the config")
    exec(IMPORTS, {})
    done("import the rest")
    from src.train.setup import build_run

    run = build_run(config)
    done("build: data, model, optimizer")
    micro_batches = run.next_micro_batches(iter(run.loader))
    done("load the first batch")
    assert run.train_step is not None
    run.train_step(micro_batches, 0)
    done("the first step")
    return found


def _seconds_since_birth() -> float:
    """Seconds by the wall clock since the system started this process."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def import_shares() -> dict[str, float]:
    """The share of the time of all imports that every package takes by itself, as ``-X importtime`` says."""
    lines = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    own: dict[str, float] = defaultdict(float)
    for line in lines.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[0].strip().isdigit():
            own[parts[2].strip().split(".")[0]] += int(parts[0])
    return {name: time / sum(own.values()) for name, time in own.items()}


def main(arguments: argparse.Namespace) -> None:
    if arguments.stages:
        print(json.dumps(stages(arguments.config, arguments.overrides)))
        return
    with TemporaryDirectory() as folder:
        overrides = [*arguments.overrides, f"output_dir={folder}"]
        command = [sys.executable, "-m", "benchmarks.start_up", "--stages", "--config", arguments.config]
        command += [word for override in overrides for word in ("--set", override)]
        rows = []
        for _ in range(arguments.runs):
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    best = min(rows, key=lambda run: sum(cpu for _, _, cpu in run))
    print("| stage | s | CPU s |\n|---|--:|--:|")
    for stage, seconds, cpu in best:
        print(f"| {stage} | {seconds:.2f} | {cpu:.2f} |")
    print(f"| in all | {sum(row[1] for row in best):.2f} | {sum(row[2] for row in best):.2f} |")
    print("\n| package | share of imports, by itself |\n|---|--:|")
    for name, share in sorted(import_shares().items(), key=lambda each: -each[1]):
        if share >= arguments.least:
            print(f"| {name} | {share:.0%} |")


if __name__ == "__main__":
    from src import cli

    parser = cli.parser(__doc__.splitlines()[0], "python -m benchmarks.start_up --config src/configs/mope_memory.yaml")
    cli.add_config_arguments(parser)
    parser.add_argument("--runs", type=int, default=2, help="the one with the least CPU time is shown (default: 2)")
    parser.add_argument("--least", type=float, default=0.02, help="smallest share that is listed (default: 0.02)")
    parser.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)
    cli.run(main, parser)
