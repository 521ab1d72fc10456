"""The trainer knows no model: a toy task goes through the real commands, without SAM 2 being imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from src.lora.adapter_io import read_adapter, read_adapter_config
from tests.train.steps import read_steps

ROOT = Path(__file__).parents[2]
STEPS = 9
"""Of three epochs of 10 items, in batches of 4."""

SETTINGS = {
    "model": {"name": "toy"},
    "lora": {"method": "mope", "experts": 3, "top_k": 2, "rank": 2, "dropout": 0.1},
    "training": {
        "max_epochs": 3, "batch_size": 4, "learning_rate": 0.1, "num_workers": 0, "device": "cpu",
        "save_every": {"steps": 1},
    },
}  # fmt: skip

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """``run("train", "name", …words)``: a command on the toy in a process of its own, into ``tmp_path / name``."""
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))

    def run(
        command: str, *words: object, kill_at: int | None = None, processes: int = 1
    ) -> subprocess.CompletedProcess:
        arguments = ["-m", "tests.tasks.toy", command, *map(str, words)]
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment |= {} if kill_at is None else {"TOY_KILL_AT_STEP": str(kill_at)}
        return subprocess.run([*launcher, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Run:
    """``train("name", …settings)``: trains into ``tmp_path / name``."""

    def train(name: str, *settings: str, resume: bool = False, **options: int) -> subprocess.CompletedProcess:
        words = [word for setting in (f"output_dir={tmp_path / name}", *settings) for word in ("--set", setting)]
        words += ["--resume", "auto"] if resume else []
        return run("train", "--config", tmp_path / "toy.yaml", *words, **options)

    return train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)["weights"]


def test_it_trains_validates_and_goes_on_after_a_kill_without_sam2(train, tmp_path):
    done = train("whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imported: []" in done.stdout
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert metrics["best_fit"] > metrics["base_fit"]
    assert f"final/trained {metrics['best_fit']:.6f}" in done.stdout
    assert [line["step"] for line in read_steps(tmp_path / "whole")] == list(range(1, STEPS + 1))

    killed = train("parts", kill_at=4)
    assert killed.returncode == -signal.SIGKILL
    assert len(read_steps(tmp_path / "parts")) == 4
    done = train("parts", resume=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_steps(tmp_path / "parts") == read_steps(tmp_path / "whole")
    found, expected = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_two_processes_are_one(train, tmp_path):
    settings = ["lora.dropout=0"]
    done = [train("one", *settings), train("two", *settings, processes=2)]
    assert [each.returncode for each in done] == [0, 0], done[1].stdout + done[1].stderr
    for ours, theirs in zip(read_steps(tmp_path / "two"), read_steps(tmp_path / "one"), strict=True):
        assert ours.pop("clips") == theirs.pop("clips")
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    found = weights(tmp_path / "two")
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def test_expert_groups_and_export_of_the_adapter(train, run, tmp_path):
    settings = ["training.max_epochs=1"]
    assert train("first", *settings, "dataset.name=a").returncode == 0
    extend = f"training.extend={tmp_path / 'first/adapter'}"
    done = train("second", *settings, "dataset.name=b", extend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_adapter_config(tmp_path / "second/adapter").lora) == ["default", "b"]
    listed = run("groups", "list", tmp_path / "second/adapter")
    assert listed.returncode == 0 and "imported: []" in listed.stdout, listed.stdout + listed.stderr

    config = tmp_path / "first/config.yaml"
    done = run("export", "--config", config, "--format", "adapter", "--output", tmp_path / "exported")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imported: []" in done.stdout
    found, expected = read_adapter(tmp_path / "exported").weights, read_adapter(tmp_path / "first/adapter").weights
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
