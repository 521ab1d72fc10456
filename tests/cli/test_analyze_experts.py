"""The tool runs every domain of a run, writes what it found, and says mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from src.cli.analyze_experts import build_parser, main
from src.config import LoraConfig
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import save_adapter
from src.lora.expert_groups import add_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from tests.errors import refuses

TOOL = "analyze-experts"
MOPE = LoraConfig(experts=3, rank=2, target_modules=["memory_attention.layers.0.*.q_proj"])
NO_SOURCE = ["--set", "evaluation.source_clips=0"]
LAYER = "memory_attention.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(make_config, tmp_path) -> Callable[..., Path]:
    """``adapter(lora)``, or ``adapter(name=lora, …)`` with groups: a folder of random adapters of the tiny run."""

    def make(lora: LoraConfig | None = None, **groups: LoraConfig) -> Path:
        config = make_config()
        torch.manual_seed(config.training.seed)
        model = build_model(config.model)
        if lora is not None:
            apply_method(model, lora)
        for name, group in groups.items():
            add_adapter(model, name, group)
        for _, layer in iter_adapter_layers(model):
            for parameter in layer.adapter_parameters():
                nn.init.normal_(parameter, std=0.2)
        save_adapter(model, tmp_path / "adapter", lora or groups, {})
        return tmp_path / "adapter"

    return make


@pytest.fixture
def command(run_script, tiny_yaml, tmp_path):
    """Run the tool on the tiny run: (exit status, standard output, standard error)."""

    def run(folder: Path, *arguments: object) -> tuple[int, str, str]:
        given = ["--adapter", folder, "--config", tiny_yaml, "--set", f"output_dir={tmp_path}/run"]
        return run_script(TOOL, *given, "--output", tmp_path / "out", *arguments)

    return run


def test_everything_is_written(adapter, command, tiny_data, tmp_path):
    further = tiny_data / "valid"
    status, text, _ = command(adapter(MOPE), "--domain", f"more={further}", "--prune", 1, "--clips", 1)
    assert status == 0
    found = json.loads((tmp_path / "out" / "use.json").read_text())
    assert list(found["domains"]) == ["target", "source", "more"]
    target = found["domains"]["target"]
    assert target["clips"] == 1
    assert target["layers"][LAYER]["frames"][0] is None
    assert sum(target["layers"][LAYER]["utilization"]) == pytest.approx(1, abs=1e-5)
    assert target["layers"] == found["domains"]["more"]["layers"], "it is the same data here"
    assert found["overlap"]["mean"]["target"]["more"] == 1
    pruning = found["groups"]["default"]["pruning"]
    assert [step["keep"] for step in pruning["steps"]] == [3, 1]
    assert pruning["recommended"] in (3, 1)
    names = {"use_target", "frames_target", "use_source", "frames_source", "use_more", "frames_more"}
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == names | {"overlap", "overlap_layers"}
    with Image.open(tmp_path / "out" / "use_target.png") as picture:
        assert picture.width > 300
    board = EventAccumulator(str(tmp_path / "out" / "logs")).Reload()
    assert set(board.Tags()["images"]) == {f"router/{name}" for name in names | {"overlap", "overlap_layers"}}
    assert f"router/utilization/target/{LAYER}" in board.Tags()["histograms"]
    for part in ("Overlap of use", "Experts used most", "dead experts", "1 of 3", "recommended: keep"):
        assert part in text


def test_each_domain_has_the_group_of_its_name(adapter, command, refused, tmp_path):
    folder = adapter(target=MOPE, cells=MOPE.model_copy(update={"experts": 4}))
    message = refused("experts.no-group-for-domain", folder, "--prune")
    assert "'source'" in message and "target, cells" in message
    status, text, _ = command(folder, *NO_SOURCE, "--prune", "--set", "dataset.name=cells", "--clips", 1)
    assert status == 0
    found = json.loads((tmp_path / "out" / "use.json").read_text())
    assert found["domains"]["cells"]["layers"][LAYER]["experts"] == ["0", "1", "2", "3"]
    assert "pruning" not in found["groups"]["cells"]
    assert "of group cells" in text


def test_a_named_group_runs_on_all_domains(adapter, command, tmp_path):
    folder = adapter(target=MOPE, cells=MOPE.model_copy(update={"experts": 4}))
    assert command(folder, "--group", "cells", "--prune", 4, "--logdir", tmp_path / "board", "--clips", 1)[0] == 0
    found = json.loads((tmp_path / "out" / "use.json").read_text())
    assert {domain["group"] for domain in found["domains"].values()} == {"cells"}
    assert any((tmp_path / "board").iterdir())


def test_without_numbers_a_few_are_tried(adapter, command, tmp_path):
    assert command(adapter(MOPE.model_copy(update={"experts": 4})), *NO_SOURCE, "--clips", 1)[0] == 0
    steps = json.loads((tmp_path / "out" / "use.json").read_text())["groups"]["default"]["pruning"]["steps"]
    assert {4, 3, 2, 1} == {step["keep"] for step in steps}


@pytest.fixture
def refused(tiny_yaml, tmp_path):
    """``refused(code, adapter, …)``: the message with which the command refuses."""

    def run(code: str, folder: Path, *arguments: object) -> str:
        given = ["--adapter", folder, "--config", tiny_yaml, "--set", f"output_dir={tmp_path}/run"]
        words = [str(word) for word in (*given, "--output", tmp_path / "out", *arguments)]
        with refuses(code) as caught:
            main(build_parser().parse_args(words))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["--group", "cells"], "experts.unknown-group", ["--group cells", "default"]),
        (["--prune", "2", "4"], "experts.keep-out-of-range", ["--prune 4", "1 and 3"]),
        (["--domain", "polyps"], "experts.domain-option", ["NAME=FOLDER"]),
        (["--dead", "2"], "experts.share-out-of-range", ["--dead 2"]),
        (["--clips", "0"], "config.mistakes", ["evaluation.max_images"]),
    ],
)
def test_mistakes(adapter, refused, arguments, code, facts):
    message = refused(code, adapter(MOPE), *arguments)
    assert all(fact in message for fact in facts)


def test_a_mistake_takes_one_line(adapter, command, tmp_path):
    status, _, errors = command(adapter(MOPE), "--domain", "more=missing")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "missing" in errors
    assert not (tmp_path / "out").exists()


def test_a_domain_that_is_there_already(adapter, refused, tiny_data):
    assert "unique" in refused("config.mistakes", adapter(MOPE), "--domain", f"target={tiny_data}/valid")


def test_an_adapter_without_experts(adapter, refused):
    assert "method lora" in refused("experts.no-experts", adapter(LoraConfig(method="lora")))


def test_a_group_without_experts(adapter, refused):
    assert "'b'" in refused("experts.no-experts", adapter(a=MOPE, b=LoraConfig(method="lora")), "--group", "b")
