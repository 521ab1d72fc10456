"""The scale of what adapters learned that is kept at the end of a run."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from src.config import LoraConfig, ModelConfig
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import WEIGHTS_FILE
from src.lora.injection import apply_method
from src.models.checkpoint import read_checkpoint
from src.models.sam2.build import build_model
from src.tasks.base import Validation
from src.tasks.tracking.task import TrackingTask
from src.train.adapter_scale import scale_adapters, scaled_adapters
from src.train.callbacks import TensorBoard
from src.train.trainer import Trainer


@pytest.mark.parametrize("method", ["mope", "lora"])
def test_half_of_an_adapter_adds_half(method):
    torch.manual_seed(0)
    model = build_model(ModelConfig(image_size=64))
    apply_method(model, LoraConfig(method=method, experts=3, target_modules=["memory_attention.layers.0.*.q_proj"]))
    _, layer = next(iter_adapter_layers(model))
    with torch.no_grad():
        for parameter in layer.adapter_parameters():
            parameter.normal_()
    x = torch.randn(5, layer.in_features)
    base, before, state = layer.base_layer(x), layer(x), {k: t.clone() for k, t in model.state_dict().items()}
    with scaled_adapters(model, 0.5):
        assert torch.allclose(layer(x) - base, 0.5 * (before - base), atol=1e-4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    scale_adapters(model, 0.5)
    assert torch.equal(layer(x), before)  # adapters that did not train stay


def test_the_share_that_validates_best_is_chosen_once(make_config, tmp_path, monkeypatch):
    settings = ["training.max_epochs=1", "training.learning_rate=1e-2"]
    plain = Trainer.from_config(make_config(*settings, f"output_dir={tmp_path / 'plain'}"))
    plain.fit()
    raw = read_checkpoint(plain.best).weights

    scored = {}

    def validate(self, model, label, shard):
        J = {"adapter scale 0.25": 0.3, "adapter scale 0.5": 0.8}.get(label, 0.4)
        scored[label] = J
        return Validation({"J": J, "F": J})

    monkeypatch.setattr(TrackingTask, "validate", validate)
    monkeypatch.setattr(TensorBoard, "on_validation", lambda *_: None)
    config = make_config(*settings, "training.adapter_scales=[1.0, 0.5, 0.25]")
    Trainer.from_config(config).fit()
    assert {"adapter scale 0.25", "adapter scale 0.5"} < set(scored) and "adapter scale 1" not in scored
    trainer = Trainer.from_config(config, resume="auto")
    scored.clear()
    trainer.fit()
    assert not scored

    kept, written = read_checkpoint(trainer.best).weights, load_file(trainer.folder / "adapter" / WEIGHTS_FILE)
    for name, tensor in raw.items():
        expected = 0.5 * tensor if name.endswith("lora_B") else tensor
        assert torch.equal(kept[name], expected) and torch.equal(written[name], expected)
    metrics = json.loads((trainer.folder / "metrics.json").read_text())
    assert (metrics["adapter_scale"], metrics["best_J"]) == (0.5, 0.8)
    assert all(
        torch.equal(tensor, raw[name])
        for name, tensor in read_checkpoint(trainer.checkpoints / "last.pt").weights.items()
    )


def test_a_new_best_after_the_choice_is_scaled_again(make_config, monkeypatch):
    known = {"base": 0.1, "adapted": 0.4, "adapter scale 0.5": 0.8}
    monkeypatch.setattr(
        TrackingTask, "validate", lambda self, model, label, shard: Validation({"J": known[label], "F": 0.0})
    )
    monkeypatch.setattr(TensorBoard, "on_validation", lambda *_: None)
    settings = ["training.max_epochs=2", "training.learning_rate=1e-2", "training.adapter_scales=[1.0, 0.5]"]
    first = Trainer.from_config(make_config(*settings, "training.max_steps=3"))
    first.fit()
    assert read_checkpoint(first.best).progress["adapter_scale"] == 0.5
    known["adapted"] = 0.9
    going_on = Trainer.from_config(make_config(*settings), resume=first.best)
    going_on.fit()
    metrics = json.loads((going_on.folder / "metrics.json").read_text())
    assert (metrics["adapter_scale"], metrics["best_J"]) == (1.0, 0.9)
