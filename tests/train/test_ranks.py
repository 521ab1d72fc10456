"""A run in two processes is the run of one: its losses, its weights, its checkpoints; and none hangs when one ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src import cli
from src.config import load_config
from src.data.clips import BatchSampler, EpochSampler
from src.train import ranks
from src.train.trainer import Trainer

QUICK = ("training.max_epochs=2", "training.batch_size=4", "training.domain_gate=false", "training.learning_rate=1e-2")
EVERYTHING = (
    "training.gradient_accumulation_steps=2", "lora.router.bias_rate=0.01", "lora.router.null_expert=true",
    "training.distill.weight=1", "training.distill.clips=6", "training.distill.batch_size=1",
    "training.distill.features_weight=0.1", "training.penalty.weight=0.1", "training.penalty.kind=ewc",
    "training.penalty.clips=3", "training.clips_per_epoch=11",
)  # fmt: skip
"""Of 11 clips an epoch has batches of 4, 4 and 3, in windows of two and one."""

TEXT = "output.txt"


def train(*settings: str, yaml: Path, folder: Path, resume: str | None = None) -> None:
    Trainer(load_config(yaml, [f"output_dir={folder}", *QUICK, *settings]), resume).fit()


def start(work: Callable[[], None], count: int, folder: Path) -> list[int]:
    """Do some work in so many processes as a launcher starts them; returns their ids. What they say is in a file each.

    They are forked: nothing has to be imported again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
            os.environ.update({name: str(value) for name, value in {**told, "MASTER_PORT": port}.items()})
            _run(work, folder / f"rank{rank}.txt")
        children.append(child)
    return children


def _run(work: Callable[[], None], output: Path) -> None:
    """What a command does in a process that was started for it, which ends here."""

    def main(_: object) -> None:
        with ranks.together("cpu"):
            work()

    status: Any = 1
    try:
        with open(output, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["train.py"]
        torch.set_num_threads(1)  # threads of the parent are not there any more
        cli.run(main, cli.parser("", ""))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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
