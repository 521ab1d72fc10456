"""The rehearsal of a run: real steps, measured, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import pickle

from src.train.dry_run import Rehearsal, _rehearse_and_send, dry_run, rehearse_apart, savings
from src.train.setup import build_run
from tests.errors import refuses


def test_it_measures_and_leaves_nothing(make_config, tmp_path, capfd):
    config = make_config("training.num_workers=1")
    assert dry_run(config, print)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data_checks"]
    said = capfd.readouterr().out
    assert config.output_dir in said
    assert "of 3 steps" in said and "2 epochs" in said
    assert "it fits" in said


def test_a_run_that_does_not_fit_is_told_what_would(make_config, monkeypatch, capfd):
    taken = {4: 900, 2: 500}  # MB by clip length

    def rehearsed(config, limit, objectives=(), quiet=False):
        few = config.training.batch_size == 1
        memory = taken[config.dataset.clip.frames] - 300 * few - 50 * config.training.activation_checkpointing
        return Rehearsal(memory * 2**20, 1.0, 1.0, 1.0, 3, 6)

    monkeypatch.setattr("src.train.dry_run.rehearse_apart", rehearsed)
    assert not dry_run(make_config("dataset.clip.frames=4", "dataset.clip.max_objects=1"), print, 700 * 2**20)
    said = capfd.readouterr().out
    assert "does not fit" in said
    advice = said[said.index("any of these") :].splitlines()
    assert [line.split(":")[0].split()[1] for line in advice[1:]] == [
        "dataset.clip.frames=2",
        "training.batch_size=1",
    ]
    assert "--set training.gradient_accumulation_steps=2: 0.59 GB" in advice[2]
    assert not dry_run(make_config("dataset.clip.frames=4", "dataset.clip.max_objects=1"), print, 300 * 2**20)
    assert "together these make it fit" in capfd.readouterr().out


def test_a_process_that_takes_too_much_is_ended(make_config):
    assert rehearse_apart(make_config(), limit=50 * 2**20, quiet=True) is None


def test_what_loader_processes_get_can_be_sent_to_them(make_config):
    loader = build_run(make_config("training.num_workers=1")).loader
    parts = loader.dataset, loader.collate_fn, loader.worker_init_fn
    assert len(pickle.loads(pickle.dumps(parts))[0]) == len(loader.dataset)


def test_a_fault_is_no_lack_of_memory(make_config, monkeypatch):
    def fails(*_):
        raise ValueError("odd")

    monkeypatch.setattr("src.train.dry_run.rehearse", fails)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # which this process would keep
    ours, theirs = multiprocessing.Pipe(duplex=False)
    _rehearse_and_send(theirs, make_config(), (), True)
    found = ours.recv()
    assert found.code == "dry-run.failed" and "ValueError: odd" in str(found)


def test_mistakes_come_through(make_config):
    with refuses("targets.no-match", "memory_atention.q"):
        rehearse_apart(make_config("lora.target_modules=[memory_atention.q]"), limit=2**40, quiet=True)


def test_savings_change_what_can_be_changed(make_config):
    config = make_config("training.batch_size=4", "training.gradient_accumulation_steps=2", "dataset.clip.frames=5")
    changed = [change.applied(config) for change in savings(config)]
    assert {(c.training.batch_size, c.training.gradient_accumulation_steps) for c in changed} == {(4, 2), (1, 8)}
    assert {c.dataset.clip.frames for c in changed} == {5, 2}
    assert any(c.training.activation_checkpointing for c in changed)
    settings = ["training.activation_checkpointing=true", "training.batch_size=1", "dataset.clip.frames=2"]
    assert savings(make_config(*settings, "dataset.clip.max_objects=1")) == []
