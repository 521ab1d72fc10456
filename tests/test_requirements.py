"""requirements.txt is what requirements.in compiles to, and carries no download addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_compiled_requirements_equal_the_sources(tmp_path: Path) -> None:
    for name in ("requirements.in", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    source = (ROOT / "requirements.in").read_text()
    command = re.search(r"^#\s+uv (pip compile .*)$", source, re.MULTILINE)
    assert command, "requirements.in names the command that compiles it"
    # pins that are in the file already are kept, so a new release elsewhere does not change the outcome
    done = subprocess.run(
        [sys.executable, "-m", "uv", *command[1].split(), "--quiet"], cwd=tmp_path, capture_output=True, text=True
    )
    if done.returncode and re.search(r"(dns|connect|network|timed? ?out|request)", done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "requirements.txt").read_text() == (ROOT / "requirements.txt").read_text()


def test_every_requirement_is_pinned_exactly_and_names_no_host() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] not in "# "]
    assert lines
    for line in lines:
        assert re.match(r"^[A-Za-z0-9_.-]+==[^\s;]+( ; .+)?$", line), line
        assert "://" not in line
    pinned = {re.split("==", line)[0].lower() for line in lines}
    wanted = {
        re.split(r"[>=<\s#]", line)[0].lower()
        for line in (ROOT / "requirements.in").read_text().splitlines()
        if line and line[0] != "#"
    }
    assert wanted <= pinned
