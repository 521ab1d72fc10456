"""A run in two processes is the run of one: its losses, its weights, its checkpoints; and none hangs when one ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.cli.train import fit
from src.config import load_config
from src.core import distributed
from src.data.clips import BatchSampler, EpochSampler
from src.tasks.tracking.task import TrackingTask
from tests.train.processes import end_as_a_command

QUICK = ("training.max_epochs=2", "training.batch_size=4", "training.domain_gate=false", "training.learning_rate=1e-2")
EVERYTHING = (
    "training.gradient_accumulation_steps=2", "lora.router.null_expert=true",
    "training.distill.weight=1", "training.distill.clips=6", "training.distill.batch_size=1",
    "training.distill.features_weight=0.1", "training.penalty.weight=0.1", "training.penalty.kind=ewc",
    "training.penalty.clips=3", "training.clips_per_epoch=11",
)  # fmt: skip
"""Of 11 clips an epoch has batches of 4, 4 and 3, in windows of two and one."""

SCRIPTS = Path(__file__).parents[2] / "examples/slurm"


def train(*settings: str, yaml: Path, folder: Path, resume: str | None = None) -> None:
    fit(load_config(yaml, [f"output_dir={folder}", *QUICK, *settings]), resume)


stores: list[torch.distributed.TCPStore] = []
"""Where processes meet, which their launcher holds."""


def start(work: Callable[[], None], count: int, folder: Path) -> list[int]:
    """Do some work in so many processes as a launcher starts them; returns their ids. What they say is in a file each.

    They are forked: nothing has to be imported again.
    """
    stores.append(torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "TORCHELASTIC_USE_AGENT_STORE": True}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": stores[-1].port}
            os.environ.update({name: str(value) for name, value in (told | place).items()})
            end_as_a_command(partial(in_a_team, work), folder / f"rank{rank}.txt")
        children.append(child)
    return children


def in_a_team(work: Callable[[], None]) -> None:
    with distributed.process_group("cpu"):
        work()


def end(children: list[int]) -> list[int]:
    """Wait for processes; returns their exit statuses, or minus the signals that killed them."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def errors(folder: Path) -> list[str]:
    """What all processes of a run said of errors."""
    lines = [line for path in sorted(folder.glob("rank*.txt")) for line in path.read_text().splitlines()]
    return [line for line in lines if line.startswith("error: ")]


@pytest.fixture
def train_in(tiny_yaml: Path, tmp_path: Path) -> Callable[..., Path]:
    """``train_in(2, "name", …settings)``: the tiny run in two processes; returns its folder."""

    def run(count: int, name: str, *settings: str, resume: str | None = None) -> Path:
        def work() -> None:
            train(*settings, yaml=tiny_yaml, folder=tmp_path / name, resume=resume)

        statuses = end(start(work, count, tmp_path / "said"))
        assert statuses == [0] * count, "\n".join(p.read_text() for p in (tmp_path / "said").glob("*.txt"))
        return tmp_path / name

    return run


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def assert_same_run(found: Path, expected: Path) -> None:
    """Up to rounding: the same clips, losses and weights, at every step and at the end, and the same validation."""
    assert len(steps(found)) == len(steps(expected))
    for ours, theirs in zip(steps(found), steps(expected), strict=True):
        assert ours.pop("clips") == theirs.pop("clips")
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    ours, theirs = (torch.load(folder / "checkpoints/last.pt", weights_only=True) for folder in (found, expected))
    for name, tensor in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], tensor, rtol=2e-3, atol=2e-4, msg=name)
    for key in ("step", "epoch", "clips", "epoch_clips"):
        assert ours["progress"][key] == theirs["progress"][key]
    for name in ("base_J", "best_J"):
        ours, theirs = (json.loads((folder / "metrics.json").read_text())[name] for folder in (found, expected))
        assert ours == pytest.approx(theirs, abs=0.02)


class TestOneRun:
    @pytest.mark.parametrize("settings", [EVERYTHING, ("lora.method=full",)], ids=["everything", "full"])
    def test_two_processes_are_one(self, train_in, settings):
        assert_same_run(train_in(2, "two", *settings), train_in(1, "one", *settings))

    def test_a_run_goes_on_in_another_number_of_processes(self, train_in):
        settings = ("training.batch_size=2", "lora.router.null_expert=true")
        whole = train_in(1, "whole", *settings)
        train_in(2, "two then one", *settings, "training.max_steps=2")
        assert_same_run(train_in(1, "two then one", *settings, resume="auto"), whole)
        train_in(1, "one then two", *settings, "training.max_steps=4")
        assert_same_run(train_in(2, "one then two", *settings, resume="auto"), whole)

    def test_the_first_process_alone_writes_and_speaks(self, train_in, tmp_path):
        folder = train_in(2, "run", "training.domain_gate=true", "training.max_steps=1")
        assert "2 processes, 2 of a batch's 4 clips in each" in (tmp_path / "said/rank0.txt").read_text()
        assert "epoch" not in (tmp_path / "said/rank1.txt").read_text()
        assert (folder / "adapter/domain_gate.safetensors").exists()
        assert not (folder / "earlier").exists()

    def test_a_bad_loss_in_one_process_skips_the_step_in_all(self, train_in, monkeypatch):
        original = TrackingTask.losses

        def poisoned(task, model, batch, *others):
            losses = original(task, model, batch, *others)
            bad = distributed.rank() == 1 and len(calls) == 1
            calls.append(batch.names)
            return {**losses, "total": losses["total"] * math.nan} if bad else losses

        calls: list[tuple[str, ...]] = []
        monkeypatch.setattr(TrackingTask, "losses", poisoned)
        folder = train_in(2, "run", "training.on_non_finite=skip", "training.batch_size=2", "training.max_epochs=1")
        done = steps(folder)
        assert ["total" in step for step in done] == [True, False, True]
        assert "step skipped: the loss is nan at step 2" in (folder / "logs/training.log").read_text()
        with np.load(folder / "bad_batch_2/batch_0.npz") as found:  # of the process where it was
            assert list(found["names"]) == done[1]["clips"][1:]


class TestEnds:
    def test_a_batch_that_processes_cannot_share_is_refused_in_one_line(self, tiny_yaml, tmp_path):
        children = start(lambda: train("training.batch_size=3", yaml=tiny_yaml, folder=tmp_path / "run"), 2, tmp_path)
        assert end(children) == [2, 2]
        (line,) = errors(tmp_path)
        assert line == (
            "error: training.batch_size is 3, which 2 processes cannot share equally: make it a multiple of 2"
        )
        assert not (tmp_path / "run").exists()

    def test_when_one_is_killed_the_other_says_so_and_ends(self, tiny_yaml, tmp_path):
        children = start(lambda: train("training.max_epochs=99", yaml=tiny_yaml, folder=tmp_path / "run"), 2, tmp_path)
        wait_for_steps(tmp_path / "run")
        os.kill(children[1], signal.SIGKILL)
        assert end(children) == [2, -signal.SIGKILL]
        (line,) = errors(tmp_path)
        assert line.startswith("error: another of the run's 2 processes has ended, or does not answer")

    def test_a_signal_to_one_stops_all_after_the_same_step(self, tiny_yaml, tmp_path):
        children = start(
            lambda: train("training.clips_per_epoch=400", yaml=tiny_yaml, folder=tmp_path / "run"), 2, tmp_path
        )
        wait_for_steps(tmp_path / "run")
        os.kill(children[1], signal.SIGTERM)
        assert end(children) == [128 + signal.SIGTERM] * 2
        saved = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["progress"]["step"]
        assert saved == len(steps(tmp_path / "run"))
        said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
        assert f"stopped by SIGTERM after step {saved}" in said[0]
        assert "stopped" not in said[1]


def wait_for_steps(folder: Path) -> None:
    ends = time.monotonic() + 300
    while not (folder / "steps.jsonl").exists() or not steps(folder):
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_of_batches_are_the_batches(size):
    sampler = EpochSampler(23, seed=0)
    sampler.skip = 2
    whole = list(BatchSampler(sampler, 6))
    parts = [list(BatchSampler(sampler, 6, rank, size)) for rank in range(size)]
    assert [len(batch) for batch in whole] == [6, 6, 6, 3]
    for place, batch in enumerate(whole):
        dealt = [part[place] for part in parts]
        assert [key for part in dealt for key in part] == batch
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert len(BatchSampler(sampler, 6)) == 4


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_slurm_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
