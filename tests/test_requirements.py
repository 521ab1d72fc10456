"""requirements.txt, and the demo's, are what their .in files compile to, and carry no download addresses."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETS = ("requirements", "requirements-demo")


@pytest.mark.parametrize("name", SETS)
def test_compiled_requirements_equal_the_sources(tmp_path: Path, name: str) -> None:
    for suffix in (".in", ".txt"):
        shutil.copy(ROOT / f"{name}{suffix}", tmp_path)
    source = (ROOT / f"{name}.in").read_text()
    command = re.search(r"^#\s+uv (pip compile .*)$", source, re.MULTILINE)
    assert command, f"{name}.in names the command that compiles it"
    # pins that are in the file already are kept, so a new release elsewhere does not change the outcome
    done = subprocess.run(
        [sys.executable, "-m", "uv", *command[1].split(), "--quiet"], cwd=tmp_path, capture_output=True, text=True
    )
    if done.returncode and re.search(r"(dns|connect|network|timed? ?out|request)", done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{name}.txt").read_text() == (ROOT / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", SETS)
def test_every_requirement_is_pinned_exactly_and_names_no_host(name: str) -> None:
    lines = [line for line in (ROOT / f"{name}.txt").read_text().splitlines() if line and line[0] not in "# "]
    assert lines
    for line in lines:
        assert re.match(r"^[A-Za-z0-9_.-]+==[^\s;]+( ; .+)?$", line), line
        assert "://" not in line
    pinned = {re.split("==", line)[0].lower() for line in lines}
    wanted = {
        re.split(r"[>=<\s#]", line)[0].lower()
        for line in (ROOT / f"{name}.in").read_text().splitlines()
        if line and line[0] != "#"
    }
    assert wanted <= pinned


def test_every_package_that_is_imported_is_a_requirement() -> None:
    sources = "\n".join((ROOT / f"{name}.in").read_text().lower() for name in SETS)
    named = set(re.findall(r"^[a-z][\w-]*", sources, re.MULTILINE))
    provided_by = importlib.metadata.packages_distributions()
    files = [
        *ROOT.glob("*.py"),
        *(file for part in ("src", "tools", "benchmarks", "tests") for file in (ROOT / part).rglob("*.py")),
    ]
    imported = {package for file in files for package in _imports(file)} - set(sys.stdlib_module_names)
    missing = [
        package
        for package in sorted(imported & provided_by.keys())
        if not any(name.lower().replace("_", "-") in named for name in provided_by[package])
    ]
    assert not missing


def _imports(file: Path) -> set[str]:
    """The top packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.split(".")[0])
    return found
