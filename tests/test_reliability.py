"""docs/reliability.md names tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

HOUSE = Path(__file__).parents[1]
SAME_FILE = "…"


def named_tests() -> list[str]:
    """``file::name``, or ``file::class::name``, of every test in the tables, in their order."""
    found: list[str] = []
    for file, names in re.findall(r"`(tests/[\w/]+\.py|…)((?:::\w+)+)`", (HOUSE / "docs/reliability.md").read_text()):
        before = found[-1].partition("::")[0] if found else ""
        found.append(f"{before if file == SAME_FILE else file}{names}")
    return found


@cache
def statements(path: Path) -> list[ast.stmt]:
    """Those of a module; none if there is no such file."""
    return ast.parse(path.read_text()).body if path.is_file() else []


def is_there(test: str) -> bool:
    file, *names = test.split("::")
    body = statements(HOUSE / file)
    for name in names:
        found = [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name]
        if not found:
            return False
        body = found[0].body
    return True


def test_every_test_in_the_tables_is_there():
    assert [test for test in named_tests() if not is_there(test)] == []


def test_every_fault_has_a_test():
    rows = re.findall(r"^\|[^|]+\|\s*\d+\s*\|.*\|$", (HOUSE / "docs/reliability.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    assert [row for row in rows if "::" not in row] == []


def test_a_test_that_is_not_there_would_be_found():
    assert is_there("tests/test_reliability.py::is_there")
    assert not is_there("tests/test_reliability.py::TestNothing::is_there")
    assert not is_there("tests/no_such_file.py::is_there")
