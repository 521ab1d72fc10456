"""An epoch with the frozen encoder's features kept (``training.cache_features``), as a ratio to the same epoch without.

Two trainers of one config, one with room for features and one with none, train in turn on the same epochs, of a clip of
each of the first videos, in one view; the first epoch, which fills the cache, is timed by itself. The losses of every
step are checked to be equal, bit for bit on a CPU. Clips are loaded in the training process, so that the time to load
them counts; ``--video-side 1080`` trains on synthetic videos of that side, JPEG frames and PNG masks as DAVIS has them,
in place of the config's data. For another base: ``--set model.name=sam2.1_hiera_tiny --set model.checkpoint=null --set
model.image_size=512``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measuring import clock, in_turn, ratio, steps_of_an_epoch
from src import cli
from src.config import load_config
from src.core.errors import UserError
from src.data.loading import load_split
from src.data.options import LoadOptions
from src.data.synthetic import SOURCE, make_videos
from src.data.writers import write_davis
from src.train.setup import Run, build_run

WITHOUT, WITH = "without", "with"
VIDEO_FRAMES = 6


def first_videos(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The names of as many training videos as an epoch has clips."""
    config = load_config(arguments.config, [*arguments.overrides, f"output_dir={folder / 'names'}"])
    data = load_split(config.dataset.domains[0], "train", LoadOptions.from_config(config))
    return [data.videos[index].video_id for index in range(min(arguments.clips, len(data)))]


def settings(arguments: argparse.Namespace, name: str, names: list[str], folder: Path) -> list[str]:
    """``--set`` values of a run on these videos with or without room for features."""
    room = [] if name == WITH else ["training.cache_features.budget_gb=0"]
    return [
        "training.num_workers=0",
        "training.monitor_clips=0",
        f"dataset.train_videos={json.dumps(names)}",
        f"training.clips_per_epoch={len(names)}",
        f"training.max_epochs={arguments.rounds + 1}",
        *arguments.overrides,
        f"training.cache_features.store={arguments.where}",
        "training.cache_features.views=1",
        *room,
        f"output_dir={folder / name}",
    ]


def measure(arguments: argparse.Namespace, now: Callable[[], float], folder: Path) -> dict[str, list[float]]:
    """Seconds of every epoch, with features and without.

    Raises:
        UserError: the encoder trains along, so that there is no cache; or losses differ.
    """
    if arguments.video_side:
        videos = make_videos(SOURCE, arguments.clips, 0, VIDEO_FRAMES, arguments.video_side)
        write_davis(folder / "videos", videos, quality=90)
        data = [f"dataset.train_img_folder={folder / 'videos'}", "dataset.train_ann_file=null"]
        arguments.overrides = [*data, *arguments.overrides]
    names = first_videos(arguments, folder)
    runs = {
        name: build_run(load_config(arguments.config, settings(arguments, name, names, folder)))
        for name in (WITHOUT, WITH)
    }
    if any(run.encoder is None for run in runs.values()):
        raise UserError("the image encoder trains along: there is nothing to keep")
    losses: dict[str, list[float]] = {name: [] for name in runs}
    with cli.progress_bar(total=sum(run.last_step for run in runs.values()), desc="epochs") as bar:
        epochs = {name: partial(train_epoch, run, losses[name], bar) for name, run in runs.items()}
        seconds = in_turn(epochs, arguments.rounds + 1, now)
    if losses[WITHOUT] != losses[WITH] and runs[WITH].device.type == "cpu":
        raise UserError(
            f"losses differ: {losses[WITHOUT]} without features kept, {losses[WITH]} with them", "benchmark"
        )
    return seconds


def train_epoch(run: Run, losses: list[float], bar: tqdm[Any]) -> None:
    """The next epoch, with the same clicks and dropout whatever was trained before; adds the loss of every step."""
    torch.manual_seed(run.state.epoch)
    for micro_batches in steps_of_an_epoch(run):
        assert run.train_step is not None
        losses.append(run.train_step(micro_batches, run.state.step).losses["total"])
        bar.update()


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory() as folder:
        seconds = measure(arguments, clock(arguments.threads, device), Path(folder))
    first, later = {n: s[:1] for n, s in seconds.items()}, {n: s[1:] for n, s in seconds.items()}
    print(f"{arguments.clips} clips an epoch, features in {arguments.where}, {device}, {arguments.threads} threads;")
    print("losses of all steps with features kept equal those without\n")
    print("| epoch | s without | s with | times as fast |\n|---|--:|--:|--:|")
    for name, epochs in (("the first, which keeps them", first), ("later ones", later)):
        times = (f"{median(epochs[WITHOUT]):.2f}", f"{median(epochs[WITH]):.2f}")
        print(f"| {name} | {' | '.join(times)} | {ratio(epochs[WITHOUT], epochs[WITH]):.2f} |")


if __name__ == "__main__":
    parser = cli.parser(
        __doc__.splitlines()[0], "python -m benchmarks.epoch_with_cache --config src/configs/mope_memory.yaml"
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--clips", type=int, default=16, help="clips an epoch, at most (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="epochs after the first (default: 3)")
    parser.add_argument("--video-side", type=int, metavar="PIXELS", help="train on synthetic videos of that side")
    parser.add_argument("--where", choices=["memory", "disk"], default="memory", help="default: memory")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    cli.run(main, parser)
