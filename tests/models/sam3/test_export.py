"""The concept model for others: transformers, PEFT and Meta's file compute what the adapted model computes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Sam3Config, Sam3Model, Sam3Processor, Sam3VideoModel

from src.config import Config, LoraConfig
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import load_adapter, save_adapter
from src.lora.injection import apply_method
from src.models.build import build_model
from src.models.checkpoint import load_trained
from src.models.export import export
from src.models.sam3.export import probe
from src.models.sam3.nano import nano_tokenizer
from src.models.sam3.weights import detector_weights, meta_state_dict
from src.models.sam3_tracker.weights import open_weights
from tests.errors import refuses
from tests.sam3 import write_whole

LORA = LoraConfig(method="lora", rank=2, target_modules=["detr_*_proj", "mask_decoder.*_proj", "detr_decoder.*.fc1"])
MOPE = LoraConfig(method="mope", experts=3, top_k=2, rank=2, target_modules=["detr_*_proj"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detector, tracker and tokenizer, as the hub's folder has them."""
    folder = write_whole(tmp_path_factory.mktemp("whole"))
    nano_tokenizer(["crack"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def meta(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as Meta's sam3.pt, but tiny, with a weight of the tracker and of what transformers leaves out."""
    model = build_model(config_of(whole).model)
    path = tmp_path_factory.mktemp("meta") / "sam3.pt"
    others = ("tracker.x", "detector.geometry_encoder.points_pool_project.weight")
    torch.save({"model": meta_state_dict(model.state_dict()) | {name: torch.ones(2) for name in others}}, path)
    model.config.save_pretrained(path.parent)
    model.tokenizer.save_pretrained(path.parent)
    return path


def config_of(base: Path, name: str = "sam3") -> Config:
    return Config.model_validate({"model": {"name": name, "checkpoint": str(base)}})


@pytest.fixture
def learned(tmp_path: Path) -> Callable[[Path, LoraConfig], Path]:
    """``learned(base, LORA)``: a folder of adapters that are far from zero."""

    def learn(base: Path, lora: LoraConfig) -> Path:
        model = build_model(config_of(base).model)
        apply_method(model, lora)
        torch.manual_seed(1)
        for _, adapter in iter_adapter_layers(model):
            torch.nn.init.normal_(adapter.lora_B, std=0.3)
        save_adapter(model, folder := tmp_path / "trained", lora, {"model_name": "sam3"})
        return folder

    return learn


def computed(base: Path, trained: Path) -> dict[str, Tensor]:
    model = build_model(config_of(base).model)
    before = probe(model)
    load_trained(model, trained)
    after = probe(model)
    assert all((before[name] - after[name]).abs().max() > 1e-3 for name in ("pred_masks", "pred_logits"))
    return after


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


def test_the_hubs_folder_is_merged_and_its_tracker_carried_over(whole: Path, learned: Any, tmp_path: Path) -> None:
    trained = learned(whole, LORA)
    written = export(config_of(whole), trained, "auto", tmp_path / "out")
    expected = computed(whole, trained)
    assert_same(probe(Sam3Model.from_pretrained(written)), expected)
    assert_same(probe(Sam3VideoModel.from_pretrained(written).detector_model), expected)
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, written))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("detector_model.") for name in changed)
    assert (written / "LICENSE").is_file() and (written / "NOTICE").is_file()
    picture = torch.zeros(3, 40, 60, dtype=torch.uint8)
    inputs = Sam3Processor.from_pretrained(written)(images=picture, text="crack", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 56, 56)


def test_experts_lie_beside_the_base_of_a_folder_of_the_detector_alone(sam3_folder: Path, tmp_path: Path) -> None:
    config = config_of(sam3_folder, "sam3_nano")
    model = build_model(config.model)
    apply_method(model, MOPE)
    for _, adapter in iter_adapter_layers(model):
        torch.nn.init.normal_(adapter.lora_B, std=0.3)
    save_adapter(model, tmp_path / "trained", MOPE, {})
    written = export(config, tmp_path / "trained", "transformers", tmp_path / "out")
    stock = Sam3Model.from_pretrained(written)
    load_adapter(stock, written / "adapter")
    assert_same(probe(stock), probe(model.eval()))


def test_peft_adapts_transformers_own_model(whole: Path, learned: Any, tmp_path: Path) -> None:
    trained = learned(whole, LORA)
    written = export(config_of(whole), trained, "peft", tmp_path / "out")
    model = peft.PeftModel.from_pretrained(build_model(config_of(whole).model), written)
    assert_same(probe(model.merge_and_unload()), computed(whole, trained))


def test_metas_file_is_read_and_its_detector_replaced(meta: Path, whole: Path, learned: Any, tmp_path: Path) -> None:
    model = build_model(config_of(meta).model)
    assert_same(probe(model), probe(build_model(config_of(whole).model)))
    trained = learned(meta, LORA)
    written = export(config_of(meta), trained, "auto", tmp_path / "merged.pt")
    before, after = (open_weights(path) for path in (meta, written))
    assert before.keys() == after.keys()
    assert torch.equal(after["tracker.x"](), torch.ones(2))
    shutil.copy(written, other := tmp_path / "sam3.pt")
    for file in meta.parent.glob("*.json"):
        shutil.copy(file, tmp_path)
    expected = computed(meta, trained)
    assert_same(probe(build_model(config_of(other).model)), expected)
    folder = export(config_of(meta), trained, "transformers", tmp_path / "out")
    assert_same(probe(Sam3Model.from_pretrained(folder)), expected)


def test_every_weight_of_the_full_size_has_its_place_in_metas_file() -> None:
    with torch.device("meta"):
        weights = Sam3Model(Sam3Config()).state_dict()
    named = meta_state_dict(weights)
    back = detector_weights({name: lambda each=each: each for name, each in named.items()})
    assert {name: each.shape for name, each in back.items()} == {name: each.shape for name, each in weights.items()}
    block = "detector.backbone.vision_backbone.trunk.blocks.31.attn.qkv.weight"
    assert len(named) == 1096 and named[block].shape == (3072, 1024)


def test_what_does_not_fit_is_refused(whole: Path, meta: Path, learned: Any, tmp_path: Path) -> None:
    trained = learned(whole, LORA)
    with refuses("export.unsuited-form", "sam3.pt", "--format transformers"):
        export(config_of(whole), trained, "official", tmp_path / "merged.pt")
    weights = torch.load(meta, weights_only=True)["model"]
    lost = weights.pop("detector.transformer.decoder.query_embed.weight")
    torch.save(weights | {"detector.surplus": lost}, tmp_path / "sam3.pt")
    shutil.copy(meta.parent / "config.json", tmp_path)
    with refuses("base.other-model", "detr_decoder.query_embed.weight", "surplus"):
        build_model(config_of(tmp_path / "sam3.pt").model)
    shutil.copy(meta, tmp_path / "sam3.pt")
    with refuses("base.no-tokenizer", str(tmp_path)):
        build_model(config_of(tmp_path / "sam3.pt").model)
    torch.save({"x": torch.ones(1)}, tmp_path / "sam3.pt")
    with refuses("base.other-format", "sam3.pt"):
        build_model(config_of(tmp_path / "sam3.pt").model)
