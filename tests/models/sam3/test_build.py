"""Folders that transformers writes are loaded strictly, and others refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3VideoConfig, Sam3VideoModel

from src.config import ModelConfig
from src.models.sam3.build import build_model, save_folder
from src.models.sam3.nano import nano_tokenizer
from src.models.spec import spec_of
from tests.errors import refuses


def config(folder: Path | str) -> ModelConfig:
    return ModelConfig(name="sam3_nano", checkpoint=str(folder))


def test_a_folder_gives_its_weights_and_tokenizer(sam3_folder: Path, model: Any) -> None:
    weights = load_file(sam3_folder / "model.safetensors")
    assert set(weights) == set(model.state_dict())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert model.tokenizer.decode(model.tokenizer("Red disc")["input_ids"]) == "[BOS] red disc [EOS]"
    assert spec_of(model).task == "concepts"


def test_another_image_size_is_built_on_the_same_weights(sam3_folder: Path) -> None:
    model = build_model(config(sam3_folder).model_copy(update={"image_size": 252}))
    assert model.config.image_size == 252
    assert model.vision_encoder.backbone.layers[1].position_ids.shape == (18 * 18, 2)


def test_a_folder_of_all_of_sam_3_gives_its_detector(model: Any, tmp_path: Path) -> None:
    """It holds a tracker, too, as ``facebook/sam3`` does."""
    small = {"vision_config": model.config.vision_config.to_dict()}
    whole = Sam3VideoModel(Sam3VideoConfig(detector_config=model.config.to_dict(), tracker_config=small))
    whole.detector_model.load_state_dict(model.state_dict())
    save_folder(whole, model.tokenizer, tmp_path)
    found = build_model(ModelConfig(name="sam3", checkpoint=str(tmp_path)))
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_folders_that_do_not_fit_are_refused(sam3_folder: Path, tmp_path: Path) -> None:
    with refuses("base.missing", "nowhere"):
        build_model(config(tmp_path / "nowhere"))
    folder = tmp_path / "copy"
    shutil.copytree(sam3_folder, folder)
    weights = load_file(folder / "model.safetensors")
    lost, bent = "detr_decoder.query_embed.weight", "dot_product_scoring.text_proj.bias"
    broken = {k: v for k, v in weights.items() if k != lost} | {"surplus": torch.zeros(1), bent: torch.zeros(3)}
    save_file(broken, folder / "model.safetensors", {"format": "pt"})
    with refuses("base.other-model", lost, bent, "surplus"):
        build_model(config(folder))
    (folder / "model.safetensors").write_bytes(b"nothing")
    with refuses("base.damaged", str(folder)):
        build_model(config(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with refuses("base.other-model", "clip"):
        build_model(config(folder))
    (folder / "config.json").write_text("{")
    with refuses("base.damaged", "config.json"):
        build_model(config(folder))


def test_a_folder_without_tokenizer_is_refused(sam3_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(sam3_folder / name, tmp_path)
    with refuses("base.no-tokenizer", str(tmp_path)):
        build_model(config(tmp_path))


def test_the_nanos_tokenizer_spells_words_that_it_does_not_know() -> None:
    tokenizer = nano_tokenizer(["red", "star"])
    assert tokenizer.tokenize("Red starfish café!") == [
        "red", "s", *(f"##{letter}" for letter in "tarfish"), "c", "##a", "##f", "##e", "[UNK]",
    ]  # fmt: skip
