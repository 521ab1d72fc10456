"""What an evaluation leaves behind: results.json of a fixed form, a table, and pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from src.config import MotionConfig
from src.data.records import RLE
from src.data.synthetic import CELLS, make_videos
from src.evaluation.forgetting import Domain, DomainResult, VideoResult
from src.evaluation.report import (
    Comparison,
    overlay_sheet,
    results_json,
    table,
    true_masks,
    write_report,
)

BASE = {"J": 0.5, "F": 0.4, "J&F": 0.45, "mIoU": 0.55, "Dice": 0.6}
ADAPTED = {"J": 0.75, "F": 0.3, "J&F": 0.525, "mIoU": 0.8, "Dice": 0.85}
ABOUT = {"about": "nano at 64 px", "prompt": "mask"}


def domain(name: str = "target", videos: int = 3) -> Domain:
    data = make_videos(CELLS, videos, 0, frames=3, side=48)
    return Domain(name, data, frames=3, max_objects=5, max_side=99, motion=MotionConfig())


def result(scores: dict[str, float], of: Domain, order: list[float]) -> DomainResult:
    """Every object's predicted masks are its true ones; ``order`` is each video's J."""
    blank = RLE.encode(np.zeros((48, 48), bool))
    videos = [
        VideoResult(
            video.video_id,
            {i: [mask or blank for mask in masks] for i, masks in true_masks(video).items()},
            {obj.object_id: J for obj in video.objects},
        )
        for video, J in zip(of.videos(), order, strict=True)
    ]
    return DomainResult(scores, videos)


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    target, kept = domain("target"), domain("kept")
    return [
        Comparison(target, result(BASE, target, [0.1, 0.5, 0.9]), result(ADAPTED, target, [0.2, 0.9, 0.5])),
        Comparison(kept, result(BASE, kept, [0.1, 0.5, 0.9]), None),
    ]


def test_results_have_a_fixed_form(comparisons):
    objects = sum(len(video.objects) for video in comparisons[0].domain.data.videos)
    assert results_json(comparisons, ABOUT) == {
        "domains": {
            "target": {"base": BASE, "adapted": ADAPTED, "videos": 3, "objects": objects},
            "kept": {"base": BASE, "adapted": BASE, "videos": 3, "objects": objects},
        },
        **ABOUT,
    }


def test_the_table_sets_the_models_side_by_side(comparisons):
    lines = [line.split() for line in table(comparisons).splitlines()]
    assert lines[0] == ["domain", "videos", "objects", "model", "J", "F", "J&F", "mIoU", "Dice"]
    objects = str(comparisons[0].base.objects)
    assert lines[2:] == [
        ["target", "3", objects, "base", "0.500", "0.400", "0.450", "0.550", "0.600"],
        ["adapted", "0.750", "0.300", "0.525", "0.800", "0.850"],
        ["change", "+0.250", "-0.100", "+0.075", "+0.250", "+0.250"],
        ["kept", "3", objects, "base", "0.500", "0.400", "0.450", "0.550", "0.600"],
    ]


def test_columns_are_aligned(comparisons):
    lines = table(comparisons).splitlines()
    ends = {len(line) for line in lines}
    assert len(ends) == 1
    markdown = table(comparisons, markdown=True).splitlines()
    assert {line.count("|") for line in markdown} == {10}
    assert set(markdown[1]) == set("|-: ")


def test_everything_is_written(comparisons, tmp_path):
    write_report(tmp_path / "new", comparisons, ABOUT, "A title", overlays=1)
    folder = tmp_path / "new"
    assert json.loads((folder / "results.json").read_text()) == results_json(comparisons, ABOUT)
    text = (folder / "results.md").read_text()
    assert text.startswith("# A title\n\nnano at 64 px\n\n| domain")
    pictures = sorted(p.name for p in (folder / "overlays").iterdir())
    assert pictures == ["kept_best1.png", "kept_worst1.png", "target_best1.png", "target_worst1.png"]
    assert all(f"](overlays/{name})" in text for name in pictures)
    # three frames across; truth and base, and adapted where there is one
    assert Image.open(folder / "overlays/target_best1.png").size == (3 * 192, 3 * 192)
    assert Image.open(folder / "overlays/kept_best1.png").size == (3 * 192, 2 * 192)


def test_best_and_worst_are_of_the_adapted_model(comparisons, tmp_path):
    """It is best on the second video and worst on the first; the base is best on the third."""
    write_report(tmp_path, comparisons[:1], ABOUT, "t", overlays=1)
    videos = comparisons[0].domain.data.videos
    for label, video in (("best1", videos[1]), ("worst1", videos[0])):
        truth = overlay_sheet(video, {"truth": true_masks(video)})
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"overlays/target_{label}.png"))[:192], truth)


def test_a_video_is_not_drawn_as_both_best_and_worst(comparisons, tmp_path):
    write_report(tmp_path, comparisons[:1], ABOUT, "t", overlays=2)
    names = sorted(p.name for p in (tmp_path / "overlays").iterdir())
    assert names == ["target_best1.png", "target_best2.png", "target_worst1.png"]


def test_no_overlays_on_request(comparisons, tmp_path):
    write_report(tmp_path, comparisons, ABOUT, "t", overlays=0)
    assert not (tmp_path / "overlays").exists()


def test_a_sheet_shows_frames_from_first_to_last():
    video = make_videos(CELLS, 1, 0, frames=8, side=48).videos[0]
    sheet = overlay_sheet(video, {"a": {}, "b": {}}, frames=4, cell=48)
    assert (sheet.shape, sheet.dtype) == ((96, 4 * 48, 3), np.uint8)
    below = slice(20, 48)  # beneath the label
    for column, t in enumerate((0, 2, 5, 7)):
        assert np.array_equal(sheet[below, 48 * column : 48 * (column + 1)], video.frames[t].read()[below])
