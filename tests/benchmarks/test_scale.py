"""benchmarks/scale.py measures reading, and counts gradients."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from src.config import ClipConfig
from src.core.errors import UserError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_reading(script, shared_data, tmp_path):
    name = "sav_900001"
    for ending in (".mp4", "_manual.json"):
        (tmp_path / f"{name}{ending}").symlink_to((shared_data("sav") / f"{name}{ending}").resolve())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = script["measure_reading"](script["complete"](tmp_path, scratch), ClipConfig(frames=2), 64, 1)
    assert found.decoded > found.drawn > 0
    assert 100 < found.index < 5000
    assert found.file == sum((tmp_path / f"{name}{ending}").stat().st_size for ending in (".mp4", "_manual.json"))


def test_gradients_are_those_of_what_trains(script):
    found = script["gradient_bytes"]("sam2_nano")
    assert found["lora"] < found["mope"] < found["decoder"] < found["full"]
    assert found["full"] % 4 == 0


def test_a_folder_without_videos(script, tmp_path):
    with pytest.raises(UserError, match="holds no video"):
        script["complete"](tmp_path, tmp_path)
