"""The check of the project's form finds what it looks for, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_architecture import measure

CLEAN = '"""Nothing to see."""\n\nvalue = 1\n'


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in small, which passes."""
    for name in ("src/train/trainer.py", "src/models/sam2.py", "src/cli/main.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def run():\n    pass\n\n\nclass Loop:\n    pass\n")
    (tmp_path / "README.md").write_text("# Title\n")
    return tmp_path


def failures(clone: Path) -> dict[str, int]:
    return {each.name: each.value for each in measure(clone) if each.value > each.limit}


def test_a_clean_clone_passes(clone):
    assert failures(clone) == {}


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("src/a.py", "def long():\n" + "    pass\n" * 60, "longest function of src"),
        ("src/a.py", "class Long:\n" + "    pass\n" * 250, "longest class of src"),
        ("src/train/trainer.py", CLEAN * 101, "lines of src/train/trainer.py"),
        ("README.md", "\n" * 101, "lines of README.md"),
        ("src/a.py", "import sam2.build_sam\n", "imports of sam2, training or transformers outside src/models"),
        ("src/a.py", "from training import loss\n", "imports of sam2, training or transformers outside src/models"),
        ("src/a.py", "import_module('transformers')\n", "imports of sam2, training or transformers outside src/models"),
        ("src/a.py", "print('x')\n", "print in src outside src/cli"),
        ("src/a.py", "raise UserError('x')\n", "raise UserError without a code"),
        ("src/a.py", "told = 1\n", "identifiers that the glossary replaces, in src"),
        ("src/a.py", "# made anew\n", "phrases that the glossary replaces"),
        ("src/a.py", 'raise ValueError("played to and fro")\n', "phrases that the glossary replaces"),
        ("docs/page.md", "a folder of\nwhich the name is that of the file\n", "phrases that the glossary replaces"),
    ],
)  # fmt: skip
def test_what_passes_a_limit_is_found(clone, file, text, name):
    (clone / file).parent.mkdir(exist_ok=True)
    (clone / file).write_text(text + "\n\ndef f():\n    pass\n\n\nclass C:\n    pass\n" * file.endswith(".py"))
    assert list(failures(clone)) == [name]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("src/a.py", "from .training import x\nfrom ..sam2 import y\n"),
        ("src/models/b.py", "import sam2\n"),
        ("src/cli/b.py", "print('x')\n"),
        ("src/a.py", "raise UserError('x', 'data.missing')\nraise UserError('x', code='data.missing')\n"),
        ("src/a.py", "window = 1  # retold, belies\n"),
    ],
)
def test_what_is_fine_passes(clone, file, text):
    (clone / file).write_text(text)
    assert failures(clone) == {}
