"""The comparison of the MoPE layer with loops and LoRA: equal results are a condition, and every row has its ratios."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from src.lora.moe_layer import MoELoRALinear

SCRIPT = str(Path(__file__).parents[2] / "benchmarks" / "mope_layer.py")


@pytest.fixture
def compare(run_script: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Run the script on a small layer: (exit status, standard output, standard error)."""
    return partial(run_script, SCRIPT, "--experts", 3, "--rank", 2, "--rounds", 1)


def test_a_row_for_each_layer_of_each_shape_and_less_memory_than_the_loops(compare) -> None:
    status, out, errors = compare("--shapes", "2x50x16", "30x8->24")
    assert status == 0, errors
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")][1:]
    layers = ["loop", "loop, outputs stacked", "loop, chosen tokens", "PEFT's LoRA", "this layer", "base layer alone"]
    assert [row[:2] for row in rows] == [[shape, layer] for shape in ("2x50x16", "30x8->24") for layer in layers]
    for row in rows:
        assert row[1] != "this layer" or (row[3], row[5]) == ("1.00", "1.0")
        assert "loop" not in row[1] or float(row[5]) > 1


def test_a_layer_that_computes_something_else_is_not_timed(compare, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MoELoRALinear.forward
    monkeypatch.setattr(MoELoRALinear, "forward", lambda self, x: forward(self, x) * 1.0001)
    status, out, errors = compare("--shapes", "30x8")
    assert status == 2
    assert "| 30x8 |" not in out
    assert "differ from the loop" in errors


def test_a_shape_that_is_none_is_refused(compare) -> None:
    status, _, errors = compare("--shapes", "30by8")
    assert status == 2
    assert "30by8 is not like" in errors
