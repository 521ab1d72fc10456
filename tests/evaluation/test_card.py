"""Which scores go into which adapter's model card, and the code in it; a run's whole card is tested with the run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.config import LoraConfig, ModelConfig
from src.evaluation.card import _front_matter, _licence, _loading, card_folder
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import WEIGHTS_FILE, save_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from src.models.spec import WeightsLicence, model_spec


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
    code = re.search(r"```python\n(.*)```", _loading(config, "tracking"), re.DOTALL)
    assert code is not None
    found: dict[str, object] = {}
    exec(code[1].replace("sam2_mope", "src"), found)
    assert dict(iter_adapter_layers(found["predictor"])).keys() == dict(iter_adapter_layers(model)).keys()


class TestLicence:
    def test_the_bases_licence_is_named_and_binds_no_adapter(self):
        tiny = model_spec("sam2.1_hiera_tiny")
        assert "Apache License 2.0" in _licence(tiny)
        assert "derivative" not in _licence(tiny)
        assert "license" not in _front_matter(tiny, "lora", ["cells"], [], "test")

    def test_one_that_covers_derivatives_is_the_adapters_own(self):
        licence = WeightsLicence("Some License", "https://example.org/LICENSE", covers_derivatives=True)
        spec = replace(model_spec("sam2.1_hiera_tiny"), licence=licence)
        assert "derivative works" in _licence(spec)
        head = _front_matter(spec, "lora", ["cells"], [], "test")
        assert (head["license"], head["license_name"]) == ("other", "some-license")
        assert head["license_link"] == licence.link
