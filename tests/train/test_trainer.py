"""The loop: a resumed run is the same run, accumulation is a mean, and what cannot work is said before it is tried."""

from __future__ import annotations

import io
import json
import logging
import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from tqdm import tqdm

from src.config import load_config
from src.core.console import show_messages
from src.core.device import pick_device
from src.core.shutdown import SIGNALS
from src.data.clips import ClipBatch
from src.gating.domain_gate import DomainGate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import read_adapter_config
from src.models.sam2.build import build_model
from src.train.callbacks import Callback
from src.train.callbacks.advice import no_better_than_the_base
from src.train.setup import build_run
from src.train.trainer import Trainer
from tests.errors import refuses
from tests.train.recording import Recorded

# the same loss for the same batch, whatever was drawn before
FIXED = ("training.prompts={mask: 1, box: 0, point: 0}", "dataset.clip.frames=2")


def untouched(folder: Path) -> bool:
    """Whether no run was begun in a folder: it holds at most the report on the data."""
    return not folder.exists() or [path.name for path in folder.iterdir()] == ["data_checks"]


def checkpoint_path(trainer: Trainer, name: str = "last.pt") -> Path:
    return trainer.folder / "checkpoints" / name


def checkpoint(trainer: Trainer, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(checkpoint_path(trainer, name), weights_only=True)


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{place}.{i}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


def gradients(trainer: Trainer, window: list[ClipBatch]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What one step hands to the optimizer, and its losses."""
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    step = trainer.run.train_step
    step.optimizer.register_step_pre_hook(keep)
    return found, step(window, 0).losses


def windows(trainer: Trainer, count: int) -> list[ClipBatch]:
    batches = iter(trainer.run.loader)
    return [next(batches) for _ in range(count)]


@pytest.fixture(scope="module")
def finished(tiny_yaml, tmp_path_factory) -> tuple[Recorded, Path]:
    """A whole run of two epochs, of three steps each, and the checkpoint that ``fit`` returns."""
    folder = tmp_path_factory.mktemp("run")
    settings = [f"output_dir={folder}", "training.save_every.epochs=1", "training.learning_rate=1e-2"]
    trainer = Recorded(load_config(tiny_yaml, settings))
    best = trainer.fit()
    assert best is not None
    return trainer, best


DISTILLED = ["training.distill.weight=1", "training.distill.clips=6", "training.distill.batch_size=1"]


class TestResume:
    @pytest.mark.parametrize(
        "settings",
        [
            # 5 clips: batches of 2, 2, 1, in windows of 2 and a short one of 1, so that 2 steps are an epoch
            ["training.batch_size=2", "training.gradient_accumulation_steps=2"],
            # 5 batches in windows of 2, 2 and a short one of 1: step 2 is within an epoch, step 4 in the next
            ["training.batch_size=1", "training.gradient_accumulation_steps=2"],
            ["training.batch_size=2", "lora.dropout=0.2", "lora.router.null_expert=true"],
            ["training.batch_size=2", "lora.method=lora", "lora.dropout=0.2"],
            ["training.batch_size=2", "lora.method=full", "training.use_amp=true"],
            ["training.batch_size=2", "lora.dropout=0.1", *DISTILLED],
            ["training.batch_size=2", "lora.method=full", *DISTILLED, "training.distill.every=2"],
        ],
        ids=[
            "at the end of an epoch",
            "within an epoch",
            "random numbers",
            "lora",
            "full",
            "distilled",
            "taught by a copy, every second step",
        ],
    )
    def test_four_steps_are_two_and_a_resume_and_two(self, make_config, tmp_path, settings):
        settings = [*settings, "training.max_epochs=4", "training.warmup_steps=1", "training.learning_rate=1e-2"]
        whole = Recorded(make_config(*settings, "training.max_steps=4", f"output_dir={tmp_path / 'whole'}"))
        whole.fit()
        parts = [*settings, f"output_dir={tmp_path / 'parts'}"]
        first = Recorded(make_config(*parts, "training.max_steps=2"))
        first.fit()
        half = checkpoint(first)
        assert half["progress"]["step"] == 2
        # a process of its own would begin with other random numbers
        torch.manual_seed(99)
        second = Recorded(make_config(*parts, "training.max_steps=4"), tmp_path / "parts/checkpoints/last.pt")
        second.fit()
        assert len(whole.losses) == 4
        assert first.losses + second.losses == whole.losses
        assert first.names + second.names == whole.names
        found, expected = checkpoint(second), checkpoint(whole)
        for part in ("weights", "optimizer", "schedule", "scaler"):
            assert_same(found[part], expected[part], part)
        for key in ("step", "epoch", "clips"):
            assert found["progress"][key] == expected["progress"][key]
        assert not all(torch.equal(half["weights"][name], tensor) for name, tensor in expected["weights"].items())
        for trainer in (whole, second):  # what is in the file is what is in the model
            for name, tensor in trainer.model.state_dict().items():
                assert name not in expected["weights"] or torch.equal(tensor, expected["weights"][name])

    def test_it_keeps_what_was_known(self, make_config):
        first = Recorded(make_config("training.max_epochs=1"))
        first.fit()
        second = Recorded(make_config("training.max_epochs=2"), checkpoint_path(first), force=True)
        second.fit()
        assert second.state.base_score == first.state.base_score
        assert second.state.best_score >= first.state.best_score
        assert [entry["epoch"] for entry in second.state.history] == [1, 2]
        assert second.state.run_name == first.state.run_name
        assert not (second.folder / "earlier").exists()
        assert "going on from" in (second.folder / "logs/training.log").read_text()

    def test_from_best_too(self, make_config):
        first = Recorded(make_config("training.max_epochs=1"))
        second = Recorded(make_config("training.max_epochs=2"), first.fit(), force=True)
        second.fit()
        assert second.state.step == 6

    def test_with_other_batches_it_goes_on_with_the_clips_that_are_left(self, make_config):
        first = Recorded(make_config("training.batch_size=1", "training.max_steps=4"))
        first.fit()
        config = make_config("training.batch_size=4", "training.max_epochs=3")
        second = Recorded(config, checkpoint_path(first), force=True)
        second.fit()
        assert second.state.step == 6
        assert [len(names) for names in second.names] == [1, 4]

    def test_on_another_base_is_refused(self, make_config, tmp_path):
        first = Recorded(make_config("training.max_steps=1"))
        best = first.fit()
        torch.manual_seed(77)
        config = make_config(f"output_dir={tmp_path / 'other'}", f"model.checkpoint={tmp_path / 'b.safetensors'}")
        other = build_model(config.model.model_copy(update={"checkpoint": None}))
        save_file(other.state_dict(), tmp_path / "b.safetensors")
        with refuses("resume.other-run", first.run.base_fingerprint[:12]):
            Trainer.from_config(config, best)
        assert untouched(tmp_path / "other")

    @pytest.mark.parametrize(
        ("setting", "facts"),
        [
            ("lora.rank=2", ["lora.rank", " 4 ", " 2 "]),
            ("lora.method=lora", ["lora.method", " mope ", " lora "]),
            ("lora.method=none", ["lora.method", " mope ", " none "]),
            ("lora.alpha=1", ["lora.alpha", " 8.0 ", " 1.0 "]),
            ("lora.target_modules=[q_proj]", ["lora.target_modules"]),
        ],
    )
    def test_with_other_adapters_is_refused(self, finished, make_config, setting, facts):
        config = make_config(setting)
        with refuses("resume.other-run", *facts):
            Trainer.from_config(config, finished[1])
        assert untouched(Path(config.output_dir))


def test_the_bar_shows_no_score_before_there_is_one(make_config, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("src.train.callbacks.progress.progress_bar", partial(tqdm, file=shown, mininterval=0))
    Trainer.from_config(make_config("training.max_steps=1", "training.domain_gate=false")).fit()
    assert "J=not yet validated" in shown.getvalue()
    assert "inf" not in shown.getvalue()


def test_a_callers_signal_handlers_are_left_alone(make_config):
    """The library installs none; commands do."""
    seen = []

    class Look(Callback):
        def on_step_end(self, trainer, report):
            seen.append([signal.getsignal(number) for number in SIGNALS])

    def mine(*_: Any) -> None:
        pass

    before = [signal.signal(number, mine) for number in SIGNALS]
    try:
        settings = ("training.max_steps=1", "training.domain_gate=false")
        Trainer.from_config(make_config(*settings), callbacks=[Look()]).fit()
        after = [signal.getsignal(number) for number in SIGNALS]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    assert [*seen, after] == [[mine] * len(SIGNALS)] * 2


class TestAccumulation:
    @pytest.mark.parametrize("length", [2, 3])
    def test_a_window_is_the_mean_of_its_batches(self, make_config, length):
        settings = [*FIXED, "training.batch_size=1", "training.max_grad_norm=null"]

        def trainer() -> Trainer:
            return Trainer.from_config(make_config(*settings, f"training.gradient_accumulation_steps={length}"))

        window = windows(trainer(), length)
        found, losses = gradients(trainer(), window)
        single = [gradients(trainer(), [batch]) for batch in window]
        assert len({losses["total"] for _, losses in single}) == length
        assert losses["total"] == pytest.approx(sum(one["total"] for _, one in single) / length, rel=1e-6)
        for name, gradient in found.items():
            mean = sum(gradients[name] for gradients, _ in single) / length
            assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-7), name

    def test_the_last_window_of_an_epoch_is_short(self, make_config):
        settings = ["training.batch_size=1", "training.gradient_accumulation_steps=3", "training.max_epochs=1"]
        trainer = Recorded(make_config(*settings))
        assert trainer.run.steps_per_epoch == trainer.run.last_step == 2
        trainer.fit()
        assert [len(names) for names in trainer.names] == [3, 2]

    def test_every_clip_comes_once_an_epoch(self, finished):
        names = [name for step in finished[0].names for name in step]
        assert len(names) == 10
        assert len(set(names[:5])) == len(set(names[5:])) == 5
        assert names[:5] != names[5:]

    def test_gradients_are_clipped(self, make_config):
        free, _ = gradients(
            trainer := Trainer.from_config(make_config(*FIXED, "training.max_grad_norm=null")), windows(trainer, 1)
        )
        trainer = Trainer.from_config(make_config(*FIXED, "training.max_grad_norm=1e-3"))
        clipped, losses = gradients(trainer, windows(trainer, 1))
        norm = torch.stack([g.norm() for g in free.values()]).norm().item()
        assert losses["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert torch.stack([g.norm() for g in clipped.values()]).norm().item() == pytest.approx(1e-3, rel=1e-3)


class TestErrors:
    def test_a_loss_that_is_not_finite_stops_the_run(self, make_config):
        trainer = Recorded(make_config(), poisoned=5)
        # older versions of torch have attention that hides it from the loss
        with refuses("training.not-finite", " step 5 ", " cells_") as caught:
            trainer.fit()
        assert all(name in str(caught.value) for name in trainer.names[-1])
        saved = checkpoint(trainer)
        assert saved["progress"]["step"] == 3
        assert all(tensor.isfinite().all() for tensor in saved["weights"].values())

    def test_one_frame_cannot_train_memory_attention(self, make_config):
        config = make_config("dataset.clip.frames=1")
        with refuses("adapters.one-frame", "dataset.clip.frames", " 1"):
            Trainer.from_config(config)
        assert untouched(Path(config.output_dir))

    def test_one_frame_can_train_the_decoder(self, make_config):
        trainer = Recorded(
            make_config(
                "dataset.clip.frames=1", "lora.target_modules=[sam_mask_decoder.*.q_proj]", "training.max_steps=1"
            )
        )
        trainer.fit()
        assert trainer.state.step == 1

    def test_a_file_that_is_lost_while_training_is_named(self, make_config, tmp_path, tiny_data):
        import shutil

        copy = tmp_path / "train"
        shutil.copytree(tiny_data / "train", copy)
        trainer = Trainer.from_config(
            make_config(f"dataset.train_img_folder={copy}", f"dataset.train_ann_file={copy}/_annotations.coco.json")
        )
        lost = next(copy.glob("*.jpg"))
        lost.unlink()
        with refuses("data.changed", lost.name):
            trainer.fit()

    @pytest.mark.parametrize(
        ("setting", "code", "fact"),
        [
            ("training.device=cuda:99", "device.unusable", "training.device: 'cuda:99'"),
            ("training.device=toaster", "device.unusable", "training.device: 'toaster'"),
            ("lora.target_modules=[memory_attention.*.q_prj]", "targets.no-match", "'memory_attention.*.q_prj'"),
            ("lora.target_modules=[mask_downscaling]", "targets.no-match", "'mask_downscaling'"),
            ("model.checkpoint=nowhere.pt", "base.missing", "nowhere.pt"),
            ("dataset.val_ann_file=nowhere.json", "data.missing-annotations", "nowhere.json"),
        ],
    )
    def test_mistakes_are_found_before_anything_is_written(self, make_config, setting, code, fact):
        config = make_config(setting)
        with refuses(code, fact):
            Trainer.from_config(config)
        assert untouched(Path(config.output_dir))

    def test_adapters_that_take_no_part_are_told(self, make_config):
        """Clips of one frame and adapters in layers that only tracked frames use, by another name than memory_*."""
        trainer = Trainer.from_config(
            make_config("dataset.clip.frames=1", "lora.target_modules=[obj_ptr_tpos_proj, memory_attention.*.q_proj]")
        )
        with refuses("adapters.no-gradient", "lora.target_modules:"):
            trainer.fit()


class TestMethods:
    def trained(self, make_config, *settings: str) -> tuple[Recorded, set[str]]:
        trainer = Recorded(make_config("training.max_steps=2", "training.learning_rate=1e-2", *settings))
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.fit()
        return trainer, {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}

    @pytest.mark.parametrize("method", ["mope", "lora"])
    def test_adapters_train_and_the_base_does_not(self, make_config, method):
        trainer, changed = self.trained(make_config, f"lora.method={method}")
        own = {
            f"{layer}.{n}" for layer, a in iter_adapter_layers(trainer.model) for n, _ in a.named_adapter_parameters()
        }
        assert changed <= own
        assert {name for name in own if name.endswith("lora_B")} <= changed
        assert checkpoint(trainer)["weights"].keys() == own
        assert read_adapter_config(trainer.folder / "adapter").lora == trainer.config.lora
        assert ("balance" in trainer.losses[0]) == (method == "mope")

    def test_full_trains_the_whole_model(self, make_config):
        trainer, changed = self.trained(make_config, "lora.method=full")
        assert any(name.startswith("image_encoder.trunk") for name in changed)
        assert any(name.startswith("memory_attention") for name in changed)
        assert checkpoint(trainer)["weights"].keys() == trainer.model.state_dict().keys()
        assert not (trainer.folder / "adapter").exists()

    def test_none_trains_nothing(self, make_config):
        trainer, changed = self.trained(make_config, "lora.method=none")
        assert changed == set()
        assert trainer.losses == []
        assert not (trainer.folder / "checkpoints").exists()

    def test_it_learns(self, make_config):
        """On one batch, over and over, the loss falls."""
        trainer = Recorded(make_config(*FIXED, "lora.method=full", "training.warmup_steps=0"))
        batch = windows(trainer, 1)
        losses = [trainer.run.train_step(batch, 0).losses["total"] for _ in range(5)]
        assert losses[-1] < 0.8 * losses[0]

    def test_bfloat16_on_the_cpu(self, make_config):
        plain = Trainer.from_config(make_config(*FIXED))
        mixed = Trainer.from_config(make_config(*FIXED, "training.use_amp=true"))
        kinds = set()
        mixed.model.memory_attention.layers[0].linear1.register_forward_hook(lambda m, x, y: kinds.add(y.dtype))
        _, expected = gradients(plain, windows(plain, 1))
        found_gradients, found = gradients(mixed, windows(mixed, 1))
        assert kinds == {torch.bfloat16}
        assert found["total"] != expected["total"]
        assert found["total"] == pytest.approx(expected["total"], rel=0.02)
        assert not mixed.run.train_step.scaler.is_enabled()
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found_gradients.values())

    def test_auto_is_full_precision_on_the_cpu(self, make_config):
        trainer = Trainer.from_config(make_config("training.use_amp=auto"))
        with trainer.run.precision.training():
            assert not torch.is_autocast_enabled("cpu")

    @pytest.mark.parametrize("method", ["mope", "full"])
    def test_activation_checkpointing_changes_no_number(self, make_config, method):
        results = []
        for setting in ("false", "true"):
            trainer = Trainer.from_config(
                make_config(*FIXED, f"lora.method={method}", f"training.activation_checkpointing={setting}")
            )
            results.append(gradients(trainer, windows(trainer, 1)))
        (expected, expected_losses), (found, found_losses) = results
        assert found_losses == expected_losses
        assert_same(found, expected)

    def test_activation_checkpointing_runs_blocks_again(self, make_config):
        trainer = Trainer.from_config(make_config(*FIXED, "lora.method=full", "training.activation_checkpointing=true"))
        calls = {"trunk": 0, "attention": 0}

        def count(module: nn.Module, name: str) -> None:
            module.register_forward_pre_hook(lambda *_: calls.__setitem__(name, calls[name] + 1))

        count(trainer.model.image_encoder.trunk.blocks[0].mlp, "trunk")
        count(trainer.model.memory_attention.layers[0].self_attn, "attention")
        gradients(trainer, windows(trainer, 1))
        assert calls == {"trunk": 2, "attention": 2}


class TestOneRun:
    def test_the_best_checkpoint_is_returned(self, finished):
        trainer, best = finished
        assert best == trainer.folder / "checkpoints/best.pt"
        assert {p.name for p in best.parent.iterdir()} == {
            "best.pt", "last.pt", "previous.pt", "epoch_001.pt", "epoch_002.pt",
        }  # fmt: skip

    def test_checkpoints_are_of_their_step(self, finished):
        trainer, _ = finished
        steps = {
            name: checkpoint(trainer, name)["progress"]["step"] for name in ("epoch_001.pt", "epoch_002.pt", "last.pt")
        }
        assert steps == {"epoch_001.pt": 3, "epoch_002.pt": 6, "last.pt": 6}

    def test_best_is_of_the_best_validation(self, finished):
        trainer, _ = finished
        scores = {entry["step"]: entry["val_J"] for entry in trainer.state.history}
        progress = checkpoint(trainer, "best.pt")["progress"]
        assert progress["best_score"] == scores[progress["step"]] == max(scores.values()) == trainer.state.best_score

    def test_the_config_can_be_run_again(self, finished):
        trainer, _ = finished
        assert load_config(trainer.folder / "config.yaml") == trainer.config

    def test_a_domain_gate_lies_beside_the_adapter(self, finished):
        trainer, _ = finished
        gate = DomainGate.load(trainer.folder / "adapter", trainer.run.base_fingerprint)
        assert list(gate.domains) == ["target"]

    def test_metrics(self, finished):
        trainer, _ = finished
        metrics = json.loads((trainer.folder / "metrics.json").read_text())
        assert metrics.keys() == {"base_J", "best_J", "adapter_scale", "epochs"}
        assert [entry["epoch"] for entry in metrics["epochs"]] == [1, 2]
        names = {"total", "mask", "dice", "iou", "occlusion", "balance", "router_z", "grad_norm"}
        scores = {"val_J", "val_F", "val_J&F", "val_mIoU", "val_Dice"}
        scores |= {f"val_{measure}_{statistic}" for measure in "JF" for statistic in ("recall", "decay")}
        assert all(entry.keys() == {"epoch", "step"} | names | scores for entry in metrics["epochs"])
        mean = sum(losses["total"] for losses in trainer.losses[3:]) / 3
        assert metrics["epochs"][1]["total"] == pytest.approx(mean)

    def test_tensorboard(self, finished):
        trainer, _ = finished
        (run,) = [p for p in (trainer.folder / "logs").iterdir() if p.is_dir()]
        assert run.name == trainer.state.run_name
        events = EventAccumulator(str(run), {"scalars": 0})
        events.Reload()
        logged = events.Scalars("loss/total")
        assert [event.step for event in logged] == [1, 2, 3, 4, 5, 6]
        assert [event.value for event in logged] == pytest.approx([losses["total"] for losses in trainer.losses])
        assert all(0 <= event.value < 1 for event in events.Scalars("step/waiting_for_data"))
        rates = [event.value for event in events.Scalars("step/learning_rate")]
        assert rates == pytest.approx(
            [0.005, *(0.01 * 0.5 * (1 + math.cos(math.pi * k / 5)) for k in range(5))], rel=1e-5
        )

    def test_the_log_is_for_people(self, finished):
        trainer, _ = finished
        text = (trainer.folder / "logs/training.log").read_text()
        for line in (
            "target, train: 5 images",
            "target, valid: 2 images",
            "parameters train",
            "base, before training: J",
            "done: best J",
        ):
            assert line in text
        assert text.count("epoch 2, step 6: ") == 2
        assert text.count("of it waiting for data)") == 2

    def test_a_new_run_moves_the_old_one_aside_when_it_begins_to_train(self, make_config):
        first = Recorded(make_config("training.max_steps=1"))
        best = first.fit()
        kept = best.read_bytes()
        (first.folder / "notes.txt").write_text("mine")
        before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
        second = Recorded(make_config("training.max_steps=1", "lora.rank=2"))
        assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before, "building writes nothing"
        second.fit()
        (aside,) = (second.folder / "earlier").iterdir()
        assert (aside / "checkpoints/best.pt").read_bytes() == kept
        assert {p.name for p in aside.iterdir()} == {
            "checkpoints", "adapter", "config.yaml", "metrics.json", "run.json", "steps.jsonl",
        }  # fmt: skip
        assert (second.folder / "notes.txt").read_text() == "mine"
        assert f"an earlier run was moved to {aside}" in second.text

    def test_the_log_is_whole_where_the_program_shows_no_messages(self, make_config):
        """``training.log`` does not depend on the level of the package's logger."""
        show_messages(quiet=True)
        trainer = Recorded(make_config("training.max_steps=1", "training.domain_gate=false"))
        trainer.fit()
        assert "done: best J" in trainer.text
        assert not logging.getLogger("src.train").handlers

    def test_means_of_an_epoch_are_over_the_steps_that_had_a_loss(self, make_config):
        trainer = Recorded(
            make_config("training.batch_size=1", "training.max_steps=3", *DISTILLED, "training.distill.every=2")
        )
        trainer.fit()
        steps = [json.loads(line) for line in (trainer.folder / "steps.jsonl").read_text().splitlines()]
        assert ["distill_mask" in step for step in steps] == [True, False, True]
        (entry,) = trainer.state.history
        assert entry["distill_mask"] == pytest.approx((steps[0]["distill_mask"] + steps[2]["distill_mask"]) / 2)
        assert entry["total"] == pytest.approx(sum(step["total"] for step in steps) / 3)


class TestSchedule:
    def test_early_stopping(self, make_config):
        """So small a learning rate changes no mask: the first validation is the best, and one more ends it."""
        trainer = Recorded(
            make_config("training.learning_rate=1e-12", "training.early_stopping_patience=1", "training.max_epochs=9")
        )
        trainer.fit()
        assert trainer.state.epoch == 2
        told = (trainer.folder / "logs/training.log").read_text()
        assert "stopping early: J has not got better for 1 validations" in told
        assert told.count("the best so far") == told.count("the best so far, but no better than the base") == 1
        assert f"use the base itself; {trainer.folder / 'adapter'} holds what came closest" in told
        assert "Try training.prompts.mask=1 and the others 0" in told

    @pytest.mark.parametrize(
        ("since_best", "advice"), [(0, "max_epochs above 3"), (2, "learning_rate=0.0005, half")], ids=["rising", "not"]
    )
    def test_what_is_advised_where_prompts_are_as_in_evaluation(self, make_config, since_best, advice):
        trainer = Recorded(make_config(FIXED[0], "training.max_epochs=3", "training.learning_rate=1e-3"))
        trainer.state.base_score, trainer.state.best_score, trainer.state.since_best = 0.5, 0.4, since_best
        assert advice in no_better_than_the_base(trainer)

    def test_validation_every_so_many_epochs_and_at_the_end(self, make_config):
        trainer = Recorded(make_config("training.max_epochs=3", "training.validate_every_epochs=2"))
        trainer.fit()
        assert ["val_J" in entry for entry in trainer.state.history] == [False, True, True]

    def test_the_rate_warms_up_for_a_tenth_at_most_and_ends_at_its_floor(self, make_config):
        settings = ["training.warmup_steps=50", "training.learning_rate=1e-2", "training.min_learning_rate=1e-3"]
        trainer = Recorded(make_config(*settings, "training.max_epochs=7"))
        assert any("warm-up takes 2 of the run's 21 steps" in note for note in trainer.run.notes)
        rates = []
        for _ in range(22):
            rates.append(trainer.run.train_step.optimizer.param_groups[0]["lr"])
            trainer.run.train_step.optimizer.step()
            trainer.run.train_step.schedule.step()
        cosine = [1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * k / 19)) for k in range(20)]
        assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3, *cosine])

    def test_biases_are_not_decayed(self, make_config):
        trainer = Trainer.from_config(make_config("training.weight_decay=0.3"))
        decay = {
            p: group["weight_decay"] for group in trainer.run.train_step.optimizer.param_groups for p in group["params"]
        }
        trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert len(decay) == len(trained)
        assert all(decay[p] == (0.3 if p.ndim > 1 else 0.0) for p in trained.values())
        assert {name.rpartition(".")[2] for name, p in trained.items() if decay[p] == 0} == {"bias"}


def test_the_device_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_few_images_still_make_an_epoch_of_256_clips(make_config):
    trainer = Trainer.from_config(make_config("training.clips_per_epoch=null"))
    assert 256 <= trainer.run.sampler.length < 256 + 5
    assert Trainer.from_config(make_config("training.clips_per_epoch=3x")).run.sampler.length == 15


def test_objects_too_small_for_the_model_are_warned_about(make_config, monkeypatch):
    def notes() -> str:
        return "\n".join(build_run(make_config("training.clips_per_epoch=1x")).notes)

    assert "too small" not in notes()
    monkeypatch.setattr("src.tasks.tracking.data.SMALL_OBJECT", 60)
    assert "model.image_size 128 or more" in notes()


def test_epoch_files_do_not_wait_for_validations(make_config):
    run = Trainer.from_config(
        make_config("training.max_epochs=4", "training.validate_every_epochs=2", "training.save_every.epochs=3")
    )
    run.fit()
    assert [path.name for path in sorted((run.folder / "checkpoints").glob("epoch_*"))] == ["epoch_003.pt"]


class TestSeveralSets:
    """A run that learns two domains: each is validated, and their mean decides."""

    @pytest.fixture(scope="class")
    def several(self, tiny_yaml, tiny_data, tmp_path_factory) -> Recorded:
        valid = f"{tiny_data}/valid"
        places = {
            f"{split}_{key}": value
            for split in ("train", "val")
            for key, value in (("img_folder", valid), ("ann_file", f"{valid}/_annotations.coco.json"))
        }
        more = json.dumps([{"name": "other", "weight": 0.75, **places}])
        settings = [
            f"output_dir={tmp_path_factory.mktemp('several')}",
            f"dataset.more={more}",
            "training.monitor_clips=1",
        ]
        trainer = Recorded(load_config(tiny_yaml, settings))
        trainer.fit()
        return trainer

    def test_every_step_names_the_sets_of_its_clips(self, several):
        epochs = [
            [name.split("/")[0] for step in steps for name in step] for steps in (several.names[:4], several.names[4:])
        ]
        assert epochs[0].count("target") == epochs[1].count("target") == 4
        assert epochs[0].count("other") == epochs[1].count("other") == 3

    def test_each_set_is_scored_and_the_mean_decides(self, several):
        for entry in several.state.history:
            assert entry["val_J"] == pytest.approx((entry["val_target/J"] + entry["val_other/J"]) / 2)
            assert entry["val_Dice"] == pytest.approx((entry["val_target/Dice"] + entry["val_other/Dice"]) / 2)
        assert several.state.best_score == max(entry["val_J"] for entry in several.state.history)

    def test_all_of_it_is_logged(self, several):
        (run,) = [p for p in (several.folder / "logs").iterdir() if p.is_dir()]
        events = EventAccumulator(str(run), {"scalars": 0, "images": 0})
        events.Reload()
        for tag in ("validation/J", "validation/target/J", "validation/other/J", "validation/other/J_base"):
            assert [event.step for event in events.Scalars(tag)] == [0, 4, 8]
        overlays = [tag.split("/") for tag in events.Tags()["images"] if tag.startswith("overlays/")]
        assert {learned for _, learned, *_ in overlays} == {"target", "other"}
        text = (several.folder / "logs/training.log").read_text()
        for line in (
            "target, train: 5 images or videos; 4 of 7 clips",
            "other, train: 2 images or videos; 3 of 7 clips",
        ):
            assert line in text
        assert "; target 0." in text

    def test_it_resumes_exactly(self, several, tiny_yaml, tmp_path):
        config = several.config.model_copy(update={"output_dir": str(tmp_path / "again")})
        half = config.model_copy(update={"training": config.training.model_copy(update={"max_steps": 3})})
        first = Recorded(half)
        first.fit()
        second = Recorded(config, checkpoint_path(first))
        second.fit()
        assert first.names + second.names == several.names
        assert first.losses + second.losses == several.losses
