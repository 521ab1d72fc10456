"""The comparison of target sets: names that every model has, rows that say what was measured, none measured twice."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from src.config import ModelConfig
from src.lora.injection import find_targets
from src.models.sam2.build import build_model

SCRIPT = str(Path(__file__).parents[2] / "benchmarks" / "target_modules.py")


@pytest.fixture
def compare(
    run_script: Callable[..., tuple[int, str, str]], data_settings: list[str], tmp_path: Path
) -> Callable[..., tuple[int, list[list[str]], str]]:
    """Run the script on the tiny data, one step a training: (exit status, cells of the table, standard error)."""
    settings = [
        "model.checkpoint=null", "model.image_size=64", "dataset.clip.frames=2", "training.max_steps=1",
        "training.batch_size=1", "training.num_workers=0", "training.device=cpu", "evaluation.frames=2",
        "evaluation.max_images=1", "evaluation.max_objects=1", "evaluation.source_clips=1", *data_settings,
    ]  # fmt: skip

    def run(*arguments: str) -> tuple[int, list[list[str]], str]:
        overrides = [part for setting in settings for part in ("--set", setting)]
        status, text, errors = run_script(SCRIPT, "--output", tmp_path, *arguments, *overrides)
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
        return status, cells, errors

    return run


def test_every_set_names_layers_of_the_model_and_no_two_the_same() -> None:
    sets = runpy.run_path(SCRIPT)["TARGET_SETS"]
    model = build_model(ModelConfig(name="sam2_nano"))
    found = {name: frozenset(find_targets(model, targets)) for name, targets in sets.items()}
    assert len(set(found.values())) == len(sets)
    assert found["self_attention"] | found["cross_attention"] == found["memory_attention"]
    assert found["q"] | found["k"] | found["v"] | found["out"] == found["memory_attention"]


def test_a_row_for_each_set_beside_base_and_default_and_no_row_twice(compare, tmp_path: Path) -> None:
    status, table, errors = compare("--sets", "memory_encoder", "--method", "lora")
    assert status == 0, errors
    header, _, *rows = table
    assert header[4:6] == ["target J (change)", "source J (change)"]
    assert [row[0] for row in rows] == ["base", "memory_attention", "memory_encoder"]
    assert [row[2] for row in rows] == ["0", "16", "4"]
    assert rows[1][-1] == "1.00"
    measured = json.loads((tmp_path / "rows.json").read_text())
    assert [row["steps"] for row in measured] == [0, 1, 1]
    assert [row["config"]["lora"]["method"] for row in measured] == ["none", "lora", "lora"]

    assert compare("--sets", "memory_encoder", "--method", "lora")[1] == table
    assert json.loads((tmp_path / "rows.json").read_text()) == measured

    (tmp_path / "rows.json").write_text("[{")
    status, _, errors = compare("--method", "lora")
    assert status == 2
    assert f"{tmp_path / 'rows.json'}: not valid JSON" in errors
