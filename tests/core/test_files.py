"""Files are written whole or not at all, and what the system refuses is told in one line."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from src.core.files import remove_leftovers, write_atomically, write_folder_atomically, write_text
from src.core.torch_files import save_pt
from tests.errors import refuses


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of more than 10 kB cannot be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITERS = {
    "text": lambda path: path.write_text("x" * 20_000),
    "torch": partial(save_pt, {"a": torch.zeros(3000), "b": torch.zeros(3000)}),
    "safetensors": lambda path: save_file({"a": torch.zeros(20_000)}, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_and_leaves_the_earlier_file(tmp_path, small_files, kind):
    path = tmp_path / "file"
    path.write_text("earlier")
    with refuses("files.not-written") as caught:
        write_atomically(path, WRITERS[kind], keep=tmp_path / "kept")
    assert str(caught.value) == f"{path}: cannot be written: File too large"
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_fits_is_written(tmp_path, kind):
    write_atomically(tmp_path / "file", WRITERS[kind])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_errors_that_are_not_the_systems_stay_what_they_are(tmp_path):
    def fail(path: Path) -> None:
        raise ValueError("a mistake of the program")

    with pytest.raises(ValueError, match="a mistake of the program"):
        write_atomically(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_the_earlier_file_is_kept_where_it_is_wanted(tmp_path):
    path, kept = tmp_path / "file", tmp_path / "kept"
    for text in ("1", "2", "3"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text), keep=kept)
    assert (path.read_text(), kept.read_text()) == ("3", "2")


def test_file_and_folder_are_synced_around_the_renaming(tmp_path, monkeypatch):
    done = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(os.path.realpath(f"/proc/self/fd/{number}")), sync(number))
    )
    monkeypatch.setattr(os, "replace", lambda source, target: (done.append("renamed"), rename(source, target)))
    write_text(tmp_path / "file", "x")
    assert [Path(entry).name for entry in done] == [f".file.{os.getpid()}.tmp", "renamed", tmp_path.name]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with refuses("files.not-written"):
        write_text(tmp_path / "file" / "inner.txt", "x")


def test_a_folder_appears_when_all_of_it_is_written(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("x")
        assert not (tmp_path / "deep" / "folder").exists()

    write_folder_atomically(tmp_path / "deep" / "folder", fill)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")] == ["deep/folder/inner/a.txt"]


@pytest.mark.parametrize("kind", WRITERS)
def test_of_a_folder_on_a_full_disk_nothing_is_left(tmp_path, small_files, kind):
    with refuses("files.not-written"):
        write_folder_atomically(tmp_path / "folder", lambda folder: WRITERS[kind](folder / "file"))
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".last.pt.17.tmp", "last.pt", "notes.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".exported.17.tmp" / "inner").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "notes.tmp"}
