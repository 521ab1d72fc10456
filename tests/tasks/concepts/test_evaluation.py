"""Evaluation of concepts: what is asked of which images, and base beside adapted in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from src.config import Config, load_config
from src.data.concepts.phrases import build_vocabulary
from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.synthetic.words import NEW_WORDS, make_pictures
from src.data.writers import write_coco
from src.evaluation.expert_analysis import AnalysisOptions, analyze
from src.evaluation.run import evaluate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import save_adapter
from src.lora.injection import apply_method
from src.tasks.concepts.domains import ask_all, evaluation_domains, foreign_phrases, wrong_modifiers
from src.tasks.concepts.task import ConceptTask
from tests.errors import refuses

SIDE = 32


def still(name: str, *categories: str) -> VideoRecord:
    """A grey image with a square of each category."""
    mask_HW = np.zeros((SIDE, SIDE), bool)
    mask_HW[4:12, 4:12] = True
    objects = [ObjectTrack(i, [RLE.encode(mask_HW)], category) for i, category in enumerate(categories, 1)]
    return VideoRecord(name, SIDE, SIDE, [ArrayFrame(np.full((SIDE, SIDE, 3), 90, np.uint8))], objects)


def fruit() -> DataSet:
    return DataSet("fruit", [still("a", "ripe berry"), still("b", "leaf", "raw berry"), still("c", "leaf")])


@pytest.fixture(scope="module")
def asked():
    return ask_all("fruit", fruit(), build_vocabulary(["ripe berry", "raw berry", "leaf"], {}))


@pytest.fixture(scope="module")
def make_run(sam3_folder, tmp_path_factory) -> Callable[..., Config]:
    """``make_run("training.seed=1", …)``: a run on a model with random weights, of two pictures of shapes."""
    folder = tmp_path_factory.mktemp("evaluated")
    for split, count, seed in (("train", 2, 0), ("valid", 2, 100)):
        write_coco(folder / split, make_pictures(NEW_WORDS, count, seed, named_by=("shape",)))
    (folder / "unlabelled").mkdir()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "unlabelled/grey.png")
    content = {
        "model": {"name": "sam3_nano", "checkpoint": str(sam3_folder)},
        "lora": {"method": "lora", "rank": 2, "target_modules": ["q_proj"]},
        "dataset": {"train_img_folder": str(folder / "train"), "val_img_folder": str(folder / "valid"), "name": "new"},
        "training": {"device": "cpu", "num_workers": 0, "monitor_clips": 1, "max_epochs": 1, "domain_gate": False},
        "evaluation": {
            "source_clips": 1, "overlays": 1,
            "concepts": {"nouns": ["cup"], "pictures": str(folder / "unlabelled")},
        },
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return lambda *settings: load_config(folder / "run.yaml", list(settings))


def questions(domain) -> dict[str, dict[str, int]]:
    """Image → phrase → instances."""
    return {
        video.video_id: {truth.phrase: len(truth.masks) for truth in domain.ask(video, frame)}
        for _, video, frame in domain.images()
    }


def test_all_phrases_are_asked_of_every_image(asked):
    assert questions(asked) == {
        "a": {"ripe berry": 1, "raw berry": 0, "leaf": 0},
        "b": {"ripe berry": 0, "raw berry": 1, "leaf": 1},
        "c": {"ripe berry": 0, "raw berry": 0, "leaf": 1},
    }


def test_a_single_phrase_has_absent_nouns_beside_it():
    data = DataSet("leaves", [still("a", "leaf")])
    one = ask_all("leaves", data, build_vocabulary(["leaf"], {}))
    assert questions(one) == {"a": {"leaf": 1, "person": 0, "car": 0, "dog": 0}}
    assert questions(ask_all("leaves", data, build_vocabulary(["leaf"], {}, ["cup"]))) == {"a": {"leaf": 1, "cup": 0}}


def test_foreign_phrases_are_none_of_the_domain(asked):
    foreign = foreign_phrases(asked, ["cup", "leaf"], ["red star"])
    assert questions(foreign)["b"] == {"red star": 0, "cup": 0}
    assert (foreign.name, foreign.shown) == ("fruit, foreign phrases", ("IL_FPR",))
    many = foreign_phrases(asked, [f"noun {i}" for i in range(99)], [f"other {i}" for i in range(99)])
    nouns = [phrase for phrase in questions(many)["a"] if "noun" in phrase]
    assert len(nouns) == 20 and nouns[-1] == "noun 95" and len(questions(many)["a"]) == 40


def test_wrong_modifiers_are_of_a_noun_that_is_shown(asked):
    assert questions(wrong_modifiers(asked)) == {
        "a": {"ripe berry": 1, "raw berry": 0}, "b": {"raw berry": 1, "ripe berry": 0}, "c": {},
    }  # fmt: skip
    assert wrong_modifiers(ask_all("x", fruit(), build_vocabulary(["leaf", "ripe berry"], {}))) is None


def test_an_evaluation_asks_what_was_learned_and_what_may_be_forgotten(make_run):
    domains = evaluation_domains(make_run(), "valid")
    assert [domain.name for domain in domains] == [
        "new", "words", "new, foreign phrases", "words, modifiers", "unlabelled, unlabelled",
    ]  # fmt: skip
    for of in questions(domains[1]).values():
        assert sum(n == 0 for n in of.values()) == 6 and any(of.values())
    assert "cup" in next(iter(questions(domains[2]).values()))


def test_base_and_adapted_model_stand_in_one_table(make_run, tmp_path, monkeypatch):
    config = make_run(f"output_dir={tmp_path}")
    torch.manual_seed(config.training.seed)
    adapted = ConceptTask(config).build_model()
    apply_method(adapted, config.lora)
    for _, adapter in iter_adapter_layers(adapted):
        torch.nn.init.normal_(adapter.lora_B, std=0.5)
    save_adapter(adapted, tmp_path / "adapter", config.lora, {})

    evaluation = evaluate(config, tmp_path / "adapter", save_masks=True)
    rows = {c.domain.name: c for c in evaluation.comparisons}
    assert rows["new"].base.scores.keys() >= {"cgF1", "AP", "AP50", "AP75", "pmF1", "IL_MCC", "IL_FPR"}
    assert rows["new, foreign phrases"].base.scores.keys() == {"IL_FPR"}
    assert rows["unlabelled, unlabelled"].base.scores == {"agreement": 1.0}
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["domains"].keys() == rows.keys() and "prompt" not in results
    saved = {name: json.loads((tmp_path / f"predictions/{name}/new.json").read_text()) for name in ("base", "adapted")}
    assert {"image_id", "category", "score", "bbox", "segmentation"} <= saved["base"][0].keys()
    assert saved["base"] != saved["adapted"]
    assert "agreement" in evaluation.tables().splitlines()[3]
    assert evaluation.to_json() + "\n" == (tmp_path / "results.json").read_text()

    card = (tmp_path / "adapter/README.md").read_text()
    assert "best checkpoint by cgF1" in card and "clips" not in card
    code = re.search(r"```python\n(.*)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code[1].replace("sam2_mope", "src"), found)
    assert dict(iter_adapter_layers(found["predictor"])).keys() == dict(iter_adapter_layers(adapted)).keys()


def test_boxes_are_compared_where_masks_are_not_trained(make_run):
    config = make_run("training.enable_segmentation=false")
    task = ConceptTask(config)
    model = task.build_model()
    domain = task.evaluation_domains("valid")[0]
    result = task.score_domain(model, domain, "mask")
    assert (result.region, "boxes are compared" in task.describe_scores("mask")) == ("bbox", True)
    assert not any(prediction.masks for image in result.images for prediction in image.predictions)


def test_validation_shows_what_is_forgotten_and_pictures(make_run):
    task = ConceptTask(make_run())
    task.load_data()
    model = task.build_model()
    validation = task.validate(model, "base")
    assert validation.scores.keys() == {"cgF1", "cgF1@50", "pmF1", "pmF1@50", "IL_MCC", "IL_FPR"}
    extra = task.extra_scores(model, validation)
    assert {tag.rpartition("/")[0] for tag in extra} == set(task.monitored_tags()["Does it forget?"])
    assert {"retention/words/cgF1", "retention/new, foreign phrases/IL_FPR"} <= extra.keys()
    base = json.loads(json.dumps(task.picture_data(validation)))
    ((tag, picture),) = task.pictures(validation, base)
    assert tag.startswith("overlays/new words") and picture.shape[1] == 3 * 192
    ((_, without),) = task.pictures(validation, {})
    assert np.array_equal(picture[20:, 2 * 192 :], without[20:, 192:]), "the base's own answers are those of now"


def test_what_needs_prompts_is_refused(make_run, tmp_path):
    with refuses("analysis.not-tracking", "sam3_nano"):
        analyze(make_run(), tmp_path, tmp_path, tmp_path, AnalysisOptions("mask"))
    with refuses("evaluation.no-prompts", "sam3_nano"):
        evaluate(make_run(), None, prompt="box")
