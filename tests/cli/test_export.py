"""What is exported computes what the adapted model computes, in stock SAM 2 and in peft; nothing else is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import sam2.build_sam
import torch
from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base

from src.cli.main import main
from src.config import Config, ModelConfig, load_config
from src.gating.domain_gate import GATE_FILE
from src.lora.adapter_io import WEIGHTS_FILE, join_adapters, read_adapter, save_adapter, write_adapter
from src.lora.injection import remove_adapters
from src.models.export import export
from src.models.sam2 import export as sam2_export
from src.models.sam2.build import config_overrides
from src.models.sam2.export import largest_difference, probe
from src.models.sam2.predictors import build_sam2_moe
from src.models.sam2.transformers_format import MINIMUM_VERSION
from src.train.trainer import Trainer
from tests.errors import refuses

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


@pytest.fixture(scope="module")
def runs(tiny_yaml, tmp_path_factory) -> dict[str, Config]:
    """A short run of each method, with its base weights in a file; its adapters are far from zero."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(5)
    overrides = config_overrides(ModelConfig(image_size=64))
    torch.save({"model": build_sam2(TINY, device="cpu", hydra_overrides_extra=overrides).state_dict()}, folder / "b.pt")
    configs = {}
    for method in ("lora", "mope", "full"):
        settings = {
            "output_dir": folder / method, "lora.method": method, "model.checkpoint": folder / "b.pt",
            "lora.target_modules": "[memory_attention.*_proj, mlp.layers.0]",
            "training.max_steps": 2, "training.learning_rate": 1e-3 if method == "full" else 0.1,
        }  # fmt: skip
        configs[method] = load_config(tiny_yaml, [f"{key}={value}" for key, value in settings.items()])
        Trainer.from_config(configs[method]).fit()
    return configs


def best(config: Config) -> Path:
    return Path(config.output_dir) / "checkpoints" / "best.pt"


def stock(config: Config, weights: Path | str) -> SAM2Base:
    return build_sam2(TINY, str(weights), "cpu", hydra_overrides_extra=config_overrides(config.model))


@pytest.fixture(scope="module")
def adapted(runs) -> dict[str, dict[str, torch.Tensor]]:
    """What each run's model computes; the base computes something else."""
    outputs = {}
    for method, config in runs.items():
        base_file, overrides = config.model.checkpoint, config_overrides(config.model)
        model = build_sam2_moe(TINY, base_file, "cpu", adapter=best(config), hydra_overrides_extra=overrides)
        outputs[method] = probe(model)
        assert largest_difference(probe(stock(config, base_file)), outputs[method]) > 1e-3
    return outputs


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run sam2-mope export; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["sam2-mope", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_folder_of_expert_groups_is_refused_with_the_way_out(runs, tmp_path):
    folder = Path(runs["lora"].output_dir) / "adapter"
    write_adapter(tmp_path / "joined", join_adapters([("cells", read_adapter(folder))]))
    with refuses("export.groups") as caught:
        export(runs["lora"], tmp_path / "joined", "auto", tmp_path / "out")
    assert "groups extract" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_official_file_runs_in_stock_sam2(runs, adapted, tmp_path, capsys, method):
    config = runs[method]
    written = export(config, best(config), "auto", tmp_path / "deep" / "merged.pt")
    assert written == tmp_path / "deep" / "merged.pt"
    assert list(torch.load(written, weights_only=True)) == ["model"]
    assert largest_difference(probe(stock(config, written)), adapted[method]) <= 1e-5
    told = capsys.readouterr().out
    assert "largest difference" in told
    call = told.partition("likewise build_sam2_video_predictor: ")[2].splitlines()[0]
    loaded = eval(call.removesuffix(")") + ', device="cpu")', {"sam2": sam2})
    assert largest_difference(probe(loaded), adapted[method]) <= 1e-5
    assert sorted(path.name for path in written.parent.iterdir()) == ["merged.NOTICE", "merged.pt"]
    assert "Apache License 2.0" in (written.parent / "merged.NOTICE").read_text()


def test_an_adapter_folder_exports_as_its_checkpoint_does(runs, adapted, tmp_path):
    config = runs["lora"]
    written = export(config, Path(config.output_dir) / "adapter", "official", tmp_path / "merged.pt")
    assert largest_difference(probe(stock(config, written)), adapted["lora"]) <= 1e-5


def test_an_exported_adapter_folder_keeps_the_domain_gate(runs, tmp_path):
    written = export(runs["mope"], best(runs["mope"]), "adapter", tmp_path / "adapter")
    fitted = Path(runs["mope"].output_dir) / "adapter" / GATE_FILE
    assert (written / GATE_FILE).read_bytes() == fitted.read_bytes()


def test_a_file_that_differs_is_not_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sam2_export, "unload_merged", remove_adapters)
    with refuses("export.differs"):
        export(runs["lora"], best(runs["lora"]), "official", tmp_path / "merged.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_relative_to_large_outputs_and_nan_is_one():
    expected = {"a": torch.tensor([0.5, -128.0]), "b": torch.tensor([0.25])}
    assert largest_difference({"a": torch.tensor([1.0, -128.0]), "b": expected["b"]}, expected) == 0.5 / 128
    assert largest_difference({"a": expected["a"], "b": torch.tensor([0.5])}, expected) == 0.25
    different = largest_difference({"a": expected["a"], "b": torch.tensor([torch.nan])}, expected)
    assert not different <= sam2_export.TOLERANCE


@pytest.mark.parametrize("source", ["checkpoint", "folder"])
def test_a_mope_run_becomes_an_adapter_folder_and_says_why(runs, adapted, tmp_path, capsys, source):
    config = runs["mope"]
    trained = best(config) if source == "checkpoint" else Path(config.output_dir) / "adapter"
    written = export(config, trained, "auto", tmp_path / "merged.pt")
    assert written == tmp_path / "merged"
    assert "depends on the input" in capsys.readouterr().out
    ours, theirs = written / WEIGHTS_FILE, Path(config.output_dir) / "adapter" / WEIGHTS_FILE
    assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads((written / "adapter_config.json").read_text())["image_size"] == 64
    model = build_sam2_moe(
        TINY, config.model.checkpoint, "cpu", adapter=written, hydra_overrides_extra=config_overrides(config.model),
        gate="on",
    )  # fmt: skip
    assert largest_difference(probe(model), adapted["mope"]) == 0


@pytest.mark.parametrize(
    ("method", "form"), [("mope", "official"), ("mope", "peft"), ("full", "peft"), ("full", "adapter")]
)
def test_forms_that_do_not_suit_the_method_are_refused(runs, tmp_path, method, form):
    with refuses("export.unsuited-form") as caught:
        export(runs[method], best(runs[method]), form, tmp_path / "out")
    assert f"method {method}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_base_cannot_go_to_transformers_and_why(runs, tmp_path):
    pytest.importorskip("transformers", MINIMUM_VERSION)
    with refuses("transformers.memory-channels"):
        export(runs["mope"], best(runs["mope"]), "transformers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(runs, tmp_path):
    base = Path(runs["lora"].model.checkpoint)
    before = base.read_bytes()
    with refuses("export.exists"):
        export(runs["lora"], best(runs["lora"]), "official", base)
    assert base.read_bytes() == before
    with refuses("export.exists"):
        export(runs["mope"], best(runs["mope"]), "auto", tmp_path)


def test_peft_loads_its_layout_onto_stock_sam2(runs, adapted, tmp_path):
    peft = pytest.importorskip("peft")
    config = runs["lora"]
    written = export(config, best(config), "peft", tmp_path / "peft")
    base = stock(config, config.model.checkpoint)
    loaded = peft.PeftModel.from_pretrained(base, str(written))
    model = loaded.base_model.model
    assert isinstance(model, SAM2Base)
    assert largest_difference(probe(model), adapted["lora"]) <= 1e-5
    assert loaded.peft_config["default"].lora_alpha == config.lora.alpha


def test_every_key_of_the_peft_layout(runs, tmp_path):
    from safetensors.torch import load_file

    config = runs["lora"]
    written = export(config, best(config), "peft", tmp_path / "peft")
    said = json.loads((written / "adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"]) == ("LORA", config.lora.rank, config.lora.alpha)
    assert len(said["target_modules"]) > 16
    assert load_file(written / "adapter_model.safetensors").keys() == {
        f"base_model.model.{name}.lora_{part}.weight" for name in said["target_modules"] for part in "AB"
    }


class TestCommand:
    def test_a_config_exports_the_best_checkpoint_of_its_run(self, runs, adapted, tmp_path, monkeypatch):
        config = runs["lora"]
        status = command(
            monkeypatch, "--config", Path(config.output_dir) / "config.yaml", "--output", tmp_path / "merged.pt"
        )
        assert status == 0
        assert largest_difference(probe(stock(config, tmp_path / "merged.pt")), adapted["lora"]) <= 1e-5

    def test_a_checkpoint_knows_its_run(self, runs, tmp_path, monkeypatch):
        assert command(monkeypatch, "--adapter", best(runs["mope"]), "--output", tmp_path / "mope") == 0
        assert (tmp_path / "mope" / WEIGHTS_FILE).exists()

    def test_a_folder_needs_its_base(self, runs, tmp_path, monkeypatch, capsys):
        config = runs["mope"]
        arguments = ["--adapter", Path(config.output_dir) / "adapter", "--output", tmp_path / "mope"]
        assert command(monkeypatch, *arguments) == 2
        assert "with --base" in capsys.readouterr().err
        assert command(monkeypatch, *arguments, "--base", config.model.checkpoint) == 0

    def test_a_run_from_random_weights_is_exported_with_these(self, make_config, tmp_path, monkeypatch):
        trainer = Trainer.from_config(make_config("lora.method=lora", "training.max_steps=1", "training.seed=3"))
        trainer.fit()
        assert command(monkeypatch, "--adapter", best(trainer.config), "--output", tmp_path / "merged.pt") == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "name a run with --config YAML, or what it wrote with --adapter"),
            (["--adapter", "nowhere/best.pt"], "nowhere/best.pt: no such checkpoint"),
            (["--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        ],
    )
    def test_mistakes_are_one_line_and_status_2(self, tmp_path, monkeypatch, capsys, arguments, message):
        assert command(monkeypatch, *arguments, "--output", tmp_path / "out") == 2
        assert f"error: {message}" in capsys.readouterr().err

    def test_an_adapter_folder_that_does_not_say_its_model(self, runs, tmp_path, monkeypatch, capsys):
        config = runs["lora"]
        model = build_sam2_moe(Path(config.output_dir) / "config.yaml", device="cpu")
        save_adapter(model, tmp_path / "adapter", config.lora, {})
        arguments = ["--adapter", tmp_path / "adapter", "--output", tmp_path / "out", "--base", config.model.checkpoint]
        assert command(monkeypatch, *arguments) == 2
        assert "model.name" in capsys.readouterr().err
