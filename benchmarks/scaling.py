"""How a training step grows with frames, objects, experts, rank and image size, and indexing with images: time, memory.

Each point is measured in a process of its own: the time of a step after a first one, and the peak of memory over what
the process took before, weights and optimizer included. All but one quantity are those of ``--model``'s middle case. Of
data, a COCO file of so many images is read and indexed. Prints a table with the growth from each point to the next, and
draws it: one panel a quantity. Linux only.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.index_large_coco import make_coco
from benchmarks.measuring import clock, in_own_process, peak_mb
from benchmarks.training_step import Case, Step
from src import cli
from src.data.formats import coco
from src.data.formats.reader import Location, OpenOptions
from src.models.spec import model_names

SWEEPS: dict[str, tuple[int, ...]] = {
    "frames": (2, 4, 8, 16),
    "objects": (1, 2, 4, 8),
    "experts": (5, 10, 20, 40),
    "rank": (2, 4, 8, 16),
    "size": (64, 128, 256),
}
IMAGES = (1000, 4000, 16000)
TITLES = {
    "frames": "frames of a clip", "objects": "objects", "experts": "experts (rank 4)", "rank": "rank (10 experts)",
    "size": "image size, pixels", "images": "images in a data set (indexing)",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Seconds and MB at a value of what is varied."""

    value: int
    seconds: float
    mb: float


def step_point(case: Case, value: int) -> Point:
    """A training step, in this process."""
    now = clock(1, case.device)
    seconds = 0.0

    def build_and_step() -> None:
        nonlocal seconds
        step = Step(case)
        step()  # makes what later ones find ready
        started = now()
        step()
        seconds = now() - started

    return Point(value, mb=peak_mb(build_and_step, case.device), seconds=seconds)


def index_point(file: Path, images: int) -> Point:
    """Indexing a COCO file, in this process."""
    now = clock(1)
    seconds = 0.0

    def index() -> None:
        nonlocal seconds
        started = now()
        coco.READER.open(Location(file.parent, file), OpenOptions())
        seconds = now() - started

    return Point(images, mb=peak_mb(index), seconds=seconds)


def measure(middle: Case, images: tuple[int, ...]) -> dict[str, list[Point]]:
    """Every quantity's points."""
    found: dict[str, list[Point]] = {}
    total = sum(len(values) for values in SWEEPS.values()) + len(images)
    with cli.progress_bar(total=total, desc="points") as bar:
        for quantity, values in SWEEPS.items():
            found[quantity] = []
            for value in values:
                point = in_own_process(step_point, Case(**{**vars(middle), quantity: value}), value)
                found[quantity].append(point)
                bar.update()
        found["images"] = []
        for count in images:
            with TemporaryDirectory() as folder:
                file = make_coco(Path(folder), count)
                found["images"].append(in_own_process(index_point, file, count))
            bar.update()
    return found


def print_table(found: dict[str, list[Point]]) -> None:
    print("| varied | value | s | growth | MB | growth |\n|---|--:|--:|--:|--:|--:|")
    for quantity, points in found.items():
        for before, point in zip([None, *points], points, strict=False):
            slower, larger = "", ""
            if before is not None:
                slower, larger = _times(point.seconds, before.seconds), _times(point.mb, before.mb)
            row = (str(point.value), f"{point.seconds:.3f}", slower, f"{point.mb:.0f}", larger)
            print(f"| {quantity} | {' | '.join(row)} |")


def _times(value: float, before: float) -> str:
    return f"×{value / before:.2f}"


def draw(found: dict[str, list[Point]], path: Path) -> None:
    """A panel a quantity: seconds on the left, MB on the right, both from 0."""
    from matplotlib.figure import Figure

    from src.evaluation.figures import save_figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    for axes, (quantity, points) in zip(figure.subplots(2, 3).flat, found.items(), strict=True):
        values = [point.value for point in points]
        memory = axes.twinx()
        (left,) = axes.plot(values, [point.seconds for point in points], "o-", color="tab:blue", label="s")
        (right,) = memory.plot(values, [point.mb for point in points], "s--", color="tab:orange", label="MB")
        axes.set(title=TITLES[quantity], ylim=(0, 1.1 * max(point.seconds for point in points)))
        axes.set_xticks(values, [f"{v // 1000}k" if v >= 1000 else str(v) for v in values])
        memory.set_ylim(0, 1.1 * max(point.mb for point in points))
        axes.set_ylabel("s", color="tab:blue")
        memory.set_ylabel("MB", color="tab:orange")
        axes.legend(handles=[left, right], loc="lower right", fontsize=8)
        axes.title.set_fontsize(10)
    save_figure(figure, path)


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    middle = Case(model=arguments.model, size=arguments.size, frames=4, device=arguments.device)
    found = measure(middle, IMAGES)
    print(f"{arguments.model}, {arguments.device}, 1 thread; where it is not varied {middle.size} px, ", end="")
    print(f"{middle.frames} frames, 1 object, {middle.experts} experts of rank {middle.rank}\n")
    print_table(found)
    if arguments.figure:
        draw(found, Path(arguments.figure))


if __name__ == "__main__":
    parser = cli.parser(__doc__.splitlines()[0], "python -m benchmarks.scaling --figure docs/images/scaling.png")
    parser.add_argument(
        "--model", choices=model_names(), metavar="MODEL", default="sam2_nano", help="default: sam2_nano"
    )
    parser.add_argument("--size", type=int, default=128, help="image size of the middle case (default: 128)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--figure", metavar="PNG", help="where to draw it")
    cli.run(main, parser)
