"""Which scores go into which adapter's model card; its content is tested where a run writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.evaluation.card import card_folder
from src.lora.adapter_io import WEIGHTS_FILE


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / WEIGHTS_FILE).touch()
    return tmp_path


@pytest.mark.parametrize("scored", ["adapter", "checkpoints/best.pt"])
def test_scores_of_the_runs_own_adapter(run, scored):
    assert card_folder(run, run / scored) == run / "adapter"
    assert card_folder(run, str(run / scored)) == run / "adapter"


def test_scores_of_anything_else(run, tmp_path_factory):
    assert card_folder(run, None) is None
    assert card_folder(run, run / "checkpoints" / "last.pt") is None
    assert card_folder(tmp_path_factory.mktemp("other"), run / "adapter") is None


def test_a_run_without_adapters_has_no_card(run):
    (run / "adapter" / WEIGHTS_FILE).unlink()
    assert card_folder(run, run / "checkpoints" / "best.pt") is None
