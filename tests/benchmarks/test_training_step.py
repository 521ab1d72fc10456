"""benchmarks/training_step.py, scaling.py and epoch_with_cache.py run, and check what they compare."""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.core.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(BENCHMARKS / "training_step.py"))


@pytest.fixture(scope="module")
def steps(script) -> dict:
    """Every variant of a small step."""
    full = script["Case"](model="sam2_nano", method="full", size=64, frames=2, objects=2)
    cases = [full, *(replace(full, method="mope", kept=kept) for kept in (False, True))]
    base = script["build_base"](full)
    return {case.name: script["Step"](case, base) for case in cases}


def test_variants_have_the_same_first_loss_and_train(script, steps):
    script["check_equal"](steps)
    before = steps["full"].first_loss()
    for step in steps.values():
        step()
        assert step.first_loss() != before
    with pytest.raises(UserError, match="the base's loss is"):
        script["check_equal"](steps)


def test_memory_is_measured_in_a_process_of_its_own(script, steps):
    mb = script["in_own_process"](script["peak_of"], replace(steps["mope"].case, device="cpu"))
    assert mb > 1


def test_growth_is_printed_and_drawn(tmp_path, capsys):
    scaling = runpy.run_path(str(BENCHMARKS / "scaling.py"))
    point = scaling["Point"]
    found = {name: [point(1, 0.5, 10.0), point(2, 2.0, 15.0)] for name in scaling["TITLES"]}
    scaling["print_table"](found)
    assert "| frames | 2 | 2.000 | ×4.00 | 15 | ×1.50 |" in capsys.readouterr().out
    scaling["draw"](found, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def measure_epochs(tiny_yaml, tmp_path) -> Callable[..., dict[str, list[float]]]:
    script = runpy.run_path(str(BENCHMARKS / "epoch_with_cache.py"))

    def measure(*overrides: str, video_side: int | None = None) -> dict[str, list[float]]:
        arguments = argparse.Namespace(
            config=str(tiny_yaml), overrides=list(overrides), clips=4, rounds=1, where="memory", video_side=video_side
        )
        return script["measure"](arguments, time.process_time, tmp_path)

    return measure


@pytest.mark.parametrize("video_side", [None, 80])
def test_epochs_with_features_kept_and_without(measure_epochs, tmp_path, video_side):
    seconds = measure_epochs(video_side=video_side)
    assert len([*tmp_path.glob("videos/JPEGImages/*/*.jpg")]) == (24 if video_side else 0)
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert min(min(times) for times in seconds.values()) > 0


def test_nothing_to_keep(measure_epochs):
    with pytest.raises(UserError, match="nothing to keep"):
        measure_epochs("lora.method=full")


@pytest.fixture(autouse=True)
def one_thread():
    """A process that has used several cannot be forked safely."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
