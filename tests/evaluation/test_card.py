"""Which scores go into which adapter's model card, and the code in it; a run's whole card is tested with the run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from src.config import LoraConfig, ModelConfig
from src.evaluation.card import _loading, card_folder
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import WEIGHTS_FILE, save_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / WEIGHTS_FILE).touch()
    return tmp_path


@pytest.mark.parametrize("scored", ["adapter", "checkpoints/best.pt"])
def test_scores_of_the_runs_own_adapter(run, scored):
    assert card_folder(run, run / scored) == run / "adapter"
    assert card_folder(run, str(run / scored)) == run / "adapter"


def test_scores_of_anything_else(run, tmp_path_factory):
    assert card_folder(run, None) is None
    assert card_folder(run, run / "checkpoints" / "last.pt") is None
    assert card_folder(tmp_path_factory.mktemp("other"), run / "adapter") is None


def test_a_run_without_adapters_has_no_card(run):
    (run / "adapter" / WEIGHTS_FILE).unlink()
    assert card_folder(run, run / "checkpoints" / "best.pt") is None


def test_the_code_in_a_card_loads_the_adapter(tmp_path, monkeypatch):
    config, lora = ModelConfig(image_size=64), LoraConfig(method="lora", rank=2)
    torch.manual_seed(0)
    model = build_model(config)
    apply_method(model, lora)
    save_adapter(model, tmp_path / "adapter", lora, {})
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*)```", _loading(config), re.DOTALL)
    assert code is not None
    found: dict[str, object] = {}
    exec(code[1].replace("sam2_mope", "src"), found)
    assert dict(iter_adapter_layers(found["predictor"])).keys() == dict(iter_adapter_layers(model)).keys()
