"""What an evaluation leaves behind: results.json of a fixed form, a table, and pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from src.config import MotionConfig
from src.data.records import RLE
from src.data.synthetic import CELLS, make_videos
from src.evaluation.domains import Domain
from src.evaluation.image_results import ImageObject, ImageResult, Segmented
from src.evaluation.metrics import ObjectScores, aggregate
from src.evaluation.report import (
    click_curves,
    results_json,
    write_report,
)
from src.evaluation.results import Comparison, DomainResult, VideoResult, statistics_table
from src.evaluation.sheets import overlay_sheet, true_masks
from src.evaluation.tables import image_table, intervals_table, table

ABOUT = {"about": "nano at 64 px", "prompt": "mask"}


def domain(name: str = "target", videos: int = 3) -> Domain:
    data = make_videos(CELLS, videos, 0, frames=3, side=48)
    return Domain(name, data, frames=3, max_objects=5, max_side=99, motion=MotionConfig())


def result(of: Domain, order: list[float]) -> DomainResult:
    """Every object's predicted masks are its true ones; ``order`` is each video's J on its two frames, F is half."""
    blank = RLE.encode(np.zeros((48, 48), bool))
    videos = []
    for video, J in zip(of.videos(), order, strict=True):
        J_T = np.array([J, J])
        scores = ObjectScores(J_T, J_T / 2, J_T, np.array([True, True]))
        videos.append(
            VideoResult(
                video.video_id,
                {i: [mask or blank for mask in masks] for i, masks in true_masks(video).items()},
                {obj.object_id: scores for obj in video.objects},
                {obj.object_id: f"original {obj.object_id}" for obj in video.objects},
            )
        )
    return DomainResult(aggregate([scores for video in videos for scores in video.scores.values()]), videos)


def image_result(quality: float) -> ImageResult:
    """Two images, on which so much of an object of ten columns is found; from clicks all of it."""
    truth, part = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    truth[:, :10] = part[:, : round(10 * quality)] = True
    box = Segmented(RLE.encode(part), 0.9, quality, 2 * quality / (1 + quality))
    whole = Segmented(RLE.encode(truth), 0.9, 1.0, 1.0)
    found = {"box": box, "1 click": box, "2 clicks": whole}
    return ImageResult([ImageObject(name, 1, 17, "x", RLE.encode(truth), found) for name in ("a", "b")], clicks=2)


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    target, kept = domain("target"), domain("kept")
    return [
        Comparison(
            target, result(target, [0.1, 0.5, 0.9]), result(target, [0.2, 0.9, 0.5]),
            (image_result(0.5), image_result(0.8)),
        ),
        Comparison(kept, result(kept, [0.1, 0.5, 0.9]), None),
    ]  # fmt: skip


def test_results_have_a_fixed_form(comparisons):
    results = results_json(comparisons, ABOUT)
    assert results == json.loads(json.dumps(results)), "plain data"
    assert results.keys() == {"domains", "about", "prompt"}
    target, kept = results["domains"]["target"], results["domains"]["kept"]
    assert target.keys() - kept.keys() == {"images"}
    assert kept.keys() == {
        "base", "adapted", "videos", "objects", "objects_not_scored", "protocol", "intervals", "per_video",
    }  # fmt: skip
    assert target["base"] == comparisons[0].base.scores
    assert target["adapted"] == comparisons[0].adapted.scores
    assert kept["adapted"] == kept["base"], "there is only the base"
    objects = sum(len(video.objects) for video in comparisons[0].domain.data.videos)
    assert (target["videos"], target["objects"], target["objects_not_scored"]) == (3, objects, 0)
    assert target["protocol"] == "after_prompt"
    assert target["base"].keys() == {
        "J", "F", "J&F", "mIoU", "Dice", "J_recall", "J_decay", "F_recall", "F_decay",
    }  # fmt: skip


def test_results_of_every_video_and_object(comparisons):
    first = results_json(comparisons, ABOUT)["domains"]["target"]["per_video"][0]
    video = comparisons[0].domain.data.videos[0]
    assert first["video"] == video.video_id
    assert first["base"] == pytest.approx({"J": 0.1, "F": 0.05, "J&F": 0.075})
    assert first["adapted"] == pytest.approx({"J": 0.2, "F": 0.1, "J&F": 0.15})
    assert [entry["object"] for entry in first["objects"]] == [obj.object_id for obj in video.objects]
    number = video.objects[0].object_id
    assert first["objects"][0] == {
        "object": number,
        "original_id": f"original {number}",
        "base": {"J": 0.1, "F": 0.05, "frames": 2},
        "adapted": {"J": 0.2, "F": 0.1, "frames": 2},
    }


def test_results_hold_the_intervals(comparisons):
    target = results_json(comparisons, ABOUT)["domains"]["target"]["intervals"]
    assert target.keys() == {"base", "adapted", "change"}
    for ends in target.values():
        assert ends.keys() == {"J", "F", "J&F"}
        assert all(low <= high for low, high in ends.values())
    assert target["base"]["J"] == list(comparisons[0].intervals()["base"]["J"])
    kept = results_json(comparisons, ABOUT)["domains"]["kept"]["intervals"]
    assert (kept["adapted"], kept["change"]) == (None, None)


def test_results_of_single_images(comparisons):
    images = results_json(comparisons, ABOUT)["domains"]["target"]["images"]
    assert (images["images"], images["objects"]) == (2, 2)
    assert images["base"].keys() == {"box", "1 click", "2 clicks", "mIoU_by_clicks"}
    assert images["base"]["box"] == comparisons[0].images[0].scores("box")
    assert (images["base"]["mIoU_by_clicks"], images["adapted"]["mIoU_by_clicks"]) == ([0.5, 1], [0.8, 1])
    assert images["per_object"][1] == {
        "image": "b", "object": 1, "original_id": 17,
        "base": {"box": 0.5, "1 click": 0.5, "2 clicks": 1}, "adapted": {"box": 0.8, "1 click": 0.8, "2 clicks": 1},
    }  # fmt: skip


def test_everything_is_written(comparisons, tmp_path):
    write_report(tmp_path / "new", comparisons, ABOUT, "A title", overlays=1)
    folder = tmp_path / "new"
    assert json.loads((folder / "results.json").read_text()) == results_json(comparisons, ABOUT)
    text = (folder / "results.md").read_text()
    assert text.startswith("# A title\n\nnano at 64 px\n\n| domain")
    for part in (table(comparisons, True), intervals_table(comparisons), statistics_table(comparisons)):
        assert part in text
    assert f"{image_table(comparisons, True)}\n\n![IoU over clicks](clicks.png)" in text
    pictures = sorted(p.name for p in (folder / "overlays").iterdir())
    assert pictures == ["kept_best1.png", "kept_worst1.png", "target_best1.png", "target_worst1.png"]
    assert all(f"](overlays/{name})" in text for name in pictures)
    # three frames across; truth and base, and adapted where there is one
    assert Image.open(folder / "overlays/target_best1.png").size == (3 * 192, 3 * 192)
    assert Image.open(folder / "overlays/kept_best1.png").size == (3 * 192, 2 * 192)


def test_without_clicks_there_is_nothing_of_single_images(comparisons, tmp_path):
    write_report(tmp_path, comparisons[1:], ABOUT, "t", overlays=0)
    assert not (tmp_path / "clicks.png").exists()
    assert "clicks" not in (tmp_path / "results.md").read_text()


def test_clicks_are_drawn_for_both_models(comparisons):
    (axes,) = click_curves(comparisons).axes
    assert axes.get_title() == "target"
    assert {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()} == {
        "base": [0.5, 1], "adapted": [0.8, 1],
    }  # fmt: skip


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


def test_a_sheet_shows_frames_that_were_annotated():
    video = replace(make_videos(CELLS, 1, 0, frames=8, side=48).videos[0], annotated=frozenset({0, 4, 7}))
    sheet = overlay_sheet(video, {"a": {}}, frames=4, cell=48)
    assert sheet.shape == (48, 3 * 48, 3)
    for column, t in enumerate((0, 4, 7)):
        assert np.array_equal(sheet[20:, 48 * column : 48 * (column + 1)], video.frames[t].read()[20:])
