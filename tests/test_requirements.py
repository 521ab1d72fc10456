"""requirements.txt is what pyproject.toml compiles to, and carries no download addresses."""

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
SOURCE = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
COMPILED = "requirements.txt"
NOT_COMPILED = {"gradio", "playwright"}
"""The extra ``demo``, which holds Pillow at another version."""


def requirements() -> set[str]:
    """Return the names of all packages that pyproject.toml lists under dependencies and extras."""
    lists = SOURCE[SOURCE.index("dependencies = [") : SOURCE.index("[project.scripts]")]
    return {name.lower() for name in re.findall(r'^    "([A-Za-z][\w.-]*)', lists, re.MULTILINE)}


def test_compiled_requirements_equal_the_source(tmp_path: Path) -> None:
    for name in ("pyproject.toml", COMPILED):
        shutil.copy(ROOT / name, tmp_path)
    command = re.search(r"^#\s+uv (pip compile .*)$", SOURCE, re.MULTILINE)
    assert command, "pyproject.toml names the command that compiles it"
    # pins that are in the file already are kept, so a new release elsewhere does not change the outcome
    done = subprocess.run(
        [sys.executable, "-m", "uv", *command[1].split(), "--quiet"], cwd=tmp_path, capture_output=True, text=True
    )
    if done.returncode and re.search(r"(dns|connect|network|timed? ?out|request)", done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / COMPILED).read_text() == (ROOT / COMPILED).read_text()


def test_every_requirement_is_pinned_exactly_and_names_no_host() -> None:
    lines = [line for line in (ROOT / COMPILED).read_text().splitlines() if line and line[0] not in "# "]
    assert lines
    for line in lines:
        assert re.match(r"^[A-Za-z0-9_.-]+==[^\s;]+( ; .+)?$", line), line
        assert "://" not in line
    pinned = {re.split("==", line)[0].lower() for line in lines}
    assert requirements() - pinned == NOT_COMPILED


def test_every_package_that_is_imported_is_a_requirement() -> None:
    named = requirements()
    provided_by = importlib.metadata.packages_distributions()
    files = [
        *ROOT.glob("*.py"),
        *(file for part in ("src", "tools", "benchmarks", "tests") for file in (ROOT / part).rglob("*.py")),
    ]
    imported = {package for file in files for package in _imports(file)} - set(sys.stdlib_module_names)
    missing = [
        package
        for package in sorted(imported & provided_by.keys() - {"setuptools"})  # which the build system brings
        if not any(name.lower().replace("_", "-") in named for name in provided_by[package])
    ]
    assert not missing


def _imports(file: Path) -> set[str]:
    """Return the top packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.split(".")[0])
    return found
