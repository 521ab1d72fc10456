"""SAM 3's tracker for others: transformers and Meta's file compute what the adapted tracker computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.config import Config, LoraConfig
from src.gating.domain_gate import GATE_FILE, DomainGate, KnownDomain
from src.lora.adapter import disable_adapters, iter_adapter_layers
from src.lora.adapter_io import base_fingerprint, base_state_dict, save_adapter
from src.lora.expert_groups import add_adapter, use_adapter
from src.lora.injection import apply_method
from src.models.build import build_model
from src.models.checkpoint import load_trained
from src.models.export import NOTICE, export
from src.models.sam2.export import probe, probe_inputs, probe_transformers, relative_difference
from src.models.sam2.gate_hooks import gate_features, to_pixels
from src.models.sam2.transformers_adapters import add_adapter_to_transformers
from tests.errors import refuses

transformers = pytest.importorskip("transformers", "5.24", "SAM 3's tracker needs transformers 5.24")

from src.models.sam3_tracker.transformers_form import save_processor, tracker_of  # noqa: E402
from src.models.sam3_tracker.weights import meta_state_dict  # noqa: E402
from tests.sam3 import write_tiny, write_whole  # noqa: E402

LORA = LoraConfig(method="lora", rank=2, target_modules=["memory_attention.*_proj", "mlp.layers.0"])
ENCODER = LoraConfig(
    method="lora", rank=2, target_modules=["image_encoder.*.attention.v_proj", "sam_mask_decoder.*.v_proj"]
)
MOPE = LoraConfig(method="mope", experts=3, top_k=2, rank=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Detector and tracker."""
    return write_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The tracker alone."""
    return write_tiny(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def meta(whole, tmp_path_factory) -> Path:
    """A file such as Meta's sam3.pt, but tiny: the tracker's weights, and one of the detector."""
    model = build_model(config_of(whole).model)
    path = tmp_path_factory.mktemp("meta") / "sam3.pt"
    torch.save({**meta_state_dict(model.state_dict()), "detector.dot_prod_scoring.x": torch.ones(2)}, path)
    return path


def config_of(base: Path, size: int | None = None) -> Config:
    return Config.model_validate({"model": {"name": "sam3_tracker", "checkpoint": str(base), "image_size": size}})


@pytest.fixture
def learned(tmp_path) -> Callable[..., Path]:
    """``learned(base, LORA)``: a folder of adapters that are far from zero."""

    def learn(base: Path, lora: Any) -> Path:
        model = build_model(config_of(base).model)
        if isinstance(lora, LoraConfig):
            apply_method(model, lora)
        else:
            for name, group in lora.items():
                add_adapter(model, name, group)
        torch.manual_seed(1)
        for _, adapter in iter_adapter_layers(model):
            torch.nn.init.normal_(adapter.lora_B, std=0.3)
        save_adapter(model, folder := tmp_path / "trained", lora, {"model_name": "sam3_tracker", "image_size": 56})
        return folder

    return learn


def computed(config: Config, trained: Path | None = None) -> dict[str, torch.Tensor]:
    """What our own model computes."""
    model = build_model(config.model).eval()
    if trained is not None:
        load_trained(model, trained)
    return probe(model)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert relative_difference(found, expected) < 1e-4


def found_by(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """What a class of transformers computes."""
    loaded = getattr(transformers, kind).from_pretrained(folder)
    return probe_transformers(loaded if kind == "Sam3TrackerVideoModel" else tracker_of(loaded), folder)


def test_lora_is_merged_and_the_detector_stays_as_it_was(whole, learned, tmp_path, capsys):
    config, trained = config_of(whole), learned(whole, LORA)
    written = export(config, trained, "auto", tmp_path / "out")
    expected = computed(config, trained)
    assert relative_difference(expected, computed(config)) > 1e-2
    for kind in ("Sam3TrackerVideoModel", "Sam3VideoModel"):
        assert_same(found_by(kind, written), expected)
    before, after = load_file(whole / "model.safetensors"), load_file(written / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("tracker_model.") for name in changed)
    notice = (written / NOTICE).read_text()
    assert "SAM License" in notice and "derivative" in notice and "the licence's text" in notice
    assert "sees through it" not in capsys.readouterr().out


def test_a_tracker_alone_stays_alone_and_takes_another_size(alone, learned, tmp_path, capsys):
    config, trained = config_of(alone, 84), learned(alone, ENCODER)
    written = export(config, trained, "transformers", tmp_path / "out")
    assert "tracker alone" in capsys.readouterr().out
    assert_same(found_by("Sam3TrackerVideoModel", written), computed(config, trained))
    assert json.loads((written / "config.json").read_text())["image_size"] == 84


def test_an_adapted_encoder_is_the_detectors_too_and_that_is_said(whole, learned, tmp_path, capsys):
    export(config_of(whole), learned(whole, ENCODER), "transformers", tmp_path / "out")
    assert "the detector in the folder sees through it" in capsys.readouterr().out


class TestAdapters:
    """MoPE and expert groups are put into transformers' models by the call that SAM 2 has."""

    def test_mope_lies_beside_the_base_with_its_gate(self, whole, learned, tmp_path):
        config, trained = config_of(whole), learned(whole, MOPE)
        gate = DomainGate(base_fingerprint(build_model(config.model)))
        gate.save(trained)
        written = export(config, trained, "transformers", tmp_path / "out")
        assert (written / "adapter" / GATE_FILE).is_file()
        assert_same(found_by("Sam3TrackerVideoModel", written), computed(config))

    @pytest.mark.parametrize("kind", ["Sam3TrackerVideoModel", "Sam3VideoModel"])
    def test_a_model_computes_what_the_adapted_model_computes(self, whole, learned, kind):
        everywhere = LoraConfig(method="mope", experts=3, top_k=2, rank=2, target_modules=["all"])
        trained = learned(whole, everywhere)
        model = getattr(transformers, kind).from_pretrained(whole)
        assert add_adapter_to_transformers(model, trained).lora == everywhere
        folder = written_processor(whole, trained.parent)
        tracker = model if kind == "Sam3TrackerVideoModel" else tracker_of(model)
        assert_same(probe_transformers(tracker, folder), computed(config_of(whole), trained))
        with disable_adapters(model):
            assert_same(probe_transformers(tracker, folder), computed(config_of(whole)))

    def test_groups_are_activated_by_hand_or_by_the_gate(self, whole, learned, tmp_path):
        trained = learned(whole, {"cells": MOPE, "polyps": ENCODER})
        ours = build_model(config_of(whole).model).eval()
        features_D = gate_features(ours, to_pixels(ours, probe_frame(ours))[None])[0]
        gate = DomainGate(base_fingerprint(ours))
        gate.domains["cells"] = KnownDomain(
            features_D, torch.ones_like(features_D), torch.zeros(1, len(features_D)), 1e-3
        )
        folder = written_processor(whole, tmp_path)
        load_trained(ours, trained)
        by_hand = transformers.Sam3TrackerVideoModel.from_pretrained(whole)
        add_adapter_to_transformers(by_hand, trained)
        with use_adapter(by_hand, "polyps"), use_adapter(ours, "polyps"):
            assert_same(probe_transformers(by_hand, folder), probe(ours))
        gate.save(trained)
        gated = transformers.Sam3TrackerVideoModel.from_pretrained(whole)
        add_adapter_to_transformers(gated, trained)
        with use_adapter(by_hand, "cells"):
            expected = probe_transformers(by_hand, folder)
        assert torch.equal(probe_transformers(gated, folder)["mask logits"], expected["mask logits"])
        with refuses("transformers.gate-mode", "Sam3VideoModel"):
            add_adapter_to_transformers(transformers.Sam3VideoModel.from_pretrained(whole), trained)

    def test_those_of_another_base_are_refused(self, whole, learned):
        trained = learned(whole, MOPE)
        model = transformers.Sam3VideoModel.from_pretrained(whole)
        model.tracker_neck.fpn_layers[0].proj1.bias.data += 1
        with refuses("adapter.other-base"):
            add_adapter_to_transformers(model, trained)


def written_processor(base: Path, folder: Path) -> Path:
    save_processor(56, folder)
    return folder


def probe_frame(model: Any) -> Any:
    return probe_inputs(56, 1)[1][0]


def test_peft_finds_the_layers_of_transformers_tracker(whole, learned, tmp_path):
    peft = pytest.importorskip("peft")
    trained = learned(whole, LORA)
    written = export(config_of(whole), trained, "peft", tmp_path / "out")
    model = peft.PeftModel.from_pretrained(transformers.Sam3TrackerVideoModel.from_pretrained(whole), written)
    folder = written_processor(whole, tmp_path)
    merged = model.merge_and_unload()
    assert_same(probe_transformers(merged, folder), computed(config_of(whole), trained))


class TestOfficial:
    """Meta's sam3.pt."""

    def test_the_trackers_part_is_replaced_in_the_file(self, whole, meta, learned, tmp_path, monkeypatch):
        monkeypatch.setattr("src.models.sam3_tracker.build.config_file", lambda checkpoint: whole / "config.json")
        config, trained = config_of(meta, 56), learned(whole, LORA)
        written = export(config, trained, "auto", tmp_path / "merged.pt")
        before, after = (torch.load(path, weights_only=True) for path in (meta, written))
        assert before.keys() == after.keys()
        assert torch.equal(after["detector.dot_prod_scoring.x"], torch.ones(2))
        merged = base_state_dict(build_model(config_of(written, 56).model))
        assert any(not torch.equal(merged[name], each) for name, each in build_model(config.model).state_dict().items())

    def test_of_another_base_it_is_refused_with_the_way_out(self, whole, learned, tmp_path):
        with refuses("export.unsuited-form", "--format transformers", "sam3.pt"):
            export(config_of(whole), learned(whole, LORA), "official", tmp_path / "merged.pt")
        assert not (tmp_path / "merged.pt").exists()


def test_half_precision_is_widened(whole, learned, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_bytes((whole / "config.json").read_bytes())
    weights = {name: tensor.half() for name, tensor in load_file(whole / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    written = export(config_of(half), learned(half, LORA), "transformers", tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(written / "model.safetensors").values()} == {torch.float32}
