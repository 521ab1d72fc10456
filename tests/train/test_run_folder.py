"""A run's folder is one run's: it is locked, and what an earlier run wrote, nothing else, is moved aside."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.core.folder_lock import LOCK_FILE
from src.train.callbacks import default_callbacks
from src.train.callbacks.run_folder import RUN_FILES, archive_previous_run, goes_on_in_its_folder
from src.train.callbacks.run_lock import RunLock
from src.train.provenance import RUN_FILE, write_start
from tests.errors import refuses

MINE = {
    "checkpoints/sam2.1_hiera_large.pt", "predictions/clip.json", "predictions/Annotations/clip/00000.png",
    "adapter/notes.txt", "logs/training.log",
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a run, with files of the user's among its own."""
    write_start(tmp_path, 0, "base", {}, "cpu")
    own = [pattern.replace("*", "001") for pattern in RUN_FILES if pattern != RUN_FILE]
    for name in [*own, *MINE]:
        path = tmp_path / name
        if "." not in path.name:  # a folder
            path /= "file.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt" and name not in MINE:
            torch.save({"format_version": 1, "base_fingerprint": "a", "progress": {}}, path)
        else:
            path.write_text(name)
    return tmp_path


class TestAnEarlierRun:
    def test_is_moved_and_the_users_files_stay(self, folder):
        before = names(folder)
        aside = archive_previous_run(folder)
        assert names(aside) == before - MINE
        assert {name for name in names(folder) if not name.startswith("earlier/")} == MINE

    def test_moves_its_checkpoints_last_and_a_kill_in_between_loses_nothing(self, folder, monkeypatch):
        before, rename, moved = names(folder), Path.rename, []

        def killed(path: Path, target: Path) -> None:
            if path.name == "last.pt":
                raise KeyboardInterrupt
            moved.append(path.name)
            rename(path, target)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", killed)
            archive_previous_run(folder)
        assert moved[-4:] == [RUN_FILE, "epoch_001.pt", "best.pt", "previous.pt"]
        assert (folder / "checkpoints/last.pt").exists()
        archive_previous_run(folder)
        parts = [names(aside) for aside in (folder / "earlier").iterdir()]
        assert len(parts) == 2 and set.union(*parts) == before - MINE

    def test_that_was_another_is_moved_where_a_run_goes_on_from_elsewhere(self, folder, tmp_path):
        def goes_on(start: Path | None, events: str) -> bool:
            run = SimpleNamespace(resumed_from=start)
            trainer = SimpleNamespace(run=run, checkpoints=folder / "checkpoints", events_folder=folder / events)
            return goes_on_in_its_folder(trainer)

        assert goes_on(folder / "checkpoints/last.pt", "logs/new")
        assert not goes_on(None, "logs")
        assert not goes_on(Path("/elsewhere/checkpoints/last.pt"), "logs/not here")
        assert goes_on(Path("/elsewhere/copy.pt"), "logs")


class TestNoRun:
    def test_base_weights_among_the_checkpoints_are_none(self, folder):
        (folder / RUN_FILE).unlink()
        for path in (folder / "checkpoints").iterdir():
            if path.name != "sam2.1_hiera_large.pt":
                path.unlink()
        before = names(folder)
        assert archive_previous_run(folder) is None
        assert names(folder) == before

    @pytest.mark.parametrize("mark", ["[]", '{"starts": 3}', "\0", "[" * 100_000])
    def test_a_file_in_the_place_of_a_checkpoint_is_not_written_over(self, folder, mark):
        (folder / RUN_FILE).write_text(mark)
        torch.save({"model": {}}, folder / "checkpoints/best.pt")
        before = names(folder)
        with refuses("run.foreign-file", "best.pt"):
            archive_previous_run(folder)
        assert names(folder) == before


def test_a_run_whose_folder_was_taken_over_stops_before_others_write(make_config, tmp_path):
    assert isinstance(default_callbacks(make_config())[0], RunLock)
    lock, trainer = RunLock(), SimpleNamespace(folder=tmp_path)
    lock.on_fit_start(trainer)
    lock.on_step_end(trainer, None)
    (tmp_path / LOCK_FILE).unlink()  # as a second run with --force does
    (tmp_path / LOCK_FILE).write_text(json.dumps({"process": 1, "host": "far", "since": "now"}))
    for hook in (lock.before_save, lock.on_train_end, lambda t: lock.on_step_end(t, None)):
        with refuses("run.taken-over", "process 1 on far"):
            hook(trainer)
    lock.on_fit_end(trainer)
    assert (tmp_path / LOCK_FILE).exists()
