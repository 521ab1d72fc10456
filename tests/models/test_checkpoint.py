"""Checkpoints come back whole; damaged, foreign and dangerous files are refused in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import load_config
from src.core.errors import UserError
from src.data.synthetic import SOURCE, make_video
from src.lora.adapter import disable_adapters, iter_adapter_layers
from src.models.checkpoint import Checkpoint, load_trained, read_checkpoint
from src.models.sam2.build import build_model
from src.tasks.tracking.predict import predicting, track
from src.train.trainer import Trainer
from tests.errors import refuses


@pytest.fixture(scope="module")
def run(tiny_yaml, tmp_path_factory) -> Trainer:
    """A run that was trained hard enough to change masks."""
    folder = tmp_path_factory.mktemp("run")
    settings = ["training.learning_rate=0.3", "training.warmup_steps=0", "training.max_epochs=1", "lora.alpha=64"]
    trainer = Trainer.from_config(load_config(tiny_yaml, [f"output_dir={folder}", *settings]))
    trainer.fit()
    return trainer


@pytest.fixture
def best(run) -> Path:
    return run.folder / "checkpoints/best.pt"


def base(run: Trainer):
    torch.manual_seed(run.config.training.seed)
    return build_model(run.config.model)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


DAMAGED = "torch-file.damaged", "torch-file.foreign-content"
"""Codes of what torch cannot read; which of them depends on its version."""


def refusal(path: Path) -> UserError:
    """The error with which a file is refused, whose message is one line that names it."""
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return caught.value


def masks(model, run: Trainer) -> list[np.ndarray]:
    with predicting(model) as predictor:
        found = track(predictor, make_video(SOURCE, 4, 3, 64), "mask")
    return [mask.decode() for row in found.values() for mask in row]


class TestLoadTrained:
    def test_file_and_folder_give_the_masks_of_the_run(self, run, best):
        from_file, from_folder = base(run), base(run)
        assert load_trained(from_file, best) == load_trained(from_folder, run.folder / "adapter") == run.config.lora
        expected = masks(run.model, run)
        assert all(np.array_equal(a, b) for a, b in zip(masks(from_file, run), expected, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(masks(from_folder, run), expected, strict=True))
        assert any(adapter.lora_B.any() for _, adapter in iter_adapter_layers(from_file))

    def test_switched_off_it_is_the_base(self, run, best):
        model = base(run)
        expected = masks(model, run)
        load_trained(model, best)
        with disable_adapters(model):
            off = masks(model, run)
        assert all(np.array_equal(a, b) for a, b in zip(off, expected, strict=True))

    def test_a_whole_model_comes_back(self, make_config):
        trainer = Trainer.from_config(make_config("lora.method=full", "training.max_steps=1"))
        best = trainer.fit()
        model = base(trainer)
        assert load_trained(model, best).method == "full"
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)

    def test_another_base_is_refused_by_file_and_folder(self, run, best):
        for path, code in ((best, "checkpoint.other-base"), (run.folder / "adapter", "adapter.other-base")):
            torch.manual_seed(5)
            other = build_model(run.config.model)
            with refuses(code, "set model.checkpoint to the base"):
                load_trained(other, path)
            assert not any(iter_adapter_layers(other))

    def test_other_adapters_than_expected_are_refused(self, run, best):
        expected = run.config.lora.model_copy(update={"rank": 2})
        with refuses("checkpoint.other-adapters", "lora.rank", " 4 ", " 2 "):
            load_trained(base(run), best, expected)

    def test_a_folder_of_something_else(self, run, tmp_path):
        with refuses("adapter.not-a-folder"):
            load_trained(base(run), tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda weights: weights.pop(next(iter(weights))),
            lambda weights: weights.update(extra=torch.zeros(1)),
            lambda weights: weights.update({next(iter(weights)): torch.zeros(1, 2)}),
        ],
        ids=["missing", "extra", "reshaped"],
    )
    def test_weights_that_do_not_fit_are_named(self, run, best, tmp_path, change):
        content = torch.load(best, weights_only=True)
        name = next(iter(content["weights"]))
        change(content["weights"])
        torch.save(content, tmp_path / "odd.pt")
        with refuses("checkpoint.other-weights") as caught:
            load_trained(base(run), tmp_path / "odd.pt")
        assert name in str(caught.value) or "extra" in str(caught.value)


class TestRead:
    def test_it_is_what_was_saved(self, run):
        found = read_checkpoint(run.folder / "checkpoints/last.pt")
        assert isinstance(found, Checkpoint)
        assert found.config == run.config
        assert found.base_fingerprint == run.run.base_fingerprint
        assert found.progress["step"] == 3

    def test_a_missing_file_is_named_with_its_neighbours(self, best):
        error = refusal(best.with_name("bst.pt"))
        assert error.code == "checkpoint.missing"
        assert "best.pt, last.pt" in str(error)
        assert refusal(best.parent / "nowhere" / "best.pt").code == "checkpoint.missing"

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
    def test_a_truncated_file(self, best, tmp_path, share):
        content = best.read_bytes()
        (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
        assert refusal(tmp_path / "cut.pt").code in DAMAGED

    def test_flipped_bytes(self, best, tmp_path):
        content = bytearray(best.read_bytes())
        content[40:80] = bytes(40)
        (tmp_path / "odd.pt").write_bytes(content)
        assert refusal(tmp_path / "odd.pt").code in DAMAGED

    @pytest.mark.parametrize("content", [b"text", b"<html></html>", b"\x80\x02garbage", b"\x89PNG\r\n\x1a\n"])
    def test_a_file_of_something_else(self, tmp_path, content):
        (tmp_path / "odd.pt").write_bytes(content)
        assert refusal(tmp_path / "odd.pt").code in DAMAGED

    @pytest.mark.parametrize(
        "content",
        [
            [1, 2], {"a": 1}, {"format_version": 99}, {"format_version": 1}, torch.zeros(3),
            {"format_version": 1, "config": {}, "weights": {}},
        ],
        ids=["list", "dict", "version", "empty", "tensor", "partly"],
    )  # fmt: skip
    def test_a_pt_file_of_something_else(self, tmp_path, content):
        torch.save(content, tmp_path / "odd.pt")
        assert refusal(tmp_path / "odd.pt").code == "checkpoint.other-format"

    def test_base_weights_are_told_from_checkpoints(self, run, tmp_path):
        torch.save({"model": base(run).state_dict()}, tmp_path / "official.pt")
        error = refusal(tmp_path / "official.pt")
        assert error.code == "checkpoint.other-format"
        assert "model.checkpoint" in str(error)

    def test_a_checkpoint_is_no_base(self, run, best):
        with refuses("base.other-format"):
            build_model(run.config.model.model_copy(update={"checkpoint": str(best)}))

    def test_code_in_a_pickle_is_refused_and_not_run(self, best, tmp_path):
        content = torch.load(best, weights_only=True) | {"progress": Bomb(tmp_path / "bomb")}
        torch.save(content, tmp_path / "evil.pt")
        assert refusal(tmp_path / "evil.pt").code == "torch-file.foreign-content"
        assert not (tmp_path / "bomb").exists()
        torch.load(tmp_path / "evil.pt", weights_only=False)
        assert (tmp_path / "bomb").exists(), "the bomb of this test is a dud"


class TestSave:
    def test_a_failure_leaves_the_earlier_file(self, best, tmp_path, monkeypatch):
        path = shutil.copy(best, tmp_path / "best.pt")
        before = path.read_bytes()

        def full(content, file):
            file.write(b"half of it")
            raise OSError(28, "No space left on device")

        found = read_checkpoint(path)
        monkeypatch.setattr(torch, "save", full)
        with refuses("files.not-written", "best.pt", "No space left on device"):
            found.save(path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]
