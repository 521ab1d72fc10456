"""Only the same run is gone on with, unless it is forced; what differs is told with both values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from src.config import load_config
from src.models.checkpoint import read_checkpoint
from src.train.resume import check_same_run, find_checkpoint
from src.train.trainer import Trainer
from tests.errors import refuses


@pytest.fixture(scope="module")
def first(tiny_yaml, tmp_path_factory) -> Trainer:
    """A run that stopped after a step."""
    folder = tmp_path_factory.mktemp("first") / "run"
    settings = ["training.max_steps=1", "training.monitor_clips=0", "training.domain_gate=false"]
    trainer = Trainer.from_config(load_config(tiny_yaml, [f"output_dir={folder}", *settings]))
    trainer.fit()
    return trainer


@pytest.fixture
def last(first) -> Path:
    return first.checkpoints / "last.pt"


class TestOtherRuns:
    @pytest.mark.parametrize(
        ("setting", "difference"),
        [
            ("training.learning_rate=0.5", "training.learning_rate is 0.001 there and 0.5 here"),
            ("training.max_epochs=7", "training.max_epochs is 2 there and 7 here"),
            ("training.batch_size=1", "training.batch_size is 2 there and 1 here"),
            ("training.seed=3", "training.seed is 0 there and 3 here"),
            ("training.max_grad_norm=null", "training.max_grad_norm is 1.0 there and None here"),
            ("training.prompts.correction_clicks=3", "training.prompts.correction_clicks is 1 there and 3 here"),
            ("training.loss.dice=2", "training.loss.dice is 1.0 there and 2.0 here"),
            ("training.distill.weight=1", "training.distill.weight is 0.0 there and 1.0 here"),
            ("dataset.clip.frames=2", "dataset.clip.frames is 3 there and 2 here"),
            ("dataset.augmentation=null", "dataset.augmentation is set there and None here"),
            ("lora.dropout=0.1", "lora.dropout is 0.0 there and 0.1 here"),
        ],
    )
    def test_what_changes_the_result_is_refused(self, make_config, first, last, setting, difference):
        saved = read_checkpoint(last)
        arguments = last, saved.base_fingerprint, first.run.data, make_config(setting)
        with refuses("resume.other-run") as caught:
            check_same_run(saved, *arguments, force=False)
        assert str(caught.value) == f"{last}: does not fit the config: {difference}; --force goes on all the same"
        assert check_same_run(saved, *arguments, force=True) == [difference]

    def test_it_is_refused_before_anything_is_written(self, make_config, last):
        config = make_config("training.learning_rate=0.5", "training.batch_size=1")
        facts = "training.batch_size", " 2 ", " 1 ", "training.learning_rate", " 0.001 ", " 0.5 "
        with refuses("resume.other-run", *facts):
            Trainer.from_config(config, last)
        assert [path.name for path in Path(config.output_dir).iterdir()] == ["data_checks"]

    def test_other_data_are_refused(self, make_config, last, tiny_data):
        folder = tiny_data / "valid"
        config = make_config(
            f"dataset.train_img_folder={folder}", f"dataset.train_ann_file={folder}/_annotations.coco.json"
        )
        parts = [f"training data.target.{part} " for part in ("videos", "frames", "fingerprint")]
        with refuses("resume.other-run", *parts, " 5 ", " 2 "):
            Trainer.from_config(config, last)

    def test_one_more_annotation_is_other_data(self, make_config, last, tiny_data, tmp_path):
        folder = tmp_path / "train"
        shutil.copytree(tiny_data / "train", folder)
        settings = [f"dataset.train_img_folder={folder}", f"dataset.train_ann_file={folder}/_annotations.coco.json"]
        Trainer.from_config(make_config(*settings), last)  # the same in another place
        path = folder / "_annotations.coco.json"
        content = json.loads(path.read_text())
        content["annotations"].append({**content["annotations"][0], "id": 999})
        path.write_text(json.dumps(content))
        with refuses("resume.other-run", "training data.target.objects "):
            Trainer.from_config(make_config(*settings), last)

    def test_what_changes_nothing_is_free(self, make_config, last):
        settings = [
            "training.num_workers=2", "training.monitor_clips=3", "training.max_steps=5", "training.device=auto",
            "training.save_every.minutes=1", "training.save_every.steps=7", "evaluation.source_clips=0",
        ]  # fmt: skip
        trainer = Trainer.from_config(make_config(*settings), last)
        assert trainer.state.step == 1

    def test_force_lists_what_it_overrides_and_uses_it(self, make_config, last):
        trainer = Trainer.from_config(
            make_config("training.learning_rate=0.5", "training.weight_decay=0.3"), last, force=True
        )
        text = "\n".join(trainer.run.notes)
        assert "warning: --force overrides: training.learning_rate is 0.001 there and 0.5 here" in text
        assert "warning: --force overrides: training.weight_decay is 0.01 there and 0.3 here" in text
        fresh = Trainer.from_config(make_config("training.learning_rate=0.5", "training.weight_decay=0.3"))
        fresh.run.train_step.optimizer.step()
        fresh.run.train_step.schedule.step()
        found, expected = trainer.run.train_step.optimizer.param_groups, fresh.run.train_step.optimizer.param_groups
        assert [(g["lr"], g["weight_decay"]) for g in found] == [(g["lr"], g["weight_decay"]) for g in expected]
        assert trainer.run.train_step.optimizer.state_dict()["state"]

    @pytest.mark.parametrize(
        ("setting", "code", "fact"),
        [
            ("lora.method=lora", "resume.other-run", "lora.method "),
            ("lora.method=none", "resume.other-run", "lora.method "),
            ("lora.rank=2", "checkpoint.other-weights", "q_proj.lora_A"),
            ("lora.experts=4", "checkpoint.other-weights", "q_proj.gate"),
        ],
    )
    def test_other_weights_cannot_be_forced(self, make_config, last, setting, code, fact):
        with refuses(code, fact):
            Trainer.from_config(make_config(setting), last, force=True)

    def test_other_scores_choose_the_best_anew(self, make_config, first, last):
        config = make_config("evaluation.prompt=box", f"output_dir={first.folder}")
        shutil.copytree(first.folder, first.folder.with_name("kept"))
        trainer = Trainer.from_config(config, last)
        assert trainer.state.best_score == -float("inf")
        text = "\n".join(trainer.run.notes)
        assert "the best is chosen again: evaluation.prompt is mask there and box here" in text


class TestFinding:
    def test_nothing(self, tmp_path):
        assert find_checkpoint(tmp_path / "checkpoints") is None

    def test_the_newest(self, last, tmp_path):
        for name in ("best.pt", "epoch_001.pt", "epoch_010.pt", "previous.pt", "last.pt"):
            shutil.copy(last, tmp_path / name)
            found = find_checkpoint(tmp_path)
            assert found is not None
            assert (found[0].name, found[2]) == (name, [])

    def test_damaged_ones_are_passed_over_and_told(self, last, tmp_path):
        shutil.copy(last, tmp_path / "best.pt")
        (tmp_path / "last.pt").write_bytes(last.read_bytes()[:-100])
        (tmp_path / "previous.pt").write_bytes(b"")
        found = find_checkpoint(tmp_path)
        assert found is not None
        assert found[0].name == "best.pt"
        assert [message.split(":")[0] for message in found[2]] == [f"{tmp_path}/last.pt", f"{tmp_path}/previous.pt"]

    def test_none_that_is_intact(self, tmp_path):
        (tmp_path / "last.pt").write_bytes(b"garbage")
        with refuses("resume.damaged", "last.pt"):
            find_checkpoint(tmp_path)

    def test_a_flipped_bit_of_a_weight_is_damage(self, last, tmp_path):
        """Torch itself does not look at the checksums."""
        content = bytearray(last.read_bytes())
        largest = max(torch.load(last, weights_only=True)["weights"].values(), key=torch.numel)
        content[content.index(largest.numpy().tobytes()) + 5] ^= 4
        (tmp_path / "last.pt").write_bytes(content)
        with refuses("resume.damaged", "last.pt", " checksum "):
            find_checkpoint(tmp_path)
        torch.load(tmp_path / "last.pt", weights_only=True)
