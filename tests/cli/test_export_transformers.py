"""A folder for transformers holds what the adapted model computes: merged, or the base and its adapters beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.config import Config, LoraConfig, load_config
from src.data.decode.video import open_stream
from src.data.decode.video_writer import VideoWriter
from src.data.synthetic import CELLS, make_videos
from src.gating.domain_gate import GATE_FILE, DomainGate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import base_fingerprint, save_adapter
from src.lora.expert_groups import add_adapter, use_adapter
from src.lora.injection import apply_method
from src.models.checkpoint import load_trained
from src.models.export import export
from src.models.sam2 import export as sam2_export
from src.models.sam2.build import build_model
from src.models.sam2.export import probe, probe_transformers, relative_difference
from src.models.sam2.transformers_adapters import add_adapter_to_transformers
from src.models.sam2.transformers_format import MINIMUM_VERSION
from src.train.trainer import Trainer
from tests.errors import refuses

transformers = pytest.importorskip(
    "transformers", MINIMUM_VERSION, f"transformers (optional) {MINIMUM_VERSION} or newer is not installed"
)

ROOT = Path(__file__).parents[2]
LORA = LoraConfig(method="lora", rank=2, target_modules=["memory_attention.*_proj", "mlp.layers.0"])
MOPE = LoraConfig(method="mope", experts=3, top_k=2, rank=2)


@pytest.fixture
def config(nano_for_transformers, tiny_yaml, tmp_path) -> Config:
    settings = [f"output_dir={tmp_path / 'run'}", f"model.checkpoint={nano_for_transformers.checkpoint}"]
    return load_config(tiny_yaml, settings)


@pytest.fixture
def learned(config, tmp_path) -> Callable[..., Path]:
    """``learned(LORA)`` or ``learned({"cells": MOPE})``: a folder of adapters that are far from zero, and a gate."""

    def learn(lora) -> Path:
        model = build_model(config.model)
        if isinstance(lora, LoraConfig):
            apply_method(model, lora)
        else:
            for name, group in lora.items():
                add_adapter(model, name, group)
        torch.manual_seed(1)
        for _, adapter in iter_adapter_layers(model):
            torch.nn.init.normal_(adapter.lora_B, std=0.3)
        save_adapter(model, folder := tmp_path / "trained", lora, {"model_name": "sam2_nano", "image_size": 64})
        DomainGate(base_fingerprint(model)).save(folder)
        return folder

    return learn


def computed(config: Config, trained: Path | None = None, group: str | None = None) -> dict[str, torch.Tensor]:
    """What our own model computes."""
    model = build_model(config.model).eval()
    if trained is not None:
        load_trained(model, trained)
    with use_adapter(model, group):
        return probe(model)


def test_lora_is_merged(config, learned, tmp_path, capsys):
    trained = learned(LORA)
    written = export(config, trained, "transformers", tmp_path / "deep" / "exported")
    assert sorted(path.name for path in written.iterdir()) == [
        "NOTICE", "config.json", "model.safetensors", "processor_config.json",
    ]  # fmt: skip
    assert "read back into transformers: relative difference" in capsys.readouterr().out
    expected = computed(config, trained)
    assert relative_difference(expected, computed(config)) > 1e-2
    loaded = transformers.Sam2VideoModel.from_pretrained(written)
    assert relative_difference(probe_transformers(loaded, written), expected) < 1e-4


def test_full_fine_tuning_is_in_the_weights(config, tmp_path):
    config.lora.method, config.training.max_steps, config.training.learning_rate = "full", 1, 1e-3
    Trainer.from_config(config).fit()
    best = Path(config.output_dir) / "checkpoints" / "best.pt"
    written = export(config, best, "transformers", tmp_path / "exported")
    loaded = transformers.Sam2VideoModel.from_pretrained(written)
    found = probe_transformers(loaded, written)
    assert relative_difference(found, computed(config, best)) < 1e-4
    assert relative_difference(found, computed(config)) > 1e-3


def test_mope_lies_beside_the_base_with_its_gate(config, learned, tmp_path):
    trained = learned(MOPE)
    written = export(config, trained, "transformers", tmp_path / "exported")
    assert (written / "adapter" / GATE_FILE).read_bytes() == (trained / GATE_FILE).read_bytes()
    loaded = transformers.Sam2VideoModel.from_pretrained(written)
    assert relative_difference(probe_transformers(loaded, written), computed(config)) < 1e-4
    (written / "adapter" / GATE_FILE).unlink()
    add_adapter_to_transformers(loaded, written / "adapter")
    assert relative_difference(probe_transformers(loaded, written), computed(config, trained)) < 1e-4


def test_expert_groups_go_along(config, learned, tmp_path):
    trained = learned({"cells": MOPE, "polyps": LORA})
    written = export(config, trained, "transformers", tmp_path / "exported")
    (written / "adapter" / GATE_FILE).unlink()
    add_adapter_to_transformers(loaded := transformers.Sam2VideoModel.from_pretrained(written), written / "adapter")
    with use_adapter(loaded, "polyps"):
        found = probe_transformers(loaded, written)
    assert relative_difference(found, computed(config, trained, "polyps")) < 1e-4


def test_a_folder_that_differs_is_not_written(config, learned, tmp_path, monkeypatch):
    trained = learned(MOPE)
    monkeypatch.setattr(sam2_export, "add_adapter_to_transformers", lambda model, folder: None)
    with refuses("export.differs"):
        export(config, trained, "transformers", tmp_path / "deep" / "exported")
    assert list((tmp_path / "deep").iterdir()) == []


class TestExample:
    @pytest.mark.usefixtures("installed")
    def test_it_follows_a_box_with_the_adapters(self, config, learned, tmp_path, run_script):
        exported = export(config, learned(MOPE), "transformers", tmp_path / "exported")
        with VideoWriter(tmp_path / "clip.mp4") as clip:
            for frame in make_videos(CELLS, 1, 0, frames=3, side=64).videos[0].frames:
                clip.write(frame.read())
        said = {}
        for gate in ("auto", "off"):
            status, said[gate], _ = run_script(
                ROOT / "examples/track_with_transformers.py",
                *("--model", exported, "--input", tmp_path / "clip.mp4", "--box", "8,10,40,44"),
                *("--gate", gate, "--output", tmp_path / f"{gate}.mp4"),
            )
            assert status == 0
        assert "the domain gate: none of its domains: the base tracks" in said["auto"]
        assert len(list(open_stream(tmp_path / "auto.mp4"))) == 3
        # the gate knows no domain, so both are the base's
        assert (tmp_path / "auto.mp4").read_bytes() == (tmp_path / "off.mp4").read_bytes()
