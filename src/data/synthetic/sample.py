"""The sample data set, ``data/sample``."""

from __future__ import annotations

from pathlib import Path

from ..writers import write_coco
from .render import make_videos
from .worlds import CELLS


def write_sample(folder: str | Path) -> None:
    """Write the sample data set, ``data/sample``: stills of the CELLS domain as COCO, in train, valid and test."""
    for split, count, first_seed in (("train", 64, 0), ("valid", 16, 10_000), ("test", 16, 20_000)):
        data = make_videos(CELLS, count, first_seed, frames=1, side=256)
        write_coco(Path(folder) / split, data, description="cells: synthetic, made by src/data/synthetic.py")
