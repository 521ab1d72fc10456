"""``training.log`` keeps what was said, and trouble with it is one line."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from src.train.callbacks.run_log import RunLog
from tests.errors import refuses


@pytest.mark.parametrize("what", ["logs", "logs/training.log"])
def test_a_log_that_cannot_be_opened_is_refused(tmp_path, what):
    if what == "logs":
        (tmp_path / "logs").write_text("a file")
    else:
        (tmp_path / what).mkdir(parents=True)
    log = RunLog()
    with refuses("files.not-written", "training.log"):
        log.on_fit_start(SimpleNamespace(folder=tmp_path))
    log.on_fit_end(SimpleNamespace(folder=tmp_path))


def test_names_from_data_are_escaped_in_it(tmp_path, monkeypatch):
    # pytest cannot send such a line between processes: no handler of pytest's or of an earlier command's takes it
    monkeypatch.setattr(logging.getLogger("src"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("src"), "handlers", [])
    log = RunLog()
    log.on_fit_start(SimpleNamespace(folder=tmp_path))
    logging.getLogger("src.train.any").info("a \x1b[31m \udcff name")
    log.on_fit_end(SimpleNamespace(folder=tmp_path))
    assert (tmp_path / "logs/training.log").read_text().endswith(" a \\x1b[31m \\udcff name\n")


def test_a_full_disk_is_said_once(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/training.log").symlink_to("/dev/full")
    log = RunLog()
    log.on_fit_start(SimpleNamespace(folder=tmp_path))
    for _ in range(3):
        logging.getLogger("src.train.any").info("said")
    log.on_fit_end(SimpleNamespace(folder=tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert "training.log: cannot be written" in line
