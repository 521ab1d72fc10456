"""Bad numbers stop a run or cost it a step, as the config says, and are named; a run that learns nothing says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.clips import ClipBatch
from src.lora.injection import routed_layers
from src.tasks.tracking.task import TrackingTask
from src.train.safety import check_loss_plateau, check_unused_datasets, dead_experts
from src.train.trainer import Trainer
from tests.errors import refuses
from tests.train.recording import Recorded
from tests.train.steps import read_steps

QUICK = ("training.max_steps=3", "training.monitor_clips=0", "training.domain_gate=false")


class Seen(Recorded):
    """A recorded trainer; ``before`` is called before each step with it."""

    def __init__(self, config, before=lambda trainer: None) -> None:
        super().__init__(config, before=before)

    @property
    def windows(self) -> list[list[ClipBatch]]:
        return self.recorder.micro_batches

    @property
    def lines(self) -> list[dict]:
        return read_steps(self.folder)


@pytest.fixture
def bad_losses(monkeypatch):
    """``bad_losses(2)``: the second call gives a loss that is NaN."""

    def poison(*calls: int) -> None:
        original, count = TrackingTask.losses, iter(range(1, 99))

        def poisoned(*arguments):
            losses = original(*arguments)
            return {**losses, "total": losses["total"] * math.nan} if next(count) in calls else losses

        monkeypatch.setattr(TrackingTask, "losses", poisoned)

    return poison


class TestStop:
    def test_a_gradient_is_named_with_its_parameter_and_clips(self, make_config):
        def infinite(trainer: Seen) -> None:
            if trainer.state.step == 1:
                name, parameter = next((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad)
                trainer.bad = name
                parameter.register_hook(lambda gradient: gradient + math.inf)

        trainer = Seen(make_config(*QUICK), infinite)
        with refuses("training.not-finite", " gradient ", " step 2 ") as caught:
            trainer.fit()
        message = str(caught.value)
        assert f" {trainer.bad} " in message
        assert all(name in message for name in trainer.windows[1][0].names)
        assert "\n" not in message
        assert len(trainer.lines) == 1

    def test_a_layer_that_gives_nan_is_named(self, make_config):
        trainer = Seen(make_config(*QUICK))
        trainer.model.sam_mask_decoder.conv_s0.register_forward_hook(lambda layer, inputs, output: output * math.nan)
        with refuses("training.not-finite", " sam_mask_decoder.conv_s0"):
            trainer.fit()

    def test_the_batch_is_written_down(self, make_config, bad_losses):
        trainer = Seen(make_config(*QUICK))
        bad_losses(2)
        with refuses("training.not-finite", f" {trainer.folder}/bad_batch_2"):
            trainer.fit()
        (batch,) = trainer.windows[1]
        folder = trainer.folder / "bad_batch_2"
        with np.load(folder / "batch_0.npz") as found:
            assert tuple(found["names"]) == batch.names
            assert np.array_equal(found["frames_BTHWC"], batch.frames_BTHWC)
            assert np.array_equal(found["masks_TOHW"], batch.masks_TOHW)
            assert np.array_equal(found["video_of_object"], batch.video_of_object)
        clips, frames, height, width = batch.frames_BTHWC.shape[:4]
        with Image.open(folder / "sheet.png") as sheet:
            assert sheet.width == frames * width
            assert sheet.height > clips * height
        again = ClipBatch.collate(batch.clips())
        assert all(np.array_equal(getattr(again, name), getattr(batch, name)) for name in vars(batch))


class TestSkip:
    def test_a_step_is_left_out_and_the_run_goes_on(self, make_config, bad_losses):
        kept = []
        trainer = Seen(
            make_config(*QUICK, "training.on_non_finite=skip"),
            lambda trainer: kept.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]),
        )
        bad_losses(2)
        trainer.fit()
        assert ["total" in line for line in trainer.lines] == [True, False, True]
        assert not all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(kept[1], kept[2], strict=True))
        (entry,) = trainer.state.history
        assert entry["total"] == pytest.approx((trainer.lines[0]["total"] + trainer.lines[2]["total"]) / 2)
        assert f"warning: step skipped: the loss is nan at step 2 on {trainer.windows[1][0].names[0]}" in trainer.text
        assert trainer.state.skipped == 0

    def test_too_many_in_a_row_stop_the_run(self, make_config, bad_losses):
        trainer = Seen(make_config(*QUICK, "training.on_non_finite=skip", "training.max_skips=2"))
        bad_losses(1, 3, 5)  # each is tried once more, to find the layer
        with refuses("training.not-finite", " step 3 ", "training.max_skips is 2"):
            trainer.fit()

    def test_weights_that_are_bad_are_named(self, make_config):
        def poison(trainer: Seen) -> None:
            with torch.no_grad():
                name, parameter = next((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad)
                trainer.bad = name
                parameter.fill_(math.nan)

        trainer = Seen(make_config(*QUICK), poison)
        with refuses("training.not-finite", " weights ") as caught:
            trainer.fit()
        assert trainer.bad in str(caught.value)


class TestFloat16:
    """What overflows there is skipped with a smaller scale, whatever ``on_non_finite`` says; here it is ``stop``."""

    HALF = (
        "training.use_amp=true",
        "training.amp_dtype=float16",
        "training.monitor_clips=0",
        "training.domain_gate=false",
    )

    @staticmethod
    def overflow(trainer: Seen) -> None:
        """In step 2 only."""
        parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
        if trainer.state.step == 1:
            trainer.hook = parameter.register_hook(lambda gradient: gradient + math.inf)
        elif trainer.state.step == 2:
            trainer.hook.remove()

    def test_an_overflow_costs_a_step_and_is_no_bad_batch(self, make_config):
        kept = []

        def before(trainer: Seen) -> None:
            self.overflow(trainer)
            kept.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])

        trainer = Seen(make_config(*self.HALF, "training.max_epochs=1"), before)
        scale = trainer.run.train_step.scaler.get_scale()
        trainer.fit()
        assert ["total" in line for line in trainer.lines] == [True, False, True]
        assert trainer.run.train_step.scaler.get_scale() == scale / 2
        assert not all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(kept[1], kept[2], strict=True))
        planned = [trainer.config.training.learning_rate * share for share in (1, 0.75, 0.25)]  # too few for a warm-up
        assert [line["learning_rate"] for line in trainer.lines] == pytest.approx(planned), "a rate for every step"
        assert f"step skipped: float16 overflowed at step 2; the scale of its loss is now {scale / 2:g}" in trainer.text
        assert "; 1 of 3 steps skipped" in trainer.text
        assert not list(trainer.folder.glob("bad_batch_*"))

    def test_a_loss_that_is_nan_still_stops_the_run(self, make_config, bad_losses):
        trainer = Seen(make_config(*self.HALF, "training.max_epochs=1"))
        bad_losses(2)
        with refuses("training.not-finite", " loss ", " nan ", " step 2 "):
            trainer.fit()

    def test_overflows_without_end_stop_the_run(self, make_config):
        trainer = Seen(make_config(*self.HALF, "training.max_skips=1"))
        next(p for p in trainer.model.parameters() if p.requires_grad).register_hook(
            lambda gradient: gradient + math.inf
        )
        with refuses("training.not-finite", " gradient ", " step 2 ", "/bad_batch_2", "training.max_skips"):
            trainer.fit()

    def test_a_resumed_run_has_the_scale_of_the_one_before(self, make_config, tmp_path):
        whole = Seen(make_config(*self.HALF, f"output_dir={tmp_path / 'whole'}"), self.overflow)
        whole.fit()
        Seen(make_config(*self.HALF, "training.max_steps=2"), self.overflow).fit()
        again = Trainer.from_config(make_config(*self.HALF), "auto")
        assert again.run.train_step.scaler.get_scale() == whole.run.train_step.scaler.get_scale() == 2**15
        again.fit()
        assert again.run.train_step.scaler.state_dict() == whole.run.train_step.scaler.state_dict()
        assert (again.folder / "steps.jsonl").read_text() == (whole.folder / "steps.jsonl").read_text()


class TestWarnings:
    def test_an_expert_that_is_never_chosen(self, make_config):
        trainer = Seen(make_config(*QUICK))
        name, layer = next(iter(routed_layers(trainer.model).items()))
        with torch.no_grad():
            layer.gate.bias[1] = -1e4
        trainer.fit()
        (line,) = [line for line in trainer.text.splitlines() if "never chosen" in line]
        assert "warning: epoch 1: experts were never chosen in " in line
        assert f" of 16 layers: {name} (expert 1)" in line

    def test_a_null_expert_may_rest(self):
        assert dead_experts({"layer": torch.tensor([1.0, 2.0, 0.0])}, 2) is None
        assert dead_experts({}, 2) is None

    def test_a_set_without_clips(self):
        assert check_unused_datasets([], {"a": 1}) is None
        assert check_unused_datasets(["a", "b"], {"a": 1, "b": 2}) is None
        assert "no clip of b was trained on" in (check_unused_datasets(["a", "b"], {"a": 1}) or "")

    @pytest.mark.parametrize(
        ("losses", "told"),
        [([4, 4, 4], True), ([4, 4.1, 3.99], True), ([4, 4, 3.9], False), ([4, 3, 4], False), ([4, 4], False),
         ([4, 4, 4, 4], False)],
    )  # fmt: skip
    def test_a_loss_that_does_not_move_is_told_once(self, losses, told):
        assert (check_loss_plateau([{"total": value} for value in losses]) is not None) == told

    def test_it_is_told_by_a_run(self, make_config, monkeypatch):
        monkeypatch.setattr("src.train.safety.LEAST_MOVE", 0.9)
        settings = ["training.max_epochs=3", "training.validate_every_epochs=3", "training.batch_size=4"]
        trainer = Seen(make_config(*settings, "training.monitor_clips=0", "training.domain_gate=false"))
        trainer.fit()
        assert "warning: epoch 3: after 3 epochs the loss is" in trainer.text
