"""benchmarks/distillation_cost.py runs, and measures what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.errors import refuses

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "distillation_cost.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_steps_are_measured_with_it_and_without(script, tiny_yaml):
    found = script["measure"](["training.distill.clips=3"], str(tiny_yaml), steps=1, rounds=1)
    assert found.keys() == {"with", "without", "asked"}
    assert min(found["with"], found["without"]) > 0


def test_nothing_to_measure(script, tiny_yaml):
    with refuses("benchmark.nothing", "training.distill.weight"):
        script["measure"](["training.distill.weight=0"], str(tiny_yaml), steps=1, rounds=1)
