"""What many videos and GPUs need: reading speed, memory, gradients and time, worked out from measurements on one core.

Measured here, in seconds of this process (other work on the machine does not count): frames of a video file decoded in
order, training clips as the loader draws them, parsing a video's record, memory of the index per video, and, on the
CPU, a training step of the bundled base by method. Counted: the bytes of gradients that processes sum in a step. All
else in the tables is worked out by the formula that stands in them, from these numbers and from assumptions that are
options.

The data are a folder of SA-V files. Where masklets come without their video, a stand-in is made in a temporary folder:
frames of another video of the folder, scaled, to and fro.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from src import cli
from src.config import (
    AugmentationConfig,
    ClipConfig,
    LoraConfig,
    LossConfig,
    Method,
    ModelConfig,
    PromptConfig,
    image_size_of,
)
from src.core.errors import UserError
from src.data.clips import Clip, ClipBatch, sample_clip
from src.data.decode.video import open_stream
from src.data.decode.video_writer import VideoWriter
from src.data.formats import sav
from src.data.formats.reader import Location, OpenOptions
from src.data.formats.sav import KINDS, VIDEO_SUFFIX, SavSource
from src.data.synthetic import SOURCE, make_videos
from src.lora.injection import apply_method
from src.models.sam2.train_forward import build_loss, build_trainable, segmentation_losses
from src.models.spec import model_names, model_spec

METHODS: tuple[Method, ...] = ("mope", "lora", "decoder", "full")
INDEXED = 2000  # empty files, of which the index is measured
MB, GB = 2**20, 2**30


@dataclass(frozen=True)
class Reading:
    """What reading takes: frames a second and core, and bytes per video."""

    decoded: float
    drawn: float
    parse: float
    index: float
    record: float
    file: float


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of some work, of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def decode(video: Path) -> None:
    """Decode all frames of a video, in order."""
    for _ in open_stream(video):
        pass


def complete(folder: Path, scratch: Path) -> SavSource:
    """The SA-V files of a folder, with stand-ins for videos that are missing."""
    videos = sorted(folder.glob(f"*{VIDEO_SUFFIX}"))
    if not videos:
        raise UserError(f"--data: {folder} holds no video (*{VIDEO_SUFFIX})")
    for masklets in sorted(path for kind in KINDS for path in folder.glob(f"*{kind}")):
        name = masklets.name.removesuffix(KINDS[0]).removesuffix(KINDS[1]) + VIDEO_SUFFIX
        (scratch / masklets.name).symlink_to(masklets.resolve())
        if (folder / name).exists():
            (scratch / name).symlink_to((folder / name).resolve())
        elif not (scratch / name).exists():
            make_stand_in(videos[0], masklets, scratch / name)
    return sav.READER.open(Location(scratch), OpenOptions(follow_links=True))


def make_stand_in(video: Path, masklets: Path, path: Path) -> None:
    """Write a video of the size and length that masklets are for."""
    content = json.loads(masklets.read_text())
    size = int(content["video_width"]), int(content["video_height"])
    pictures = [np.array(Image.fromarray(frame).resize(size)) for frame in open_stream(video)]
    with VideoWriter(path) as writer:
        for picture in islice(cycle([*pictures, *pictures[-2:0:-1]]), int(content["video_frame_count"])):
            writer.write(picture)


def measure_reading(source: SavSource, config: ClipConfig, size: int, clips: int) -> Reading:
    """Decode all videos once, and draw training clips from them in turn."""
    decoding, drawing, parsing, count = 0.0, 0.0, 0.0, 0
    records = []
    for index, files in enumerate(source.videos):
        decoding += seconds_of(partial(decode, files.video))
        parsing += seconds_of(partial(source.read, index))
        records.append(source.read(index)[0])
    known = [record for record in records if record is not None]
    if not known:
        raise UserError("--data: no video of it has an object")
    for number, record in zip(range(clips), cycle(known)):
        rng = np.random.default_rng(number)
        drawing += seconds_of(partial(sample_clip, record, config, size, 1.0, rng, AugmentationConfig()))
        count += config.frames
    frames = sum(len(record) for record in known)
    return Reading(
        decoded=frames / decoding,
        drawn=count / drawing,
        parse=parsing / len(source),
        index=index_bytes(),
        record=float(np.mean([len(pickle.dumps(record)) for record in known])),
        file=float(np.mean([f.video.stat().st_size + f.masklets.stat().st_size for f in source.videos])),
    )


def index_bytes() -> float:
    """Bytes that a listed video takes, as long as it is not read."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(INDEXED):
            for ending in (VIDEO_SUFFIX, KINDS[0]):
                (Path(folder) / f"sav_{number:06d}{ending}").touch()
        tracemalloc.start()
        source = sav.READER.open(Location(Path(folder)), OpenOptions())
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return held / len(source)


def gradient_bytes(model: str) -> dict[Method, int]:
    """By method, what processes sum in a step: the gradients of all parameters that train, in float32."""
    base = build_trainable(ModelConfig(name=model), PromptConfig(), 2)
    found = {}
    for method in METHODS:
        adapted = copy.deepcopy(base)
        apply_method(adapted, lora(method), model_spec(model).decoder)
        found[method] = sum(4 * p.numel() for p in adapted.parameters() if p.requires_grad)
    return found


def lora(method: Method) -> LoraConfig:
    """The method's config as shipped: LoRA with the rank that ten experts of rank 4 have together."""
    return LoraConfig(method=method, rank=40 if method == "lora" else 4)


def step_seconds(method: Method, batch: ClipBatch, rounds: int) -> float:
    """Processor time of the fastest of some training steps of the bundled base's architecture, on the CPU."""
    torch.manual_seed(0)
    model = build_trainable(ModelConfig(), PromptConfig(mask=1.0, box=0.0, point=0.0), len(batch.masks_TOHW)).train()
    apply_method(model, lora(method), model_spec(ModelConfig().name).decoder)
    loss, optimizer = build_loss(LossConfig()), torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)

    def step() -> None:
        segmentation_losses(model, loss, batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return min(seconds_of(step) for _ in range(rounds))


def nano_batch(frames: int) -> ClipBatch:
    """A clip of the source domain, as the bundled base sees it."""
    video = make_videos(SOURCE, 1, 0, frames=frames, side=image_size_of(ModelConfig())).videos[0]
    clip: Clip = sample_clip(video, ClipConfig(frames=frames), video.width, 0.0, np.random.default_rng(0))
    return ClipBatch.collate([clip])


def print_table(title: str, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    """A table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def print_reading(found: Reading, options: argparse.Namespace) -> None:
    print_table(
        "Measured: reading, on one core",
        ("what", "value"),
        [
            ("frames decoded in order, a second", f"{found.decoded:.0f}"),
            (f"frames of training clips ({options.frames} frames, {options.size} px, augmented), a second",
             f"{found.drawn:.1f}"),
            ("parsing a video's record, ms", f"{1000 * found.parse:.0f}"),
            ("index, bytes per video", f"{found.index:.0f}"),
            ("a parsed record, kB", f"{found.record / 1024:.0f}"),
            ("a video and its masklets on disk, MB", f"{found.file / MB:.2f}"),
        ],
    )  # fmt: skip


def print_needs(found: Reading, options: argparse.Namespace) -> None:
    """What the set and the GPUs need, all of it worked out."""
    processes = options.gpus * (1 + options.workers)
    print_table(
        f"Worked out: {options.videos} videos",
        ("what", "formula", "value"),
        [
            ("disk, if all are as large as these", "videos × file", f"{options.videos * found.file / GB:.0f} GB"),
            ("index, at most, in all processes of a node", f"videos × index × {processes}",
             f"{options.videos * found.index * processes / MB:.0f} MB"),
            ("checking all once (parse, decode all frames), on 1 core",
             f"videos × (parse + {options.length} / decoded)",
             f"{options.videos * (found.parse + options.length / found.decoded) / 3600:.0f} h"),
        ],
    )  # fmt: skip
    print_table(
        f"Worked out: {options.gpus} GPUs, {options.clips_per_gpu} clips of {options.frames} frames on each, an epoch "
        "of a clip a video; the time of a step is assumed",
        ("a step, s (assumed)", "frames a second = GPUs × clips × frames / step", "cores that load = that / drawn",
         "an epoch, h = videos / (GPUs × clips) × step"),
        [
            (f"{step:g}", f"{need:.0f}", f"{need / found.drawn:.0f}",
             f"{options.videos / (options.gpus * options.clips_per_gpu) * step / 3600:.1f}")
            for step in options.step_seconds
            for need in [options.gpus * options.clips_per_gpu * options.frames / step]
        ],
    )  # fmt: skip


def print_gradients(options: argparse.Namespace) -> None:
    share = 2 * (options.gpus - 1) / options.gpus
    rows = []
    for model in options.models:
        for method, count in gradient_bytes(model).items():
            milliseconds = 1000 * share * count / (options.bandwidth * 1e9)
            rows.append((model, method, f"{count / MB:.2f}", f"{milliseconds:.3f}"))
    print_table(
        f"Counted: gradients. Worked out: their sum over {options.gpus} GPUs at {options.bandwidth:g} GB/s (assumed)",
        ("model", "method", "MB a step", "ms = 2 (GPUs − 1) / GPUs × bytes / bandwidth"),
        rows,
    )


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config = ClipConfig(frames=options.frames)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_reading(complete(Path(options.data), Path(scratch)), config, options.size, options.clips)
    print_reading(found, options)
    batch = nano_batch(options.frames)
    times = {method: step_seconds(method, batch, options.rounds) for method in METHODS}
    print_table(
        f"Measured: a step of sam2_nano on one CPU core, {options.frames} frames of 128 px, one clip",
        ("method", "s", "to full"),
        [(method, f"{value:.2f}", f"{value / times['full']:.2f}") for method, value in times.items()],
    )
    print_gradients(options)
    print_needs(found, options)


if __name__ == "__main__":
    parser = cli.parser(__doc__ or "", "python -m benchmarks.scale --data path/to/sav")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="SA-V files: NAME.mp4 and NAME_manual.json")
    parser.add_argument("--clips", type=int, default=20, help="training clips to draw")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--size", type=int, default=1024, help="side of the frames in pixels")
    parser.add_argument("--rounds", type=int, default=2, help="training steps, of which the fastest counts")
    parser.add_argument("--models", nargs="+", choices=model_names(), default=["sam2_nano"], metavar="MODEL")
    parser.add_argument("--videos", type=int, default=50_000, help="to work out for")
    parser.add_argument("--length", type=int, default=330, help="frames of a video, on average (assumed)")
    parser.add_argument("--gpus", type=int, default=8, help="to work out for")
    parser.add_argument("--workers", type=int, default=8, help="loader processes of a GPU (training.num_workers)")
    parser.add_argument("--clips-per-gpu", type=int, default=1, help="of a batch (assumed)")
    parser.add_argument("--step-seconds", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="of a step (assumed)")
    parser.add_argument("--bandwidth", type=float, default=50.0, help="between GPUs, GB/s (assumed)")
    cli.run(main, parser)
