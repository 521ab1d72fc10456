"""Index a COCO file of 100,000 images and read all of it in a loader process: seconds, and memory to the index's size.

The file is made in a temporary folder: 5 polygons of 12 to 36 points an image, drawn at random, over 1,000 small image
files that are listed again and again. A loader process reads every record once, its annotations checked and rasterised
and the image's header read; its private memory (what it shares with no other process) is compared with that of one that
has read an index of 500 images. Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from src import cli
from src.data.formats import coco
from src.data.formats.coco import CocoSource
from src.data.formats.reader import Location, OpenOptions
from src.data.packed import PackedList
from src.data.records import Source

HEIGHT, WIDTH, FILES, PER_IMAGE, FEW = 480, 640, 1000, 5, 500
MB = 2**20


def make_coco(folder: Path, images: int) -> Path:
    """Write the images and the JSON. Returns the JSON's path."""
    rng = np.random.default_rng(0)
    for number in range(min(FILES, images)):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number:012d}.jpg")
    path = folder / "_annotations.coco.json"
    with open(path, "w", encoding="utf-8") as file:
        entries = [
            {"id": i, "file_name": f"{i % FILES:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)
        ]
        categories = json.dumps([{"id": 1, "name": "thing"}])
        file.write(f'{{"images": {json.dumps(entries)}, "categories": {categories}, "annotations": [')
        for number in range(images * PER_IMAGE):
            file.write(("," if number else "") + json.dumps(annotation(number, rng)))
        file.write("]}")
    return path


def annotation(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """A star-shaped polygon, with two decimals as COCO has them."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(12, 37)))
    radius = rng.uniform(10, 60) * rng.uniform(0.7, 1, angles.size)
    x, y = rng.uniform(60, WIDTH - 60), rng.uniform(60, HEIGHT - 60)
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).round(2)
    box = [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]
    polygon = points.ravel().tolist()
    return {
        "id": number, "image_id": number // PER_IMAGE, "category_id": 1, "iscrowd": 0,
        "area": round(float(np.pi * radius.mean() ** 2), 2), "bbox": box, "segmentation": [polygon],
    }  # fmt: skip


def memory(field: str) -> float:
    """MB of this process: ``Rss``, or ``Private_Dirty`` and kin, from the kernel."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Records(Dataset[float]):
    """Reads records; with the last one tells the private memory, in MB, of the process that has read them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> float:
        record, _ = self.source.read(index)
        assert record is not None
        return memory("Private_") if index == len(self) - 1 else 0.0


def private_memory(source: CocoSource, start: str) -> float:
    """MB that a loader process has for itself once it has read every record."""
    loader = DataLoader(Records(source), batch_size=100, num_workers=1, multiprocessing_context=start)
    return max(float(batch.max()) for batch in loader)


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = make_coco(Path(folder), arguments.images)
        before, started = memory("Rss"), time.process_time()
        source = coco.READER.open(Location(Path(folder), path), OpenOptions())
        seconds, after = time.process_time() - started, memory("Rss")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = source.entries.nbytes / MB
        print(f"{len(source)} images, {len(source) * PER_IMAGE} annotations, JSON of {path.stat().st_size / MB:.0f} MB")
        print(
            f"indexed in {seconds:.1f} s of one core; resident {before:.0f} MB before, {after:.0f} MB after, "
            f"{peak:.0f} at most"
        )
        print(f"the index takes {size:.0f} MB, {size * 100_000 / len(source):.0f} MB for 100,000 images\n")
        print("| loader process | private memory for the index, MB | to the index |\n|---|--:|--:|")
        few = replace(source, entries=PackedList(source.entries[:FEW]))
        for start in ("fork", "spawn"):
            little = private_memory(few, start)
            more = private_memory(source, start) - little
            print(f"| {start} | {more:.0f} | {more / size:.2f} |", flush=True)


if __name__ == "__main__":
    parser = cli.parser(__doc__.splitlines()[0], "python -m benchmarks.index_large_coco --images 100000")
    parser.add_argument("--images", type=int, default=100_000, help="images of the file (default: 100000)")
    cli.run(main, parser)
