"""What the documentation refers to is there: files, links, and the layers of the guide's table."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from src.config import ModelConfig
from src.lora.injection import find_targets
from src.models.sam2.build import build_model

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), ROOT / "data/README.md", *(ROOT / "docs").rglob("*.md")]
FILE = re.compile(
    r"`((?:src|tests|tools|benchmarks|examples|docs|data|checkpoints)/[\w./-]+\.(?:py|md|ya?ml|sh|json))`"
)
FORMER = {"CHANGELOG.md"}
"""Pages that may speak of files of earlier versions."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPages:
    def test_links_lead_to_files(self, page):
        targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        files = [target.partition("#")[0] for target in targets if "://" not in target]
        assert [file for file in files if file and not (page.parent / file).exists()] == []

    def test_files_that_are_named_are_there(self, page):
        if page.name not in FORMER:
            named = FILE.findall(page.read_text(encoding="utf-8"))
            assert [file for file in named if not (ROOT / file).exists()] == []


def layer_names() -> list[str]:
    """Return the layers of the guide's table, their shorthand written out."""
    text = (ROOT / "LORA_IMPLEMENTATION_GUIDE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\| (`.*`) \| [\d, of each]+\|$", text, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    choices = [[part.split(",") for part in re.findall(r"\{([^}]+)\}", name)] for name in names]
    return [
        re.sub(r"\{[^}]+\}", "{}", name).format(*chosen).removeprefix("….")
        for name, parts in zip(names, choices, strict=True)
        for chosen in itertools.product(*parts)
    ]


def test_every_layer_of_the_table_can_be_adapted():
    names = layer_names()
    assert len(names) > 20
    model = build_model(ModelConfig())
    for name in names:
        assert find_targets(model, [name]), name
