"""The tables: rows, aligned columns, and the legend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from src.config import MotionConfig
from src.data.records import RLE
from src.data.synthetic import CELLS, make_videos
from src.evaluation.domains import Domain
from src.evaluation.image_results import ImageObject, ImageResult, Segmented
from src.evaluation.metrics import ObjectScores
from src.evaluation.results import Comparison, DomainResult, VideoResult, statistics_table
from src.evaluation.tables import image_table, intervals_table, legend, table

NAMES = ("J", "F", "J&F", "mIoU", "Dice", "J_recall", "J_decay", "F_recall", "F_decay")
BASE = dict(zip(NAMES, (0.5, 0.4, 0.45, 0.55, 0.6, 0.7, 0.1, 0.65, 0.2), strict=True))
ADAPTED = dict(zip(NAMES, (0.75, 0.3, 0.525, 0.8, 0.85, 0.9, 0.05, 0.6, 0.3), strict=True))


def domain(name: str) -> Domain:
    return Domain(name, make_videos(CELLS, 1, 0, frames=1, side=16), 3, 5, 99, MotionConfig())


def result(scores: dict[str, float], *J: float) -> DomainResult:
    """A video for each J, with one object."""
    videos = []
    for number, value in enumerate(J):
        J_T = np.array([value])
        videos.append(VideoResult(str(number), {1: []}, {1: ObjectScores(J_T, J_T, J_T, J_T > 0)}, {1: None}))
    return DomainResult(scores, videos)


def images(quality: float) -> ImageResult:
    mask = RLE.encode(np.ones((4, 4), bool))
    found = {prompt: Segmented(mask, 0.9, quality, quality) for prompt in ("box", "1 click")}
    return ImageResult([ImageObject("a", 1, None, "x", mask, found)], clicks=1)


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    return [
        Comparison(domain("target"), result(BASE, 0.5, 0.5), result(ADAPTED, 0.75, 0.75), (images(0.25), images(0.5))),
        Comparison(domain("kept"), result(BASE, 0.5), None),
    ]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_table_sets_the_models_side_by_side(comparisons):
    rows = cells(table(comparisons, markdown=True))
    assert rows[0] == ["domain", "videos", "objects", "model", "J", "J, 95 %", "F", "J&F", "mIoU", "Dice"]
    assert rows[2:] == [
        ["target", "2", "2", "base", "0.500", "0.50 to 0.50", "0.400", "0.450", "0.550", "0.600"],
        ["", "", "", "adapted", "0.750", "0.75 to 0.75", "0.300", "0.525", "0.800", "0.850"],
        ["", "", "", "change", "+0.250", "+0.25 to +0.25", "-0.100", "+0.075", "+0.250", "+0.250"],
        ["kept", "1", "1", "base", "0.500", "-", "0.400", "0.450", "0.550", "0.600"],
    ]


def test_columns_are_aligned_and_fit_a_screen(comparisons):
    lines = table(comparisons).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 100
    markdown = table(comparisons, markdown=True).splitlines()
    assert {line.count("|") for line in markdown} == {11}
    assert set(markdown[1]) == set("|-: ")
    assert max(len(line) for line in image_table(comparisons).splitlines()) <= 100


def test_intervals(comparisons):
    rows = cells(intervals_table(comparisons))
    assert rows[0] == ["domain", "model", "J", "F", "J&F"]
    assert rows[2] == ["target", "base", *["0.50 to 0.50"] * 3]
    assert len(rows) == 5, "base, adapted and change of the first; the other has one video, which gives none"


def test_recall_and_decay(comparisons):
    rows = cells(statistics_table(comparisons))
    assert rows[0] == ["domain", "model", "J recall", "J decay", "F recall", "F decay"]
    assert rows[2] == ["target", "base", "0.700", "0.100", "0.650", "0.200"]
    assert rows[4][-5:] == ["change", "+0.200", "-0.050", "-0.050", "+0.100"]


def test_single_images(comparisons):
    rows = [line.split() for line in image_table(comparisons).splitlines()]
    assert rows[0] == ["domain", "images", "objects", "prompt", "model", "AP", "AP50", "AP75", "mIoU", "Dice"]
    assert rows[2] == ["target", "1", "1", "box", "base", "1.000", "1.000", "1.000", "0.250", "0.250"]
    assert rows[4] == ["change", "+0.000", "+0.000", "+0.000", "+0.250", "+0.250"]
    assert rows[5][:3] == ["1", "click", "base"]
    assert len(rows) == 2 + 6, "nothing of the domain without images"


def test_the_legend_says_what_was_left_out(comparisons):
    assert len(legend(comparisons)) == 1
    video = comparisons[1].base.videos[0]
    missing = replace(comparisons[1], base=DomainResult(BASE, [replace(video, predicted={1: [], 2: []})]))
    assert legend([missing])[1:] == ["kept: 1 object is on no frame that counts, and left out"]


def test_the_legend_says_where_official_tools_count_otherwise(comparisons):
    video = comparisons[1].base.videos[0]
    scores = next(iter(video.scores.values()))
    gap = DomainResult(BASE, [replace(video, predicted={1: [], 3: []}, scores={1: scores, 3: scores})])
    davis = replace(comparisons[1], domain=replace(comparisons[1].domain, protocol="davis"), base=gap)
    assert "numbers have gaps" in legend([davis])[1]
    assert len(legend([replace(comparisons[1], base=gap)])) == 1
    base, adapted = comparisons[0].images
    crowded = replace(comparisons[0], images=(replace(base, objects=base.objects * 101), adapted))
    assert "COCO's own AP stops at 100" in legend([crowded])[1]
