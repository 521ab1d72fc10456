"""The script that checks weights says that all is well where it is, and its status tells where it is not."""

from __future__ import annotations

import json

import pytest

from tests.errors import refuses

pytest.importorskip("transformers", "5.24", "SAM 3's tracker needs transformers 5.24")

from src.models.sam3_tracker import transformers_form
from tests.sam3 import write_tiny
from tools import verify_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def arguments(folder, *more: str):
    return verify_weights.build_parser().parse_args(
        ["--checkpoint", str(folder), "--frames", "2", "--device", "cpu", *more]
    )


def test_weights_that_are_fine(folder, tmp_path, capsys):
    assert verify_weights.main(arguments(folder, "--json", str(tmp_path / "report.json"))) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["same"] and max(report["differences"].values()) < 1e-4
    assert report["training_step"]["step_seconds"] > 0 and report["training_step"]["peak_gb"] > 0
    said = capsys.readouterr().out
    assert all(fact in said for fact in ("same: True", "transformers 5.", report["base_fingerprint"]))


def test_another_result_in_transformers_is_a_status(folder, monkeypatch):
    def other(model, config, load=transformers_form.load_stock):
        stock = load(model, config)
        stock.no_memory_embedding.data += 1
        return stock

    monkeypatch.setattr(transformers_form, "load_stock", other)
    assert verify_weights.main(arguments(folder)) == 1


def test_a_single_frame_tracks_nothing(folder):
    with refuses("verify.frames"):
        verify_weights.main(arguments(folder, "--frames", "1"))
