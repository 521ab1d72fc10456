"""The two commands as a user meets them: a run from the YAML to the table, and mistakes in one clear line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.core.hub import check_card

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(run_script):
    """Run ``train.py`` or ``evaluate.py`` in this process: (exit status, standard output, standard error)."""

    def run(script: str, *arguments: str | Path) -> tuple[int, str, str]:
        return run_script(ROOT / script, *arguments)

    return run


@pytest.fixture
def refused(command, tiny_yaml, tmp_path):
    """What a command says to a mistake: status 2, ``error: …`` without a traceback, and no run begun."""

    def run(*settings: str, script: str = "train.py", arguments: tuple[str | Path, ...] = ()) -> str:
        output = tmp_path / "run"
        overrides = [part for setting in (f"output_dir={output}", *settings) for part in ("--set", setting)]
        status, _, errors = command(script, "--config", tiny_yaml, *overrides, *arguments)
        assert status == 2
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in errors
        assert not output.exists() or [path.name for path in output.iterdir()] == ["data_checks"]
        return errors[errors.index(line) :]

    return run


@pytest.fixture
def train_copy(tiny_data, tmp_path) -> tuple[Path, list[str]]:
    """A copy of the training images to damage, and the settings that use it."""
    folder = tmp_path / "images"
    shutil.copytree(tiny_data / "train", folder)
    settings = [f"dataset.train_img_folder={folder}", f"dataset.train_ann_file={folder}/_annotations.coco.json"]
    return folder, settings


class TestMistakes:
    @pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
    def test_a_misspelt_key(self, refused, script):
        message = refused("lora.rnak=3", script=script)
        assert "lora.rnak: unknown key; did you mean 'rank'?" in message
        assert len(message.splitlines()) == 2

    def test_targets_that_match_nothing(self, refused):
        message = refused("lora.target_modules=[memory_atention.*.q_proj]")
        assert "'memory_atention.*.q_proj' matches no layer" in message
        assert "memory_attention" in message, "near names are given"

    def test_a_missing_image(self, refused, train_copy):
        folder, settings = train_copy
        lost = next(folder.glob("*.jpg"))
        lost.unlink()
        message = refused(*settings)
        assert lost.name in message
        assert len(message.splitlines()) == 1

    def test_a_missing_image_that_is_left_out(self, command, tiny_yaml, train_copy, tmp_path):
        folder, settings = train_copy
        lost = next(folder.glob("*.jpg"))
        lost.unlink()
        settings = [f"output_dir={tmp_path / 'run'}", "lora.method=none", *settings]
        overrides = [part for setting in settings for part in ("--set", setting)]
        status, _, errors = command("train.py", "--config", tiny_yaml, "--skip-bad", *overrides)
        assert status == 0, errors
        ((issue,),) = json.loads((tmp_path / "run" / "skipped.json").read_text()).values()
        assert issue["file"] == str(lost)

    def test_a_broken_annotation_file(self, refused, train_copy):
        folder, settings = train_copy
        path = folder / "_annotations.coco.json"
        path.write_text(path.read_text()[:-20])
        message = refused(*settings)
        assert f"{path}: not valid JSON" in message
        assert len(message.splitlines()) == 1

    def test_a_wrong_checkpoint(self, refused, tmp_path):
        save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        message = refused(f"model.checkpoint={tmp_path / 'other.safetensors'}")
        assert "does not fit model.name sam2_nano" in message
        assert len(message.splitlines()) == 1

    def test_resuming_from_nothing(self, refused, tmp_path):
        message = refused(arguments=("--resume", tmp_path / "last.pt"))
        assert f"{tmp_path / 'last.pt'}: no such checkpoint" in message

    def test_evaluating_before_training(self, refused):
        assert "best.pt does not exist" in refused(script="evaluate.py")

    def test_a_test_split_that_is_not_there(self, refused):
        settings = ("dataset.test_img_folder=null", "lora.method=none")
        assert "test_img_folder" in refused(*settings, script="evaluate.py", arguments=("--split", "test"))

    def test_domains_to_keep_are_looked_at_before_training(self, refused, tmp_path):
        message = refused(f"evaluation.domains=[{{name: old, img_folder: {tmp_path / 'none'}}}]")
        assert message == f"error: {tmp_path / 'none'}: no such image folder\n"

    def test_no_config(self, command):
        status, _, errors = command("train.py")
        assert status == 2
        assert "--config" in errors

    def test_debug_shows_where(self, command, tiny_yaml):
        status, _, errors = command("train.py", "--config", tiny_yaml, "--set", "lora.rank=0", "--debug")
        assert status == 2
        assert "Traceback" in errors
        assert errors.splitlines()[-1].startswith("  lora.rank: ")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_ends_with_an_example(command, script):
    status, output, _ = command(script, "--help")
    assert status == 0
    assert f"{script.removesuffix('.py')} --config src/configs/mope.yaml" in output
    for option in ("--config", "--set", "--skip-bad", "--debug"):
        assert option in output


def test_a_mistake_in_a_process_of_its_own(tiny_yaml, tmp_path):
    output = tmp_path / "run"
    settings = ["--set", f"output_dir={output}", "--set", "trainin.x=1"]
    done = subprocess.run(
        [sys.executable, "train.py", "--config", tiny_yaml, *settings], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tiny_yaml}: 1 mistake",
        "  trainin: unknown key; did you mean 'training'?",
    ]
    assert not output.exists()


class TestARun:
    """Train, evaluate again, and resume: the commands of the README."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory) -> Path:
        return tmp_path_factory.mktemp("run") / "run"

    @pytest.fixture
    def settings(self, tiny_yaml, folder) -> list[str | Path]:
        return ["--config", tiny_yaml, "--set", f"output_dir={folder}"]

    def test_train(self, command, settings, folder):
        status, output, errors = command("train.py", *settings, "--set", "training.max_steps=3")
        assert status == 0, errors
        assert {p.name for p in folder.iterdir()} == {
            "adapter", "checkpoints", "config.yaml", "data_checks", "logs", "metrics.json", "overlays", "results.json",
            "results.md", "run.json", "steps.jsonl",
        }  # fmt: skip
        results = json.loads((folder / "results.json").read_text())
        assert results["domains"].keys() == {"target", "source"}
        for scores in results["domains"].values():
            assert {"base", "adapted", "videos", "objects", "intervals", "per_video"} <= scores.keys()
            assert {"J", "F", "J&F", "mIoU", "Dice"} <= scores["base"].keys() == scores["adapted"].keys()
            assert 0 <= scores["gated"]["known"] <= scores["videos"]
        assert "With the domain gate deciding" in output
        assert results["domains"]["target"]["videos"] == 2
        assert results["checkpoint"] == str(folder / "checkpoints/best.pt")
        # the table's base is the one that validation began with
        assert results["domains"]["target"]["base"]["J"] == json.loads((folder / "metrics.json").read_text())["base_J"]
        assert "change" in output
        (events,) = [path for path in (folder / "logs").iterdir() if path.is_dir()]
        board = EventAccumulator(str(events))
        board.Reload()
        assert board.Scalars("final/gain")[0].step == 4
        assert "results/text_summary" in board.Tags()["tensors"]
        check_card(folder / "adapter" / "README.md")  # its head, by the classes of huggingface_hub
        card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
        fingerprint = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_fingerprint"]
        head = yaml.safe_load(card.split("---\n")[1])
        (metrics,) = [result["metrics"] for result in head["model-index"][0]["results"]]
        assert metrics[0] == {"type": "J", "value": round(results["domains"]["target"]["adapted"]["J"], 4)}
        assert fingerprint in card
        assert "| target | 5 | 2 |" in card and "| not stated |" in card
        assert "- source: J " in card and "knows target" in card
        assert "false reject 0." in card and "false accept " in card

    def test_evaluate_says_the_same_again(self, command, settings, folder):
        before = json.loads((folder / "results.json").read_text())
        status, _, errors = command("evaluate.py", *settings)
        assert status == 0, errors
        assert json.loads((folder / "results.json").read_text()) == before

    def test_evaluate_an_adapter_folder_by_another_prompt_on_another_split(self, command, settings, folder, tmp_path):
        arguments = ["--checkpoint", folder / "adapter", "--prompt", "box", "--split", "test", "--clicks", "2"]
        arguments += ["--save-masks"]
        status, output, errors = command("evaluate.py", *settings, "--set", f"output_dir={tmp_path}", *arguments)
        assert status == 0, errors
        assert "prompted once by its true box" in output
        results = json.loads((tmp_path / "results.json").read_text())
        assert (results["prompt"], results["split"]) == ("box", "test")
        assert "2 clicks" in output
        assert all("images" in domain for domain in results["domains"].values())
        assert (tmp_path / "clicks.png").exists()
        assert {path.name for path in (tmp_path / "predictions").iterdir()} == {"base", "adapted"}
        assert {path.name for path in (tmp_path / "predictions" / "adapted").iterdir()} == {"target", "source"}

    def test_evaluate_by_another_protocol(self, command, settings, tmp_path):
        more = [f"output_dir={tmp_path}", "lora.method=none", "evaluation.protocol=davis", "evaluation.source_clips=0"]
        status, output, errors = command("evaluate.py", *settings, *(x for s in more for x in ("--set", s)))
        assert status == 0, errors
        assert "DAVIS' semi-supervised" in output
        assert json.loads((tmp_path / "results.json").read_text())["domains"]["target"]["protocol"] == "davis"

    def test_evaluate_the_base_alone_beside_a_further_domain(self, command, settings, tiny_data, tmp_path):
        train = tiny_data / "train"
        domain = f"[{{name: more, img_folder: {train}, ann_file: {train}/_annotations.coco.json}}]"
        more = [f"output_dir={tmp_path}", "lora.method=none", f"evaluation.domains={domain}", "evaluation.max_images=1"]
        status, output, errors = command("evaluate.py", *settings, *(x for s in more for x in ("--set", s)))
        assert status == 0, errors
        domains = json.loads((tmp_path / "results.json").read_text())["domains"]
        assert list(domains) == ["target", "source", "more"]
        assert [domain["videos"] for domain in domains.values()] == [1, 1, 1]
        assert "adapted" not in output

    def test_resume(self, command, settings, folder):
        status, _, errors = command("train.py", *settings, "--resume", folder / "checkpoints/last.pt")
        assert status == 0, errors
        metrics = json.loads((folder / "metrics.json").read_text())
        assert [epoch["step"] for epoch in metrics["epochs"]] == [3, 6]
        assert not (folder / "earlier").exists()
