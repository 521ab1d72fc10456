"""The sample data sets: ``data/sample``, and ``data/sample_words`` for concepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..writers import write_coco
from .render import make_videos
from .words import NEW_WORDS, make_pictures
from .worlds import CELLS


def write_sample(folder: str | Path) -> None:
    """Write the sample data set, ``data/sample``: stills of the CELLS domain as COCO, in train, valid and test."""
    for split, count, first_seed in (("train", 64, 0), ("valid", 16, 10_000), ("test", 16, 20_000)):
        data = make_videos(CELLS, count, first_seed, frames=1, side=256)
        write_coco(Path(folder) / split, data, description="cells: synthetic, made by src/data/synthetic.py")


def write_words_sample(folder: str | Path) -> None:
    """Write ``data/sample_words``: pictures of things whose words and looks the bundled SAM 3 does not know."""
    for split, count, first_seed in (("train", 96, 0), ("valid", 24, 10_000), ("test", 24, 20_000)):
        data = make_pictures(NEW_WORDS, count, first_seed)
        data.videos = [replace(video, video_id=video.video_id.replace(" ", "_")) for video in data.videos]
        write_coco(Path(folder) / split, data, description="things with names: synthetic, made by src/data/synthetic")
