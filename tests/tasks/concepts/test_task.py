"""The task of concepts in the trainer: resumed, shared among processes, with kept features, it is the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from src.config import Config, load_config
from src.data.synthetic.words import NEW_WORDS, make_pictures
from src.data.writers import write_coco
from src.lora.adapter import iter_adapter_layers
from src.tasks.concepts.answers import answer
from src.tasks.concepts.data import vocabularies
from src.tasks.concepts.task import ConceptTask
from src.train.trainer import Trainer
from tests.errors import refuses
from tests.train.recording import Recorded
from tests.train.steps import read_steps


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_coco(folder / "train", make_pictures(NEW_WORDS, 6, 0, named_by=("shape",)))
    write_coco(folder / "valid", make_pictures(NEW_WORDS, 2, 100, named_by=("shape",)))
    return folder


@pytest.fixture
def make_run(sam3_folder, pictures, tmp_path) -> Callable[..., Config]:
    """``make_run("training.seed=1", …)``: a run of two epochs of three steps, on a model with random weights."""
    content = {
        "model": {"name": "sam3_nano", "checkpoint": str(sam3_folder)},
        "lora": {"method": "mope", "experts": 2, "top_k": 1, "rank": 2, "dropout": 0.1, "target_modules": ["q_proj"]},
        "dataset": {"train_img_folder": str(pictures / "train"), "val_img_folder": str(pictures / "valid")},
        "training": {
            "max_epochs": 2, "batch_size": 2, "clips_per_epoch": 6, "warmup_steps": 1, "num_workers": 0,
            "device": "cpu", "monitor_clips": 0, "domain_gate": False, "validate_every_epochs": 2,
            "concepts": {"positives": 2, "foreign": ["cup"], "exemplars": 0.5},
        },
        "evaluation": {"max_images": 1, "source_clips": 0},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return lambda *settings: load_config(tmp_path / "run.yaml", [f"output_dir={tmp_path / 'run'}", *settings])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)["weights"]


def test_four_steps_are_two_and_a_resume_and_two(make_run, tmp_path):
    whole = Recorded(make_run("training.max_steps=4", f"output_dir={tmp_path / 'whole'}"))
    whole.fit()
    parts = f"output_dir={tmp_path / 'parts'}"
    first = Recorded(make_run("training.max_steps=2", parts))
    first.fit()
    torch.manual_seed(99)  # a process of its own would begin with other random numbers
    second = Recorded(make_run("training.max_steps=4", parts), tmp_path / "parts/checkpoints/last.pt")
    second.fit()
    assert first.losses + second.losses == whole.losses and len(whole.losses) == 4
    found, expected = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_kept_features_change_no_loss(make_run, tmp_path):
    views = "training.cache_features={views: 1}"
    for name, settings in (("kept", [views]), ("anew", [views, "training.cache_features.budget_gb=0"])):
        Trainer.from_config(make_run(f"output_dir={tmp_path / name}", *settings)).fit()
    assert read_steps(tmp_path / "kept") == read_steps(tmp_path / "anew")


def test_shares_of_a_batch_add_up_to_its_loss(make_run):
    trainer = Trainer.from_config(make_run("lora.dropout=0", "training.concepts.exemplars=0"))
    task, items, model = trainer.task, trainer.run.items, trainer.model
    parts = [task.collate([items[0, index]]) for index in (0, 1)]
    totals = task.merge_totals([task.batch_totals(part) for part in parts])
    whole = task.losses(model, task.collate([items[0, 0], items[0, 1]]))
    shares = [task.losses(model, part, totals) for part in parts]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(share[name] for share in shares), loss, rtol=1e-4, atol=1e-5)


def test_boxes_alone_are_trained_without_the_mask_head(make_run, monkeypatch):
    trainer = Trainer.from_config(make_run("training.enable_segmentation=false"))
    monkeypatch.setattr(trainer.model.mask_decoder, "forward", lambda **_: pytest.fail("the mask head runs"))
    batch = trainer.task.collate([trainer.run.items[0, 0]])
    assert trainer.task.losses(trainer.model, batch).keys() == {"total", "score", "presence", "box", "giou"}
    assert trainer.score("boxes").scores.keys() >= {"cgF1", "IL_MCC", "pmF1"}


def test_new_adapters_answer_as_the_base_does(make_run):
    config = make_run()
    task = ConceptTask(config)
    task.load_data()
    base, adapted = task.build_model(), Trainer.from_config(config).model.eval()
    assert any(iter_adapter_layers(adapted))
    _, video, frame = next(task.validation[0].images())
    picture = video.frames[frame].read()
    for found, expected in zip(*(answer(m, picture, ["heart", "cup"], most=3) for m in (adapted, base)), strict=True):
        assert (found.scores == expected.scores).all() and found.masks == expected.masks
        assert found.masks[0].decode().shape == picture.shape[:2]


def test_what_cannot_be_asked_is_said(make_run):
    task = ConceptTask(make_run("training.concepts.foreign=[]", "dataset.phrases={heart: [heart, love]}"))
    task.load_data()
    task.queries = 1
    lines = "\n".join(task.describe_data(task.build_items(None)))
    assert "heart or love" in lines and "more than the model's 1 queries" in lines


def test_mistakes_name_the_key(make_run):
    with refuses("config.mistakes", "dataset.clip", "sam3_nano"):
        make_run("dataset.clip.frames=2")
    task = ConceptTask(make_run("dataset.phrases={harts: heart}"))
    with refuses("concepts.unknown-category", "harts", "heart"):
        task.load_data()


def test_a_set_without_categories_is_refused(make_run):
    data = make_pictures(NEW_WORDS, 2, 0)
    nameless = [replace(v, objects=[replace(o, category=None) for o in v.objects]) for v in data.videos]
    with refuses("concepts.no-categories", "target"):
        vocabularies(make_run(), [[replace(data, videos=nameless)]])
