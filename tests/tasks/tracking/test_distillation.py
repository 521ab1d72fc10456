from __future__ import annotations

import numpy as np
import pytest
import torch

from src.config import ClipConfig, DistillConfig, LoraConfig, LossConfig, ModelConfig, PromptConfig
from src.data.clips import Clip, ClipBatch, sample_unlabelled
from src.data.synthetic import SOURCE, make_videos
from src.data.unlabelled import open_unlabelled
from src.data.writers import write_coco
from src.lora.adapter import iter_adapter_layers
from src.lora.injection import apply_method
from src.models.sam2.train_forward import Tracked, build_trainable, encode_frames, track_clips
from src.tasks.tracking.distillation import SelfDistillation, difference, general_clips, propose_masks
from tests.errors import refuses

SIZE, FRAMES = 64, 3


def new_model(method="mope", targets=("memory_attention.*.q_proj", "image_encoder.*.qkv")):
    torch.manual_seed(0)
    model = build_trainable(ModelConfig(image_size=SIZE), PromptConfig(), FRAMES)
    apply_method(model, LoraConfig(method=method, experts=3, target_modules=list(targets)))
    return model.train()


def distillation(model, **settings):
    config = DistillConfig(**{"weight": 2.0, "clips": 6, "batch_size": 2, **settings})
    data = make_videos(SOURCE, 6, 0, FRAMES, SIZE)
    return SelfDistillation(model, data, ClipConfig(frames=FRAMES), SIZE, config, LossConfig(), seed=0)


def disturb(model):
    with torch.no_grad():
        for _, adapter in iter_adapter_layers(model):
            for parameter in adapter.adapter_parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)


class TestSelfDistillation:
    def test_an_untrained_student_agrees_with_its_teacher(self):
        losses = distillation(new_model()).losses(0)
        assert losses.total.item() == pytest.approx(0, abs=1e-3)  # the teacher's answers are kept in half precision

    @pytest.mark.parametrize("features_weight", [0.0, 0.5])
    def test_a_student_that_moved_is_drawn_back(self, features_weight):
        model = new_model()
        taught = distillation(model, features_weight=features_weight)
        disturb(model)
        before = taught.losses(1)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            taught.losses(1).total.backward()
            optimizer.step()
        assert taught.losses(1).total < 0.9 * before.total
        assert ("features" in before.logged) == bool(features_weight)

    def test_the_teacher_is_the_base_though_the_student_moved(self):
        model = new_model()
        early = distillation(model)
        early.losses(0)
        disturb(model)
        late = distillation(model)
        late.losses(0)
        for index, target in early.targets.items():
            assert torch.equal(target.teacher_out.logits_TOhw, late.targets[index].teacher_out.logits_TOhw)

    def test_without_adapters_a_copy_teaches(self):
        model = new_model("full")
        taught = distillation(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.2)
        assert taught.losses(0).total > 0.01

    def test_the_same_step_asks_the_same_and_random_numbers_are_left_alone(self):
        model = new_model()
        first, second = distillation(model), distillation(model)
        disturb(model)
        state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
        expected = first.losses(3).total
        first.losses(4)
        assert torch.equal(expected, second.losses(3).total)
        assert torch.equal(expected, first.losses(3).total)
        assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numbers).all()
        assert model.training

    def test_frames_are_drawn_anew_where_keeping_them_takes_too_much(self, monkeypatch):
        model = new_model()
        kept, drawn = distillation(model), distillation(model)
        disturb(model)
        for step in (0, 1, 0):
            monkeypatch.setattr("src.tasks.tracking.distillation.CACHE_BYTES", 1000)
            expected = drawn.losses(step).total
            monkeypatch.undo()
            assert torch.equal(kept.losses(step).total, expected)
        assert all(target.frames_THWC is None for target in drawn.targets.values())
        assert all(target.frames_THWC is not None for target in kept.targets.values())

    def test_what_a_frozen_encoder_makes_of_a_clip_is_kept(self, monkeypatch):
        model = new_model(targets=["memory_attention.*.q_proj"])
        kept, made_anew, encoded = distillation(model), distillation(model), []
        disturb(model)
        monkeypatch.setattr("src.models.sam2.room.encode_frames", lambda *of: encoded.append(of) or encode_frames(*of))
        for step in (0, 1, 0, 1):
            monkeypatch.setattr("src.tasks.tracking.distillation.CACHE_BYTES", 1000)
            expected = made_anew.losses(step).total
            monkeypatch.setattr("src.tasks.tracking.distillation.CACHE_BYTES", 2**30)
            before = len(encoded)
            assert torch.equal(kept.losses(step).total, expected)
        assert before == len(encoded)
        assert all(target.frames_THWC is None for target in kept.targets.values())
        assert all(target.features is None for target in made_anew.targets.values())

    def test_kept_features_are_those_of_the_frames(self):
        model = new_model(targets=["memory_attention.*.q_proj"])
        frozen, encoding = distillation(model, batch_size=1), distillation(model, batch_size=1)
        encoding.frozen = False
        disturb(model)
        for step in (0, 1, 0):
            assert torch.equal(frozen.losses(step).total, encoding.losses(step).total)

    def test_each_clip_is_asked_about_once(self, monkeypatch):
        taught = distillation(new_model(), clips=3, batch_size=1)
        for step in range(12):
            taught.losses(step)
        assert len(taught.targets) == 3
        monkeypatch.setattr("src.tasks.tracking.distillation.propose_masks", None)
        for step in range(12):
            taught.losses(step)

    def test_every_third_step_is_taught_three_times_as_strongly(self):
        model = new_model()
        always, seldom = distillation(model), distillation(model, every=3)
        assert [step for step in range(7) if seldom.is_due(step)] == [0, 3, 6]
        assert all(always.is_due(step) for step in range(7))
        disturb(model)
        assert seldom.losses(3).total.item() == pytest.approx(3 * always.losses(3).total.item(), rel=1e-5)
        assert torch.equal(seldom.losses(3).logged["mask"], always.losses(3).logged["mask"])


class TestDifference:
    @staticmethod
    def tracked(logits, scores, features=None):
        return Tracked(torch.tensor(logits), torch.tensor(scores), features)

    def test_worked_by_hand(self):
        # one frame, one object, one pixel: student sure at 0.5, teacher at sigmoid(2)
        parts = difference(self.tracked([[[[0.0]]]], [[0.0]]), self.tracked([[[[2.0]]]], [[2.0]]))
        q = 1 / (1 + np.exp(-2))
        entropy = q * np.log(q / 0.5) + (1 - q) * np.log((1 - q) / 0.5)
        assert parts["mask"] == pytest.approx(entropy, rel=1e-5)
        assert parts["score"] == pytest.approx(entropy, rel=1e-5)
        assert parts["dice"] == pytest.approx(1 - (2 * 0.5 * q + 1) / (0.25 + q * q + 1), rel=1e-5)

    def test_it_is_summed_over_frames_and_averaged_over_objects(self):
        one = difference(self.tracked([[[[0.0]]]], [[0.0]]), self.tracked([[[[2.0]]]], [[2.0]]))
        many = difference(
            self.tracked([[[[0.0]]] * 2] * 3, [[0.0] * 2] * 3), self.tracked([[[[2.0]]] * 2] * 3, [[2.0] * 2] * 3)
        )
        assert {name: float(value) / 3 for name, value in many.items()} == pytest.approx(
            {name: float(value) for name, value in one.items()}
        )

    def test_an_object_taken_for_absent_gives_a_finite_loss(self):
        parts = difference(self.tracked([[[[-1024.0]]]], [[-50.0]]), self.tracked([[[[8.0]]]], [[9.0]]))
        assert all(torch.isfinite(value) for value in parts.values())


class TestTrackClips:
    @staticmethod
    def batch():
        video = make_videos(SOURCE, 1, 5, FRAMES, SIZE).videos[0]
        frames = np.stack([frame.read() for frame in video.frames])
        first = np.stack(list(video.masks(0).values()))
        masks = np.concatenate([first[None], np.zeros((FRAMES - 1, *first.shape), bool)])
        return ClipBatch.collate([Clip("a", frames, masks, np.arange(FRAMES) == 0)])

    @pytest.mark.parametrize(("prompt", "frames"), [("mask", FRAMES - 1), ("box", FRAMES), ("point", FRAMES)])
    def test_shapes(self, prompt, frames):
        batch = self.batch()
        tracked = track_clips(new_model().eval(), batch, prompt, keep_tracked=True)
        objects = batch.masks_TOHW.shape[1]
        assert tracked.logits_TOhw.shape == (frames, objects, SIZE // 4, SIZE // 4)
        assert tracked.scores_TO.shape == (frames, objects)
        assert tracked.features_TNOC is not None and tracked.features_TNOC.shape[0] == FRAMES - 1

    def test_only_the_first_frames_masks_count(self):
        batch = self.batch()
        model = new_model().eval()
        one = track_clips(model, batch, "mask").logits_TOhw
        batch.masks_TOHW[1:] = True
        assert torch.equal(one, track_clips(model, batch, "mask").logits_TOhw)


def test_things_found_are_different_and_within_the_picture():
    model = new_model().eval()
    picture = make_videos(SOURCE, 1, 3, 1, SIZE).videos[0].frames[0].read()
    masks = propose_masks(model, picture, 3, np.random.default_rng(0))
    assert masks.dtype == bool and masks.shape[1:] == (SIZE, SIZE)
    assert 1 <= len(masks) <= 3 and all(mask.any() for mask in masks)


class TestGeneralClips:
    def test_the_bundled_base_has_its_own(self, make_config):
        data = general_clips(make_config("training.distill.clips=4"))
        assert len(data) == 4 and len(data.videos[0]) == FRAMES

    def test_another_model_needs_a_folder(self, make_config):
        with refuses("distill.no-folder", "training.distill.folder"):
            general_clips(make_config("model.name=sam2.1_hiera_tiny"))

    def test_a_folder_of_images(self, tmp_path, make_config):
        write_coco(tmp_path / "general", make_videos(SOURCE, 2, 0, 1, 80))
        data = general_clips(make_config(f"training.distill.folder={tmp_path / 'general'}"))
        assert [video.height for video in data.videos] == [80, 80]
        frames = sample_unlabelled(data.videos[0], ClipConfig(frames=3), SIZE, np.random.default_rng(0))
        assert frames.shape == (3, SIZE, SIZE, 3) and frames.dtype == np.uint8

    def test_a_folder_without_images(self, tmp_path):
        with refuses("data.missing-folder", str(tmp_path / "none")):
            open_unlabelled(tmp_path / "none")
        with refuses("data.nothing-usable", str(tmp_path)):
            open_unlabelled(tmp_path)
