"""The examples run as they are, on the nano model; what the demo says of base plus is counted, not written down."""

from __future__ import annotations

import runpy
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from src.lora.adapter_io import WEIGHTS_FILE

pytestmark = pytest.mark.usefixtures("installed")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    """Run an example as a command; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return ended.value.code


def test_the_demo_draws_the_use_of_every_expert(tiny_yaml, tmp_path, monkeypatch, capsys):
    chart = tmp_path / "charts" / "use.png"
    assert run(monkeypatch, "sam2_moe_demo.py", "--config", tiny_yaml, "--frames", 3, "--output", chart) == 0
    said = capsys.readouterr().out
    assert "3 experts × rank 4 × top-2 in 4 attention modules:\n  memory_attention.layers.0.self_attn\n" in said
    assert "no checkpoint: 335 random base keys; 64 adapter keys are new" in said
    pixels = np.asarray(Image.open(chart).convert("RGB")).reshape(-1, 3)
    blue, orange, green, red = (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)  # a bar colour a projection
    for colour in (blue, orange, green, red):
        assert (pixels == colour).all(axis=1).sum() > 500


def test_the_demo_counts_what_base_plus_gets():
    demo = runpy.run_path(str(EXAMPLES / "sam2_moe_demo.py"))
    model = import_module("sam2_mope").build_sam2_moe("configs/sam2.1/sam2.1_hiera_b+.yaml", device="cpu")
    said = demo["describe_experts"](model)
    assert said.startswith("10 experts × rank 4 × top-2 in 8 attention modules:\n")
    assert said.count("  memory_attention.layers.") == 8
    assert said.endswith("660,800 trainable parameters: 0.81 % of all, not the 5–10 % often claimed")


def test_the_demo_says_what_it_counts():
    demo = runpy.run_path(str(EXAMPLES / "sam2_moe_demo.py"))
    toy = torch.nn.ModuleDict({name: torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)}) for name in ("a", "b")})
    lora = import_module("sam2_mope.config").LoraConfig(experts=2, rank=1, top_k=1, target_modules=["q_proj"])
    import_module("sam2_mope.lora.injection").apply_method(toy, lora)
    # each layer has 20 parameters, then 2 experts of 4 + 4 and a gate of 2 × 4 + 2
    assert demo["describe_experts"](toy).splitlines() == [
        "2 experts × rank 1 × top-1 in 2 attention modules:",
        "  a",
        "  b",
        "52 trainable parameters: 56.52 % of all",
    ]


@pytest.mark.parametrize("null_expert", [False, True])
def test_the_bars_are_named_after_their_experts(null_expert):
    demo = runpy.run_path(str(EXAMPLES / "sam2_moe_demo.py"))
    usage = {f"a.{name}": torch.tensor([0.25, 0.75] + [0.0] * null_expert) for name in ("q_proj", "k_proj")}
    axes = demo["draw"](usage, 2).axes[0]
    assert axes.get_title() == "a"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "null"][: 2 + null_expert]
    assert [bar.get_height() for bar in axes.patches] == usage["a.q_proj"].tolist() * 2


def test_a_run_without_experts_is_refused(make_config, tmp_path, monkeypatch, capsys):
    path = tmp_path / "lora.yaml"
    path.write_text(make_config("lora.method=lora").to_yaml())
    assert run(monkeypatch, "sam2_moe_demo.py", "--config", path, "--output", tmp_path / "use.png") == 2
    assert f"error: {path}: no experts in it" in capsys.readouterr().err


def test_the_simple_training_lowers_the_loss_and_its_adapter_loads(tiny_yaml, tmp_path, monkeypatch, capsys):
    arguments = ["--config", tiny_yaml, "--steps", 8, "--output", tmp_path / "adapter"]
    assert run(monkeypatch, "simple_train_moe.py", *arguments) == 0
    said = capsys.readouterr().out
    losses = [float(line.rpartition(" ")[2]) for line in said.splitlines() if line.startswith("step ")]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.01
    weights = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    assert all(tensor.any() for name, tensor in weights.items() if name.endswith("lora_B"))
    assert f"64 adapter keys from {tmp_path / 'adapter'}" in said
    assert "SAM2VideoPredictor is ready" in said
