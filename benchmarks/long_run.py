"""Whether a long way takes no more memory, open files or threads than a short one: in training and in streaming.

Two things run, each in a process of its own. One is a run of ``train.py`` as a YAML says; its trainer and each
process that loads data for it are measured every few steps. The other is a stream of frames through
:class:`~src.models.sam2.streaming.StreamingTracker`, with the YAML's model and untrained adapters. Memory is the
proportional set size (pages that processes share are split among them), or the resident set size where the system
does not tell. The first quarter is warm-up; over the rest a line is fitted, and its slope must be within the bounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from src import cli
from src.config import Config, load_config
from src.core.errors import UserError

SAMPLES = 100  # of every process
WARM_UP = 0.25  # of the way
OBJECTS = 2  # in the stream
LOOP = 50  # frames of the video that is streamed again and again

QUICK = (
    "model.image_size=64", "dataset.clip.frames=2", "dataset.clip.max_objects=1", "evaluation.frames=2",
    "evaluation.max_images=4", "evaluation.max_objects=1", "training.batch_size=1", "training.num_workers=2",
    "training.clips_per_epoch=250", "training.monitor_clips=1", "training.domain_gate=false",
    "training.save_every.steps=100",
)  # fmt: skip
"""The YAML's run made so small that thousands of its steps take minutes: with validation and a save now and then."""


@dataclass
class Series:
    """What one process took, at each of some steps: ``memory`` in MB, ``files`` that were open, ``threads``."""

    steps: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self, step: int, process: int) -> None:
        """Add what a process takes now."""
        self.steps.append(step)
        self.memory.append(_memory(process) / 2**20)
        self.files.append(len(os.listdir(f"/proc/{process}/fd")))
        self.threads.append(len(os.listdir(f"/proc/{process}/task")))

    def slope(self, what: str) -> float:
        """By how much a line through ``memory``, ``files`` or ``threads`` rises in 1,000 steps, after the warm-up."""
        steps, values = np.array(self.steps), np.array(getattr(self, what), dtype=float)
        late = steps > WARM_UP * steps[-1]
        return float(np.polyfit(steps[late], values[late], 1)[0]) * 1000


def _memory(process: int) -> int:
    """Bytes that a process takes."""
    from src.core.machine import resident_memory

    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):  # an old system, or one that hides it
        return resident_memory(process)


def train(config: Config, steps: int) -> dict[str, Series]:
    """Train in this process; what it and its loaders took, by name."""
    from src.train.callbacks import Callback, StepReport
    from src.train.trainer import Trainer

    found: dict[str, Series] = {}

    class Watch(Callback):
        def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
            if trainer.state.step % max(1, steps // SAMPLES) == 0:
                loaders = sorted(process.pid or 0 for process in multiprocessing.active_children())
                named = {"trainer": os.getpid(), **{f"loader {i}": pid for i, pid in enumerate(loaders, start=1)}}
                for name, process in named.items():
                    found.setdefault(name, Series()).look(trainer.state.step, process)

    Trainer.from_config(config, callbacks=[Watch()]).fit()
    return found


def stream(config: Config, frames: int) -> dict[str, Series]:
    """Track objects through a video again and again; what this process took."""
    from src.config import image_size_of
    from src.data.prompts import Prompt
    from src.data.synthetic import SOURCE, make_videos
    from src.lora.injection import apply_method
    from src.models.sam2.build import build_model
    from src.models.sam2.streaming import StreamingTracker

    model = build_model(config.model)
    apply_method(model, config.lora)
    tracker, side = StreamingTracker(model), image_size_of(config.model)
    video = [frame.read() for frame in make_videos(SOURCE, 1, 0, LOOP, side).videos[0].frames]
    places = np.linspace(0.25, 0.75, OBJECTS) * side
    prompts = [Prompt(object_id=i, points=((x, x),), labels=(1,)) for i, x in enumerate(places, start=1)]
    found, bank = Series(), tracker.start()
    for t in cli.progress_bar(range(frames), desc="streaming"):
        _, bank = tracker.step(video[t % LOOP], bank, prompts if t == 0 else ())
        if (t + 1) % max(1, frames // SAMPLES) == 0:
            found.look(t + 1, os.getpid())
    return {"stream": found}


PARTS: dict[str, Callable[[Config, int], dict[str, Series]]] = {"training": train, "streaming": stream}
UNITS = {"training": "steps", "streaming": "frames"}


def measured(part: str, arguments: argparse.Namespace) -> dict[str, Series]:
    """One part in a process of its own."""
    settings = [word for setting in arguments.overrides for word in ("--set", setting)]
    words = [
        "--config",
        arguments.config,
        *settings,
        "--steps",
        str(arguments.steps),
        "--frames",
        str(arguments.frames),
    ]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "series.json"
        command = [sys.executable, __file__, *words, "--part", part, "--result", str(result)]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"{part} failed")
        return {name: Series(**content) for name, content in json.loads(result.read_text()).items()}


def measure(part: str, arguments: argparse.Namespace) -> None:
    """One part in this process, written to a file."""
    length = arguments.steps if part == "training" else arguments.frames
    with tempfile.TemporaryDirectory() as folder:
        settings = [*QUICK, f"training.max_steps={length}", f"training.max_epochs={length}", f"output_dir={folder}"]
        found = PARTS[part](load_config(arguments.config, [*settings, *arguments.overrides]), length)
    Path(arguments.result).write_text(json.dumps({name: asdict(series) for name, series in found.items()}))


def growing(found: dict[str, Series], bounds: dict[str, float]) -> list[str]:
    """What grows by more than its bound in 1,000 steps, in words."""
    return [
        f"{what} of the {name}: {slope:+.2f} in 1,000, over the bound of {bound:g}"
        for name, series in found.items()
        for what, bound in bounds.items()
        if (slope := series.slope(what)) > bound
    ]


def table(found: dict[str, Series], unit: str) -> list[str]:
    """A row for each process."""
    rows = []
    for name, series in found.items():
        late = series.memory[int(WARM_UP * len(series.memory)) :]
        slopes = " | ".join(f"{series.slope(what):+.2f}" for what in ("memory", "files", "threads"))
        rows.append(
            f"| {name} | {series.steps[-1]} {unit} | {min(late):.0f} to {max(late):.0f} | {slopes} | "
            f"{series.files[-1]} | {series.threads[-1]} |"
        )
    return rows


def draw(parts: dict[str, dict[str, Series]], path: Path) -> None:
    """Memory, and below it open files and threads, of every process along the way."""
    from matplotlib.figure import Figure

    from src.evaluation.figures import save_figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(parts), sharex="col", squeeze=False)
    for (above, below), (part, found) in zip(grid.T, parts.items(), strict=True):
        for name, series in found.items():
            above.plot(series.steps, series.memory, label=f"{name} ({series.slope('memory'):+.2f} MB in 1,000)")
            (line,) = below.plot(series.steps, series.files, label=f"{name}: open files")
            below.plot(series.steps, series.threads, ":", color=line.get_color(), label=f"{name}: threads")
        for axes, label in ((above, "MB"), (below, "number")):
            axes.axvspan(0, WARM_UP * series.steps[-1], color="0.93", zorder=0)
            axes.set_ylim(bottom=0)
            axes.set_ylabel(label)
            axes.legend(fontsize=8)
        above.set_title(f"{part}: memory")
        below.set_xlabel(UNITS[part])
    figure.suptitle("grey: warm-up, left out of the slopes", fontsize=9)
    save_figure(figure, path)


def main(arguments: argparse.Namespace) -> int:
    if arguments.part:
        measure(arguments.part, arguments)
        return 0
    if not Path("/proc/self/fd").is_dir():
        raise UserError("this needs /proc, which Linux has")
    parts = {part: measured(part, arguments) for part in PARTS}
    bounds = {"memory": arguments.bound, "files": arguments.count_bound, "threads": arguments.count_bound}
    print("| process | way | MB after warm-up | MB in 1,000 | files in 1,000 | threads in 1,000 | files | threads |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for part, found in parts.items():
        print("\n".join(table(found, UNITS[part])))
    if arguments.figure:
        draw(parts, Path(arguments.figure))
    problems = [problem for found in parts.values() for problem in growing(found, bounds)]
    for problem in problems:
        print(f"it grows: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    example = "python -m benchmarks.long_run --config src/configs/mope_memory.yaml --figure long_run.png"
    parser = cli.parser(__doc__.splitlines()[0], example)
    cli.add_config_arguments(parser)
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: 2000)")
    parser.add_argument("--frames", type=int, default=2000, help="frames of the stream (default: 2000)")
    parser.add_argument("--bound", type=float, default=8.0, help="MB that a process may grow in 1,000 (default: 8)")
    parser.add_argument(
        "--count-bound", type=float, default=0.5, help="open files, and threads, that it may gain (default: 0.5)"
    )
    parser.add_argument("--figure", metavar="PNG", help="where to draw it")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    cli.run(main, parser)
