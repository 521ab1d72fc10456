"""Prediction by phrases: what is written for pictures, and which options do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli.predict import build_parser, main
from src.data.records import RLE
from src.data.synthetic.words import WORDS, make_picture
from src.data.writers import write_image
from src.evaluation.concepts.records import ConceptPrediction
from src.tasks.concepts import predict
from tests.errors import refuses


@pytest.fixture
def run(sam3_folder, tmp_path):
    """``run("--phrase", "x", …)``: predict on a folder of two pictures with a model of random weights."""
    for seed in range(2):
        write_image(tmp_path / f"walk/picture_{seed}.png", make_picture(WORDS, seed).image_HWC[: 100 + seed])
    content = {
        "model": {"name": "sam3_nano", "checkpoint": str(sam3_folder)}, "lora": {"method": "none"},
        "training": {"device": "cpu"}, "dataset": {"phrases": {"sparkle": "star"}},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))

    def predict_on(*words: str) -> Path:
        options = [*words] if "--input" in words else ["--input", str(tmp_path / "walk"), *words]
        config = [] if "--config" in words else ["--config", str(tmp_path / "run.yaml")]
        main(build_parser().parse_args([*config, "--output", str(tmp_path / "out"), *options]))
        return tmp_path / "out"

    return predict_on


def found_squares(model, picture, phrases, image_id, threshold, masks):
    """Of every phrase two overlapping squares, the second with the higher score."""
    height, width = picture.shape[:2]
    squares = [np.zeros((height, width), bool) for _ in range(2)]
    squares[0][0:20, 0:20] = squares[1][10:30, 10:30] = True
    scores, boxes = np.array([0.6, 0.9]), np.array([[0.0, 0, 20, 20], [10, 10, 30, 30]])
    return [ConceptPrediction(image_id, p, scores, boxes, [*map(RLE.encode, squares)], 0.9) for p in phrases]


def test_phrases_become_categories_masks_and_pictures(run, monkeypatch, capsys):
    monkeypatch.setattr(predict, "answer", found_squares)
    out = run("--phrase", "crack", "--phrase", "rust")
    content = json.loads((out / "walk.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "crack"}, {"id": 2, "name": "rust"}]
    assert [(i["file_name"], i["height"]) for i in content["images"]] == [
        ("picture_0.png", 100),
        ("picture_1.png", 101),
    ]
    assert [a["id"] for a in content["annotations"]] == [*range(1, 9)]
    third = content["annotations"][2]
    assert (third["image_id"], third["category_id"], third["score"], third["area"]) == (1, 2, 0.6, 400)
    assert third["bbox"] == [0, 0, 20, 20]
    mask = RLE({**third["segmentation"], "counts": third["segmentation"]["counts"].encode()}).decode()
    assert mask.sum() == 400
    numbers = np.array(Image.open(out / "Annotations/walk/picture_0.png"))
    assert (numbers[15, 15], numbers[25, 25], numbers[5, 5]) == (4, 4, 3), "the higher score is on top"
    assert Image.open(out / "Overlays/walk/picture_1.jpg").size == (168, 101)
    assert "rust: 4 found on 2 of 2 pictures" in capsys.readouterr().out


def test_a_model_answers_the_categories_of_a_file(run, tmp_path, capsys):
    entries = [{"id": 7, "name": "sparkle"}, {"id": 9, "name": "red_ring"}]
    (tmp_path / "data.json").write_text(json.dumps({"categories": entries}))
    picture = str(tmp_path / "walk/picture_0.png")
    out = run("--phrases-from", str(tmp_path / "data.json"), "--input", picture, "--overlay", "none")
    content = json.loads((out / "picture_0.json").read_text())
    assert content["categories"] == [{"id": 7, "name": "star"}, {"id": 9, "name": "red ring"}]
    assert all(annotation["score"] >= 0.5 for annotation in content["annotations"])
    assert not (out / "Overlays").exists() and "of 1 pictures" in capsys.readouterr().out


def test_what_does_not_go_together_is_refused(run, tmp_path):
    with refuses("predict.no-phrase", "--phrase"):
        run()
    with refuses("predict.no-phrase", "empty"):
        run("--phrase", " ")
    with refuses("predict.not-with-phrases", "--box"):
        run("--phrase", "x", "--box", "1,2,3,4")
    with refuses("predict.no-words", "sam2_nano"):
        run("--phrase", "x", "--set", "model={name: sam2_nano}", "--set", "dataset.phrases={}")
    (tmp_path / "clip.mp4").touch()
    with refuses("file.empty", "clip.mp4"):
        run("--phrase", "x", "--input", str(tmp_path / "clip.mp4"))
    with refuses("predict.not-with", "--frames", "--fps"):
        run("--phrase", "x", "--frames", "1:2", "--fps", "5")
    with refuses("predict.no-input"):
        run("--phrase", "x", "--input", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", [{}, {"categories": [{"id": 1}]}, {"categories": [{"id": 1, "name": "a"}] * 2}])
def test_a_file_without_proper_categories_is_refused(run, tmp_path, content):
    (tmp_path / "data.json").write_text(json.dumps(content))
    with refuses("predict.no-categories", "data.json"):
        run("--phrases-from", str(tmp_path / "data.json"))
