"""benchmarks/long_run.py looks at every process of a run, and tells what grows from what does not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from src.config import Config

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "long_run.py"
BOUNDS = {"memory": 4.0, "files": 0.5, "threads": 0.5}


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_the_trainer_and_its_loaders_are_looked_at(script, make_config):
    config: Config = make_config("training.num_workers=1", "training.max_steps=4", "training.domain_gate=false")
    found = script["train"](config, 4)
    assert found.keys() == {"trainer", "loader 1"}
    for series in found.values():
        assert series.steps == [1, 2, 3, 4]
        assert min(series.memory) > 1 and min(series.files) > 2 and min(series.threads) >= 1


def test_a_stream_is_looked_at(script, make_config):
    assert script["stream"](make_config(), 3)["stream"].steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("memory", "files", "told"),
    [
        (lambda t: 100 + 0.001 * t, lambda t: 20, []),
        (lambda t: 100 + 0.02 * t, lambda t: 20, ["memory of the a: +20.00 in 1,000, over the bound of 4"]),
        (lambda t: 100, lambda t: 20 + t // 100, ["files of the a: +10"]),
        (lambda t: 100 + min(t, 200), lambda t: 20, []),
    ],
    ids=["flat", "a leak of memory", "files stay open", "warm-up"],
)
def test_what_grows_is_told(script, memory, files, told):
    steps = list(range(10, 1010, 10))
    series = script["Series"](steps, [*map(memory, steps)], [*map(files, steps)], [5] * len(steps))
    found = script["growing"]({"a": series}, BOUNDS)
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))
