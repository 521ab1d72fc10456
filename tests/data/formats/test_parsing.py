"""src/data/parsing.py: what does not need a data set to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.data.formats.parsing import Bounds


def test_bounds_of_a_relative_folder_are_of_where_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "data").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        Bounds.of(False, Path("data")).check(Path("data/picture.png"))
