"""Groups are listed, joined, taken out, removed, pruned and merged in folders, without the base model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from src.config import LoraConfig
from src.gating.domain_gate import DomainGate
from src.lora.adapter import iter_adapter_layers, list_groups
from src.lora.adapter_io import WEIGHTS_FILE, load_adapter, read_adapter_config, save_adapter
from src.lora.expert_groups import add_adapter, set_adapter
from src.lora.injection import apply_method

TOOL = "groups"
CONFIG = LoraConfig(rank=2, experts=3, target_modules=["0"])
ABOUT = {"image_size": 64}


def base_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5))


def trained(*names: str) -> nn.Sequential:
    """A model with these groups, or with adapters in none; their weights follow from the names."""
    model = base_model()
    for name in names:
        add_adapter(model, name, CONFIG)
    if not names:
        apply_method(model, CONFIG)
    for layer, adapter in iter_adapter_layers(model):
        torch.manual_seed(sum(layer.encode()))
        for parameter in adapter.adapter_parameters():
            nn.init.normal_(parameter)
    return model


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``ab`` with two groups, ``c`` with one, ``plain`` with adapters in none."""
    for folder, names in (("ab", ("a", "b")), ("c", ("c",))):
        save_adapter(trained(*names), tmp_path / folder, dict.fromkeys(names, CONFIG), ABOUT)
    save_adapter(trained(), tmp_path / "plain", CONFIG, ABOUT)
    return tmp_path


@pytest.fixture
def command(run_script):
    """Run the tool: (exit status, standard output, standard error)."""
    return partial(run_script, TOOL)


def output_of(folder: Path, group: str | None) -> torch.Tensor:
    model = base_model()
    load_adapter(model, folder)
    if group:
        set_adapter(model, group)
    return model(torch.arange(18.0).reshape(3, 6) / 18)


def groups_in(folder: Path) -> list[str]:
    model = base_model()
    load_adapter(model, folder)
    return list_groups(model)


def test_listing(folders, command):
    status, text, _ = command("list", folders / "ab", folders / "plain")
    parameters = 3 * 2 * 6 + 3 * 5 * 2 + 3 * 7
    line = f"mope, 3 experts × rank 2, top 2, per token; 1 layers, {parameters} parameters"
    assert status == 0
    assert [part.strip() for part in text.splitlines() if part.startswith(" ")] == [
        f"a: {line}", f"b: {line}", f"default: {line}"
    ]  # fmt: skip


def test_joining_taking_out_and_removing_change_no_output(folders, command):
    expected = {name: output_of(folders / ("c" if name == "c" else "ab"), name) for name in "abc"}
    expected["d"] = output_of(folders / "plain", None)
    joined = folders / "joined"
    assert command("join", folders / "ab", folders / "c", f"d={folders / 'plain'}", "--output", joined)[0] == 0
    assert groups_in(joined) == ["a", "b", "c", "d"]
    assert read_adapter_config(joined).extra == ABOUT
    assert all(torch.equal(output_of(joined, name), out) for name, out in expected.items())
    assert command("remove", joined, "b", "--output", folders / "less")[0] == 0
    assert groups_in(folders / "less") == ["a", "c", "d"]
    assert all(torch.equal(output_of(folders / "less", name), expected[name]) for name in "acd")
    assert command("extract", joined, "d", "--output", folders / "one")[0] == 0
    assert groups_in(folders / "one") == []
    assert torch.equal(output_of(folders / "one", None), expected["d"])


def test_pruning_and_merging(folders, command):
    assert command("prune", folders / "ab", "a", "--keep", 1, "--output", folders / "pruned")[0] == 0
    lora = read_adapter_config(folders / "pruned").lora
    assert (lora["a"].experts, lora["a"].top_k, lora["b"].experts) == (1, 1, 3)
    assert torch.equal(output_of(folders / "pruned", "b"), output_of(folders / "ab", "b"))
    status, text, _ = command("merge", folders / "ab", "a", "b", "--into", "a", "--output", folders / "merged")
    assert status == 0
    assert "a: mope, 6 experts" in text
    assert groups_in(folders / "merged") == ["a"]


@pytest.mark.parametrize("key", ["mean_utilization", "mean_use"], ids=["of today", "of earlier versions"])
def test_pruning_by_measured_use(folders, command, tmp_path, key):
    use = tmp_path / "use.json"
    use.write_text(json.dumps({"groups": {"a": {key: {"0": [0.1, 0.2, 0.7]}}}}))
    assert command("prune", folders / "ab", "a", "--keep", 1, "--use", use, "--output", folders / "used")[0] == 0
    before, after = (load_file(folders / name / WEIGHTS_FILE) for name in ("ab", "used"))
    assert torch.equal(after["0.groups.a.lora_A"], before["0.groups.a.lora_A"][2:])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"groups": {"b": {"mean_use": {}}}}, "groups.not-measured"),
        ({"groups": {"a": {"mean_use": {"0": [0.5, 0.5]}}}}, "prune.scores"),
        ({"groups": {"a": {"mean_use": {"0": "much"}}}}, "groups.use-file"),
        ({"domains": {}}, "groups.use-file"),
        ([], "groups.use-file"),
    ],
)
def test_use_that_does_not_fit(folders, command, tmp_path, content, code):
    use = tmp_path / "use.json"
    use.write_text(json.dumps(content))
    words = ["prune", folders / "ab", "a", "--keep", 1, "--use", use, "--output", folders / "out"]
    status, _, errors = command(*words)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert command("--debug", *words)[2].rstrip().endswith(f"[{code}]")
    assert not (folders / "out").exists()


@pytest.mark.parametrize("folder", ["ab", "plain"])
def test_weights_that_belong_nowhere_are_not_left_out_silently(folders, command, folder):
    weights = load_file(folders / folder / WEIGHTS_FILE)
    save_file({**weights, "nowhere.scale": torch.zeros(1)}, folders / folder / WEIGHTS_FILE)
    status, _, errors = command("join", folders / folder, "--output", folders / "out")
    assert status == 2
    assert f"1 of {len(weights) + 1} " in errors
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["list", "{}/nowhere"], "adapter.missing-file", ["nowhere"]),
        (["remove", "{}/ab", "x", "--output", "{}/out"], "groups.unknown", ["'x'", "a, b"]),
        (["remove", "{}/c", "c", "--output", "{}/out"], "groups.last", ["'c'"]),
        (["remove", "{}/ab", "a", "--output", "{}/c"], "groups.exists", ["--output"]),
        (["prune", "{}/ab", "a", "--keep", "4", "--output", "{}/out"], "prune.keep", ["1 and 3"]),
        (["merge", "{}/ab", "a", "--into", "b", "--output", "{}/out"], "merge.one-group", []),
        (["merge", "{}/ab", "a", "a", "--into", "b", "--output", "{}/out"], "groups.named-twice", ["'a'"]),
        (["merge", "{}/ab", "a", "b", "--into", "a b", "--output", "{}/out"], "groups.invalid-name", ["'a b'"]),
        (["join", "{}/ab", "b={}/plain", "--output", "{}/out"], "join.same-name", ["'b'"]),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(folders, command, arguments, code, facts):
    words = [part.format(folders) for part in arguments]
    status, _, errors = command(*words)
    assert status == 2
    assert errors.startswith("error: ") and len(errors.splitlines()) == 1
    assert all(fact in errors for fact in facts)
    assert command("--debug", *words)[2].rstrip().endswith(f"[{code}]")
    assert not (folders / "out").exists()


def test_the_gate_goes_with_the_groups(folders, command):
    def learn(folder, *domains):
        gate = DomainGate(read_adapter_config(folders / folder).base_fingerprint)
        for number, domain in enumerate(domains):
            gate.fit(domain, torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(number)))
        gate.save(folders / folder)
        return gate.domains

    def gate_of(folder):
        return DomainGate.load(folders / folder, read_adapter_config(folders / folder).base_fingerprint).domains

    known = {**learn("ab", "a", "b"), "cells": learn("plain", "cells")["cells"]}
    assert command("join", folders / "ab", folders / "plain", folders / "c", "--output", folders / "all")[0] == 0
    assert groups_in(folders / "all") == ["a", "b", "cells", "c"]  # adapters in no group are called as their domain
    assert list(gate_of("all")) == ["a", "b", "cells"]
    status, text, _ = command("remove", folders / "all", "b", "--output", folders / "less")
    assert status == 0 and "c: " in text and text.count("the domain gate does not know it") == 1
    assert list(gate_of("less")) == ["a", "cells"]
    for name, domain in gate_of("less").items():
        assert torch.equal(domain.mean, known[name].mean) and torch.equal(domain.views, known[name].views)
        assert domain.threshold == known[name].threshold
    assert command("extract", folders / "all", "a", "--output", folders / "one")[0] == 0
    assert list(gate_of("one")) == ["a"]
    assert command("remove", folders / "c", "c", "--output", folders / "none")[0] == 2
