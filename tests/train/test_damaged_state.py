"""Damage of a run's own files does not block ``--resume auto``: they are passed over by name, or mended."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.config import Config
from src.data.checks.cache import make_entry, read_entry
from src.models.checkpoint import Checkpoint, read_checkpoint
from src.train.callbacks.step_log import StepLog, last_record
from src.train.optim import restore
from src.train.resume import find_checkpoint
from src.train.state import TrainState
from tests.errors import refuses


@pytest.fixture
def folder(make_config, tmp_path) -> Path:
    """Checkpoints of a run: the newest one, and the one before."""
    for step, name in enumerate(("previous.pt", "last.pt"), 1):
        progress = TrainState("20260101-000000_mope", step=step, history=[{"epoch": 1, "total": 0.5}]).to_checkpoint()
        weights = {"layer.lora_A": torch.zeros(2)}
        Checkpoint(make_config(), "base", weights, {"state": {}}, {}, {}, progress).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", 3), ("config", []), ("base_fingerprint", None), ("weights", []), ("weights", {"a": 1}),
        ("weights", {1: torch.zeros(1)}), ("optimizer", None), ("schedule", "a"), ("scaler", 0), ("progress", []),
        ("groups", []), ("groups", {"a": 3}), ("groups", {"a": {"rank": "many"}}), ("data", {"train": 3}), ("data", 1),
        ("progress.step", "1"), ("progress.step", -1), ("progress.step", None), ("progress.step", torch.zeros(1)),
        ("progress.history", {}), ("progress.history", [3]), ("progress.best_score", "high"), ("progress.run_name", 3),
        ("progress.epoch_sums", []), ("progress.epoch_use", {"a": 1}), ("progress.unknown", 1),
    ],
)  # fmt: skip
def test_a_checkpoint_of_wrong_types_is_passed_over_for_the_one_before(folder, key, value):
    content = torch.load(folder / "last.pt", weights_only=True)
    *section, name = key.split(".")
    (content[section[0]] if section else content)[name] = value
    torch.save(content, folder / "last.pt")
    path, checkpoint, (problem,) = find_checkpoint(folder)
    assert path == folder / "previous.pt" and checkpoint.progress["step"] == 1
    assert problem.startswith(f"{folder / 'last.pt'}") and problem.isprintable()


def test_a_sound_one_is_not_passed_over(folder):
    path, checkpoint, damaged = find_checkpoint(folder)
    assert (path, checkpoint.progress["step"], damaged) == (folder / "last.pt", 2, [])
    assert isinstance(read_checkpoint(path).config, Config)


@pytest.mark.parametrize("memory", [MemoryError("Unable to allocate"), RuntimeError("can't allocate memory")])
def test_memory_that_runs_out_is_no_damage(folder, monkeypatch, memory):
    def cannot(*_: object, **__: object) -> None:
        raise memory

    monkeypatch.setattr("src.core.torch_files.torch.load", cannot)
    monkeypatch.setattr("src.core.torch_files.SMALL", 0)
    with pytest.raises(type(memory)):
        find_checkpoint(folder)


def steps_after(folder: Path, content: bytes, step: int) -> bytes:
    """What is in steps.jsonl where a run goes on after a step."""
    (folder / "steps.jsonl").write_bytes(content)
    log = StepLog()
    log.on_fit_start(SimpleNamespace(folder=folder, state=SimpleNamespace(step=step)))
    log.on_fit_end(SimpleNamespace())
    return (folder / "steps.jsonl").read_bytes()


ONE, TWO, THREE = (json.dumps({"step": step}).encode() + b"\n" for step in (1, 2, 3))


class TestSteps:
    @pytest.mark.parametrize(
        "damage",
        [b"\0" * 4096 + b"\n", b"\n", b"[]\n", b"3\n", b"{}\n", b'{"step": "1"}\n', b"\xff\n", b"[" * 9999 + b"\n"],
    )
    def test_damaged_lines_are_taken_out(self, tmp_path, capsys, damage):
        assert steps_after(tmp_path, ONE + damage + TWO + THREE, 2) == ONE + TWO
        assert f"{tmp_path / 'steps.jsonl'}: 1 damaged line" in capsys.readouterr().out
        assert last_record(tmp_path) == {"step": 2}

    def test_zeros_at_the_end_and_before_a_line_cost_no_line(self, tmp_path):
        assert steps_after(tmp_path, ONE + b"\0" * 100, 2) == ONE
        assert steps_after(tmp_path, ONE + b"\0" * 9 + TWO, 2).replace(b"\0", b"") == ONE + TWO

    def test_sound_lines_stay(self, tmp_path, capsys):
        assert steps_after(tmp_path, ONE + TWO + THREE + b'{"st', 2) == ONE + TWO
        assert capsys.readouterr().out == ""

    def test_a_folder_in_its_place_is_refused(self, tmp_path):
        (tmp_path / "steps.jsonl").mkdir()
        with refuses("files.not-written", "steps.jsonl"):
            StepLog().on_fit_start(SimpleNamespace(folder=tmp_path, state=SimpleNamespace(step=0)))


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "null",
        "[]",
        "{}",
        "\0" * 100,
        "\udcff",
        "[" * 99_999,
        '{"content": "a", "stamps": [], "report": {}}',
        "flip",
    ],
)
def test_a_damaged_data_check_is_done_again(tmp_path, capsys, damage):
    path, entry = (
        tmp_path / "check.json",
        make_entry("a", [], {"decoded": True, "frames": 3, "categories": {1: {2: 3}}}),
    )
    path.write_text(json.dumps(entry))
    assert read_entry(path, "a", True)["frames"] == 3
    assert read_entry(path, "b", True) is None and capsys.readouterr().out == ""
    changed = json.dumps(entry).replace('"frames": 3', '"frames": 1') if damage == "flip" else damage
    path.write_bytes(changed.encode(errors="surrogateescape"))
    assert read_entry(path, "a", True) is None
    assert f"{path}: damaged" in capsys.readouterr().out


def test_moments_of_other_parameters_are_refused():
    def optimizer(*shape: int) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        parameter = torch.nn.Parameter(torch.ones(shape))
        made = torch.optim.AdamW([parameter])
        parameter.sum().backward()
        made.step()
        return made, torch.optim.lr_scheduler.LambdaLR(made, lambda _: 1.0)

    (theirs, schedule), ours = optimizer(3), optimizer(4)
    with pytest.raises(ValueError, match="exp_avg"):
        restore(*ours, theirs.state_dict(), schedule.state_dict())
