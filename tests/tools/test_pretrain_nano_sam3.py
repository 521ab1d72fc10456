"""Pre-training of the nano SAM 3: its batches say what pictures show, and both phases run from start to folder."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.24", reason="SAM 3 is a model of transformers")

from src.config import ModelConfig
from src.data.synthetic.words import WORDS
from src.models.sam3.build import build_model
from src.models.sam3.nano import nano_tokenizer, new_nano
from tools import pretrain_nano_sam3
from tools.muon import orthogonal
from tools.nano_sam3_data import PictureCache, ask_all, box_of, tokens_of
from tools.nano_sam3_report import ask_exemplars, ask_unseen, ask_words, collect, scores


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PictureCache:
    """Twelve pictures in files."""
    return PictureCache(WORDS, tmp_path_factory.mktemp("pictures"), 12, first_seed=0)


def test_boxes_are_those_of_the_mirrored_picture(cache: PictureCache) -> None:
    batch = cache.batch(np.arange(12), np.arange(12) % 2 == 0)
    for picture, boxes_M4 in zip(batch.pictures, batch.boxes_BM4, strict=True):
        for number in range(len(picture.things)):
            assert boxes_M4[number].tolist() == pytest.approx(box_of(picture.mask(number)), abs=1e-6)


def test_exemplars_are_boxes_of_instances_or_of_what_is_not_meant(cache: PictureCache) -> None:
    batch = cache.batch(np.arange(12), np.zeros(12, bool))
    questions = ask_all(WORDS, batch, 4, np.random.default_rng(0), exemplars=1.0)
    for row, (boxes, labels) in enumerate(zip(questions.exemplars_PX4, questions.labels_PX, strict=True)):
        things = batch.boxes_BM4[row // 4]
        centres = (things[:, :2] + things[:, 2:]) / 2
        for box, label in zip(boxes, labels, strict=True):
            if label >= 0:
                nearest = int((centres - box[:2]).norm(dim=1).argmin())
                assert bool(questions.hits_PM[row, nearest]) == bool(label == 1)


def test_tokens_are_the_tokenizers_and_capitals_are_spelled() -> None:
    tokenizer = nano_tokenizer(WORDS.words())
    phrases = ("striped red disc", "zoka", "thing")
    ours, mask = tokens_of(phrases, tokenizer.get_vocab())
    theirs = tokenizer(list(phrases), padding=True, return_tensors="pt")
    assert torch.equal(ours, theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"])
    spelled, _ = tokens_of(("RED",), tokenizer.get_vocab())
    assert tokenizer.convert_ids_to_tokens(spelled[0]) == ["[BOS]", "r", "##e", "##d", "[EOS]"]


def test_updates_of_muon_are_nearly_orthogonal() -> None:
    matrices = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_both_phases_run_and_go_on_and_leave_a_folder(
    cache: PictureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = itertools.count(step=60)
    monkeypatch.setattr(pretrain_nano_sam3, "time", SimpleNamespace(monotonic=lambda: next(minutes)))  # one a step
    small = tuple(replace(phase, pictures=2, questions=2) for phase in pretrain_nano_sam3.PHASES)
    monkeypatch.setattr(pretrain_nano_sam3, "PHASES", small)
    monkeypatch.setattr(pretrain_nano_sam3, "PictureCache", lambda *_, **__: cache)
    monkeypatch.setattr(pretrain_nano_sam3, "new_nano", lambda *each: new_nano(*each, bias_steps=5))
    monkeypatch.setattr(pretrain_nano_sam3, "report", lambda *_, **__: {})
    steps = []
    step = pretrain_nano_sam3.Pretraining._step
    monkeypatch.setattr(
        pretrain_nano_sam3.Pretraining, "_step", lambda self: steps.append((self.phase.name, self.step)) or step(self)
    )
    settings = {"work": str(tmp_path), "output": str(tmp_path / "nano"), "pictures": 12, "seed": 0}
    pretrain_nano_sam3.pretrain(argparse.Namespace(minutes=[1, 1], **settings))
    pretrain_nano_sam3.pretrain(argparse.Namespace(minutes=[1, 2], **settings))
    assert steps == [("looks", 0), ("concepts", 0), ("concepts", 1)]
    model = build_model(ModelConfig(name="sam3_nano", checkpoint=str(tmp_path / "nano")))
    for ask_about in (ask_words, ask_exemplars, ask_unseen):
        pictures = list(cache.batch(np.arange(3), np.zeros(3, bool)).pictures)
        predictions, truths, kinds = collect(model, pictures, ask_about)
        assert len(predictions) == len(truths) == len(kinds) > 0
        assert scores(predictions, truths)["pairs"] == len(truths)
