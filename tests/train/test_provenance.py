"""A run's folder holds what is needed to do it again, and doing it again gives the same, however data are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.config import Config, load_config
from src.train.provenance import git_state
from src.train.trainer import Trainer
from tests.train.steps import read_steps

QUICK = ("training.monitor_clips=0", "training.domain_gate=false", "lora.dropout=0.1")


def trained(config: Config) -> tuple[list[dict], dict]:
    """The steps and the last checkpoint of a run."""
    trainer, folder = Trainer.from_config(config), Path(config.output_dir)
    trainer.fit()
    return read_steps(folder), torch.load(folder / "checkpoints/last.pt", weights_only=True)


def test_a_run_is_the_same_with_any_number_of_workers_and_from_its_own_config(make_config, tmp_path):
    first = make_config(*QUICK)
    steps, expected = trained(first)
    for workers in (1, 2):
        settings = [f"output_dir={tmp_path / str(workers)}", f"training.num_workers={workers}"]
        again, found = trained(load_config(Path(first.output_dir) / "config.yaml", settings))
        assert again == steps
        assert found["weights"].keys() == expected["weights"].keys()
        assert all(torch.equal(found["weights"][name], w) for name, w in expected["weights"].items())
        assert found["progress"]["history"] == expected["progress"]["history"]


def test_run_json_says_what_was_run_by_what_on_what(make_config, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "my run.yaml"])
    trainer = Trainer.from_config(make_config(*QUICK, "training.max_steps=1"))
    trainer.fit()
    content = json.loads((trainer.folder / "run.json").read_text())
    assert content["base_fingerprint"] == trainer.run.base_fingerprint
    assert content["data"]["train"]["target"].keys() == {"videos", "frames", "objects", "fingerprint"}
    assert content["data"]["valid"]["target"]["videos"] == 2
    (start,) = content["starts"]
    assert start["command"] == "train.py --config 'my run.yaml'"
    assert (
        start["packages"]["torch"] == torch.__version__.split("+")[0] or start["packages"]["torch"] == torch.__version__
    )
    assert {"numpy", "pillow"} <= {name.lower() for name in start["packages"]}
    assert (start["step"], start["device"]) == (0, "cpu")
    assert start["python"] == ".".join(map(str, sys.version_info[:3]))
    assert load_config(trainer.folder / "config.yaml") == trainer.config


def test_a_resumed_run_adds_its_start(make_config):
    first = Trainer.from_config(make_config(*QUICK, "training.max_steps=1"))
    first.fit()
    Trainer.from_config(make_config(*QUICK, "training.max_steps=2"), "auto").fit()
    starts = json.loads((first.folder / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 1]


@pytest.fixture
def repository(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a.txt").write_text("1")
    git("add", ".")
    git("commit", "-qm", "a")
    return tmp_path, git("rev-parse", "HEAD")


def test_changes_since_the_commit_are_told(repository):
    folder, commit = repository
    assert git_state(folder) == {"commit": commit, "dirty": []}
    (folder / "a.txt").write_text("2")
    assert git_state(folder) == {"commit": commit, "dirty": ["a.txt"]}


def test_outside_a_repository_there_is_none(tmp_path):
    assert git_state(tmp_path) is None
