"""The seam to SAM 2's training package: batches as its own collate makes them, its loss, its predictor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor
from training.loss_fns import CORE_LOSS_KEY, MultiStepMultiMasksAndIous
from training.model import sam2 as sam2_train
from training.model.sam2 import SAM2Train
from training.utils.data_utils import Frame, Object, VideoDatapoint, collate_fn

from src.config import ClipConfig, LoraConfig, LossConfig, ModelConfig, MotionConfig, PromptConfig
from src.data.clips import Clip, ClipBatch, sample_clip
from src.data.synthetic import CELLS, make_video
from src.lora.injection import apply_method
from src.models.sam2.pixels import FAMILY, normalise
from src.models.sam2.tracking import as_video_predictor
from src.models.sam2.train_forward import (
    BatchTotals,
    TrainableSAM2,
    build_loss,
    build_trainable,
    encode_frames,
    seed_draws,
    segmentation_losses,
    to_datapoint,
)

CPU = torch.device("cpu")
MODEL = ModelConfig(image_size=64)


def random_clip(objects: int, seed: int, frames: int = 3, side: int = 8) -> Clip:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    return Clip(f"clip{seed}", pixels, rng.random((frames, objects, side, side)) < 0.5, np.ones(frames, bool))


def still_batch(frames: int) -> ClipBatch:
    """Two clips of simulated motion, each from a still image."""
    config = ClipConfig(frames=frames, max_objects=2, motion=MotionConfig(occlusion=0))
    stills = [make_video(CELLS, seed, 1, 64) for seed in (0, 1)]
    return ClipBatch.collate([sample_clip(still, config, 64, 0, np.random.default_rng(0)) for still in stills])


def trainable(frames: int, prompts: PromptConfig | None = None):
    torch.manual_seed(0)
    return build_trainable(MODEL, prompts or PromptConfig(), frames).train()


class TestDatapoint:
    CLIPS = (random_clip(2, 0), random_clip(1, 1), random_clip(3, 2))

    def test_it_is_what_the_official_collate_makes_of_the_same_clips(self):
        videos, object_id = [], 0
        for video_id, clip in enumerate(self.CLIPS):
            ids = range(object_id, object_id + clip.masks_TOHW.shape[1])
            object_id = ids.stop
            frames = [
                Frame(
                    normalise(torch.from_numpy(clip.frames_THWC[t]), FAMILY),
                    [Object(i, t, torch.from_numpy(clip.masks_TOHW[t, row])) for row, i in enumerate(ids)],
                )
                for t in range(3)
            ]
            videos.append(VideoDatapoint(frames, video_id, (8, 8)))
        expected = collate_fn(videos, "clips")
        found = to_datapoint(ClipBatch.collate(list(self.CLIPS)), CPU, FAMILY)
        for name in ("img_batch", "obj_to_frame_idx", "masks"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), name
        for name in ("unique_objects_identifier", "frame_orig_size"):
            assert torch.equal(getattr(found.metadata, name), getattr(expected.metadata, name)), name
        assert (found.num_frames, found.num_videos) == (expected.num_frames, expected.num_videos) == (3, 3)
        assert torch.equal(found.flat_obj_to_img_idx, expected.flat_obj_to_img_idx)

    def test_each_object_sees_the_frames_of_its_own_clip(self):
        found = to_datapoint(ClipBatch.collate(list(self.CLIPS)), CPU, FAMILY)
        row = 0
        for clip in self.CLIPS:
            for object_masks_THW in clip.masks_TOHW.swapaxes(0, 1):
                for t in range(3):
                    picture = found.flat_img_batch[found.flat_obj_to_img_idx[t, row]]
                    assert torch.equal(picture, normalise(torch.from_numpy(clip.frames_THWC[t]), FAMILY))
                    assert np.array_equal(found.masks[t, row], object_masks_THW[t])
                row += 1
        assert found.masks.shape[1] == row == 6

    def test_pixels_are_normalised_as_imagenet(self):
        white = normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), FAMILY)
        assert white.shape == (1, 3, 2, 2)
        assert white[0, :, 0, 0].tolist() == pytest.approx(
            [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
        )


class TestPrompts:
    def test_shares_become_the_two_chances_of_sam2(self):
        model = trainable(4, PromptConfig(mask=0.4, box=0.45, point=0.15, correction_clicks=3))
        assert model.prob_to_use_pt_input_for_train == pytest.approx(0.6)
        assert model.prob_to_use_box_input_for_train == pytest.approx(0.75)
        assert model.num_correction_pt_per_frame == 3

    @pytest.mark.parametrize(
        ("mask", "box", "point"), [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.25, 0.25)]
    )
    def test_prompts_are_drawn_in_these_shares(self, mask, box, point):
        model = trainable(2, PromptConfig(mask=mask, box=box, point=point))
        data = to_datapoint(ClipBatch.collate([random_clip(1, 0, 2, 64)]), CPU, FAMILY)
        drawn = {"mask": 0, "box": 0, "point": 0}
        for _ in range(200):
            prompts = model.prepare_prompt_inputs({}, data)
            if not prompts["use_pt_input"]:
                assert prompts["mask_inputs_per_frame"].keys() == {0}
                drawn["mask"] += 1
            else:  # a box is two points with labels 2 and 3
                labels = prompts["point_inputs_per_frame"][0]["point_labels"]
                drawn["box" if labels.tolist() == [[2, 3]] else "point"] += 1
        for kind, share in (("mask", mask), ("box", box), ("point", point)):
            assert drawn[kind] / 200 == pytest.approx(share, abs=0.12 if 0 < share < 1 else 0)

    @pytest.mark.parametrize(("frames", "most"), [(1, 1), (2, 1), (3, 2), (8, 2)])
    def test_some_frame_is_left_to_memory(self, frames, most):
        model = trainable(frames)
        data = to_datapoint(ClipBatch.collate([random_clip(1, 0, frames, 64)]), CPU, FAMILY)
        counts = {len(model.prepare_prompt_inputs({}, data)["init_cond_frames"]) for _ in range(50)}
        assert counts == set(range(1, most + 1))


class TestLoss:
    def test_the_total_is_the_weighted_sum(self):
        weights = LossConfig(mask=7.0, dice=3.0, iou=0.5, occlusion=2.0)
        losses = segmentation_losses(trainable(3), build_loss(weights), still_batch(3))
        expected = 7 * losses["mask"] + 3 * losses["dice"] + 0.5 * losses["iou"] + 2 * losses["occlusion"]
        assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert losses["total"].requires_grad
        assert all(losses[name] > 0 and not losses[name].requires_grad for name in ("mask", "dice", "iou", "occlusion"))

    def test_without_segmentation_only_the_scores_count(self):
        losses = segmentation_losses(trainable(3), build_loss(LossConfig(), enable_segmentation=False), still_batch(3))
        assert losses["total"].item() == pytest.approx((losses["iou"] + losses["occlusion"]).item(), rel=1e-5)
        assert losses["mask"] > 0

    def test_it_sums_over_frames(self):
        """With nothing but the first frame's mask to go by, more frames are more loss, as in SAM 2's recipe."""
        loss, prompts = build_loss(LossConfig()), PromptConfig(mask=1, box=0, point=0)
        batch = still_batch(4)
        short = replace(
            batch,
            frames_BTHWC=batch.frames_BTHWC[:, :2],
            masks_TOHW=batch.masks_TOHW[:2],
            annotated_TO=batch.annotated_TO[:2],
        )
        two = segmentation_losses(trainable(2, prompts), loss, short)["total"]
        four = segmentation_losses(trainable(2, prompts), loss, batch)["total"]
        assert four > 1.3 * two


def predictions(frames: int, objects: int, side: int = 8) -> list[dict]:
    """What the model hands to the loss, made up: two steps on each frame, of three masks and of one."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    return [
        {
            "multistep_pred_multimasks_high_res": [leaf(objects, m, side, side) for m in (3, 1)],
            "multistep_pred_ious": [leaf(objects, m) for m in (3, 1)],
            "multistep_object_score_logits": [leaf(objects, 1) for _ in range(2)],
        }
        for _ in range(frames)
    ]


def rows(outs: list[dict], frames: list[int], objects: list[int]) -> list[dict]:
    return [{name: [step[objects] for step in steps] for name, steps in outs[t].items()} for t in frames]


@pytest.mark.parametrize("annotated", [[0, 1, 2, 3], [0, 2]], ids=["all annotated", "some annotated"])
def test_shares_of_parts_add_up_to_the_loss_of_the_whole(annotated):
    """Clips of one object, two and one, in parts of two clips and one: the same clicks, boxes and frames are drawn."""
    clips = [*still_batch(4).clips(), replace(still_batch(4).clips()[0], seed=7)]
    clips = [replace(clip, masks_TOHW=clip.masks_TOHW[:, : 1 + i % 2]) for i, clip in enumerate(clips)]
    clips[2] = replace(clips[2], annotated_T=np.isin(range(4), annotated))
    batch, model, loss = ClipBatch.collate(clips), trainable(4, PromptConfig(mask=0, box=0.5, point=0.5)), LossConfig()
    whole, parts = BatchTotals.from_batch(batch), [ClipBatch.collate(clips[:2]), ClipBatch.collate(clips[2:])]

    def losses(part, rank):
        seed_draws(model, rank, 0, 5)
        with torch.no_grad():
            return segmentation_losses(model, build_loss(loss), part, whole)

    expected, shares = losses(batch, 0), [losses(part, rank) for rank, part in enumerate(parts)]
    for name, value in expected.items():
        assert sum(share[name].item() for share in shares) == pytest.approx(value.item(), rel=1e-3), name


class TestAnnotatedFramesOnly:
    MASKS = torch.from_numpy(np.random.default_rng(1).random((4, 3, 8, 8)) < 0.3)

    @staticmethod
    def stock() -> MultiStepMultiMasksAndIous:
        loss = build_loss(LossConfig())
        loss.__class__ = MultiStepMultiMasksAndIous
        return loss

    def test_where_all_are_annotated_it_is_sam2s_loss(self):
        outs = predictions(4, 3)
        found = build_loss(LossConfig())(outs, self.MASKS, torch.ones(4, 3, dtype=torch.bool))
        expected = self.stock()(outs, self.MASKS)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_without_some_frames_it_is_the_loss_of_the_others(self):
        outs = predictions(4, 3)
        annotated = torch.tensor([True, False, True, False])[:, None].expand(4, 3)
        found = build_loss(LossConfig())(outs, self.MASKS, annotated)
        expected = self.stock()(rows(outs, [0, 2], [0, 1, 2]), self.MASKS[[0, 2]])
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_without_some_objects_it_is_the_loss_of_the_others(self):
        """A mean over three objects of which one counts is a third of the mean over that one."""
        outs = predictions(4, 3)
        annotated = torch.zeros(4, 3, dtype=torch.bool)
        annotated[:, 1] = True
        found = build_loss(LossConfig())(outs, self.MASKS, annotated)
        expected = self.stock()(rows(outs, [0, 1, 2, 3], [1]), self.MASKS[:, [1]])
        assert all(found[name].item() == pytest.approx(expected[name].item() / 3, rel=1e-5) for name in expected)

    def test_nothing_else_gets_a_gradient(self):
        outs = predictions(4, 3)
        annotated = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
        build_loss(LossConfig())(outs, self.MASKS, annotated)["core_loss"].backward()
        for t, frame in enumerate(outs):
            for steps in frame.values():
                for step in steps:
                    gradient_O = torch.zeros(3) if step.grad is None else step.grad.flatten(1).abs().amax(1)
                    assert not gradient_O[~annotated[t]].any()
            scores = frame["multistep_object_score_logits"][0]
            assert scores.grad is None or torch.equal(scores.grad[:, 0] != 0, annotated[t])

    def test_what_the_masks_of_other_frames_say_changes_nothing(self):
        model, loss = trainable(4, PromptConfig(mask=0, box=0.5, point=0.5)), build_loss(LossConfig())
        batch = still_batch(4)
        batch = replace(batch, annotated_TO=batch.annotated_TO.clone())
        batch.annotated_TO[1:3] = False
        other = replace(batch, masks_TOHW=batch.masks_TOHW.clone())
        other.masks_TOHW[1:3] = torch.rand(other.masks_TOHW[1:3].shape) < 0.5
        totals = []
        for each in (batch, other):
            model.rng = np.random.default_rng(0)
            torch.manual_seed(0)
            with torch.no_grad():
                totals.append(segmentation_losses(model, loss, each)["total"])
        assert torch.equal(*totals)

    def test_only_annotated_frames_are_prompted_and_corrected(self):
        model = trainable(6, PromptConfig(mask=0.3, box=0.3, point=0.4))
        data = to_datapoint(ClipBatch.collate([random_clip(2, 0, 6, 64)]), CPU, FAMILY)
        data.annotated_TO = torch.tensor([1, 0, 1, 0, 1, 1], dtype=torch.bool)[:, None].expand(6, 2)
        first, corrected = set(), set()
        for _ in range(60):
            prompts = model.prepare_prompt_inputs({}, data)
            assert prompts["num_frames"] == 6
            given = prompts["mask_inputs_per_frame"] | prompts["point_inputs_per_frame"]
            assert set(given) == set(prompts["init_cond_frames"])
            assert sorted(prompts["init_cond_frames"] + prompts["frames_not_in_init_cond"]) == list(range(6))
            for t, masks in prompts["mask_inputs_per_frame"].items():
                assert torch.equal(masks[:, 0], data.masks[t])
            for t in prompts["frames_to_add_correction_pt"]:
                assert torch.equal(prompts["gt_masks_per_frame"][t][:, 0], data.masks[t])
            first.update(prompts["init_cond_frames"])
            corrected.update(prompts["frames_to_add_correction_pt"])
        assert first == corrected == {0, 2, 4, 5}
        assert (model.num_init_cond_frames_for_train, model.num_frames_to_correct_for_train) == (2, 2)

    @pytest.mark.parametrize("annotated", [[0], [0, 3]])
    def test_an_annotated_frame_is_left_to_memory_and_prompts_keep_their_shares(self, annotated):
        model = trainable(4, PromptConfig(mask=0.5, box=0.5, point=0))
        data = to_datapoint(ClipBatch.collate([random_clip(1, 0, 4, 64)]), CPU, FAMILY)
        data.annotated_TO = torch.zeros(4, 1, dtype=torch.bool)
        data.annotated_TO[annotated] = True
        drawn = [model.prepare_prompt_inputs({}, data) for _ in range(100)]
        assert all(prompts["init_cond_frames"] == [0] for prompts in drawn)
        assert 30 < sum(bool(prompts["mask_inputs_per_frame"]) for prompts in drawn) < 70

    def test_prompts_are_those_of_sam2_where_all_are_annotated(self):
        ours, theirs = trainable(4), trainable(4)
        theirs.__class__ = SAM2Train
        data = to_datapoint(ClipBatch.collate([random_clip(2, 0, 4, 64)]), CPU, FAMILY)
        for seed in range(10):
            found = []
            for model in (ours, theirs):
                torch.manual_seed(seed)
                found.append(model.prepare_prompt_inputs({}, data))
            for name in ("init_cond_frames", "frames_to_add_correction_pt", "use_pt_input"):
                assert found[0][name] == found[1][name]

    def test_a_sparse_clip_reaches_memory_attention(self):
        model = trainable(4)
        adapters = apply_method(model, LoraConfig(experts=2, top_k=2))
        batch = still_batch(4)
        batch = replace(batch, annotated_TO=batch.annotated_TO.clone())
        batch.annotated_TO[1:3] = False
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            segmentation_losses(model, build_loss(LossConfig()), batch)["total"].backward()
            assert all(adapter.lora_B.grad.any() for adapter in adapters.values())


class TestVoid:
    """Void areas take no part in the loss."""

    def test_nothing_is_learned_of_what_is_predicted_there(self):
        outs, targets, void = predictions(2, 3), torch.rand(2, 3, 8, 8) < 0.5, torch.zeros(2, 3, 8, 8, dtype=torch.bool)
        void[1, 0, :, 4:] = True
        annotated = torch.ones(2, 3, dtype=torch.bool)
        loss = build_loss(LossConfig())(outs, targets, annotated, void_TOHW=void)[CORE_LOSS_KEY]
        loss.backward()
        first, second = (out["multistep_pred_multimasks_high_res"][1] for out in outs)
        assert not second.grad[0, :, :, 4:].any()
        assert second.grad[0, :, :, :4].any() and second.grad[1, :, :, 4:].any() and first.grad[0].any()
        others = [{name: [step.detach().clone() for step in steps] for name, steps in out.items()} for out in outs]
        for step in others[1]["multistep_pred_multimasks_high_res"]:
            step[0, :, :, 4:] *= -3
        truth = targets.clone()
        truth[1, 0, :, 4:] ^= True
        assert build_loss(LossConfig())(others, truth, annotated, void_TOHW=void)[CORE_LOSS_KEY] == loss

    def test_a_void_area_counts_as_one_that_is_rightly_background(self):
        outs, targets = predictions(1, 1), torch.rand(1, 1, 8, 8) < 0.5
        void = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        void[..., 4:] = True
        right = [{name: [step.detach().clone() for step in steps] for name, steps in outs[0].items()}]
        for step in right[0]["multistep_pred_multimasks_high_res"]:
            step[..., 4:] = -50
        annotated = torch.ones(1, 1, dtype=torch.bool)
        loss = build_loss(LossConfig())
        torch.testing.assert_close(
            loss(outs, targets, annotated, void_TOHW=void)[CORE_LOSS_KEY].detach(),
            loss(right, targets & ~void, annotated)[CORE_LOSS_KEY],
        )

    def test_no_click_corrects_what_is_predicted_there(self, monkeypatch):
        batch = still_batch(2)
        void = torch.zeros(2, 2, 64, 64, dtype=torch.bool)
        void[:, 0] = True  # all of the first clip's pixels but its objects'
        wrong: list[Tensor] = []
        own = sam2_train.get_next_point

        def get_next_point(gt_masks, pred_masks, method):
            if pred_masks is not None:
                wrong.append(pred_masks & ~gt_masks)
            return own(gt_masks, pred_masks, method)

        monkeypatch.setattr(sam2_train, "get_next_point", get_next_point)
        model = trainable(2, PromptConfig(mask=0, box=0, point=1, correction_clicks=2))
        model.prob_to_sample_from_gt_for_train = 0
        counts = []
        for areas in (None, void):
            seed_draws(model, 0, 0)
            wrong.clear()
            segmentation_losses(model, build_loss(LossConfig()), replace(batch, void_TBHW=areas))
            counts.append([mask.sum().item() for mask in wrong])
        objects = (batch.video_of_object == 0).sum()
        first = [c for i, c in enumerate(counts[1]) if i % len(batch.video_of_object) < objects]
        assert first and sum(first) == 0 and sum(counts[0]) > 0


class TestObjectsThatAppearLater:
    PROMPTS = PromptConfig(mask=0, box=1, point=0, correction_clicks=1)

    @pytest.fixture(scope="class")
    def batch(self) -> ClipBatch:
        """Two clips of three frames; in the second one object appears on the second frame."""
        one, two = still_batch(3).clips()
        masks = two.masks_TOHW.copy()
        masks[0, 1] = False
        return ClipBatch.collate([one, replace(two, masks_TOHW=masks, start_O=np.array([0, 1]))])

    def losses(self, batch: ClipBatch, totals: BatchTotals, features=None) -> dict[str, Tensor]:
        model = trainable(3, self.PROMPTS)
        seed_draws(model, 0, 5)
        return segmentation_losses(model, build_loss(LossConfig()), batch, totals, features)

    def test_their_loss_adds_to_that_of_the_others(self, batch):
        totals = BatchTotals.from_batch(batch)
        ((_, _, later),) = batch.prompted_later()
        whole, others = self.losses(batch, totals), self.losses(batch.prompted_first(), totals)
        model = trainable(3, self.PROMPTS)
        model.rng = np.random.default_rng(later.seeds)
        own = segmentation_losses(
            model, build_loss(LossConfig()), later, BatchTotals(totals.objects, torch.ones(2, dtype=torch.bool))
        )
        for name in ("mask", "dice", "iou", "occlusion"):
            assert own[name] > 0
            torch.testing.assert_close(whole[name], others[name] + own[name], rtol=1e-4, atol=1e-6)

    def test_each_is_prompted_on_the_frame_that_shows_it_first_and_tracked_after_it(self, batch, monkeypatch):
        seen: list[Tensor] = []
        own = sam2_train.sample_box_points
        monkeypatch.setattr(sam2_train, "sample_box_points", lambda masks: seen.append(masks) or own(masks))
        tracked: list[int] = []
        model = trainable(3, self.PROMPTS)
        step = model.track_step
        monkeypatch.setattr(model, "track_step", lambda **given: tracked.append(given["frame_idx"]) or step(**given))
        seed_draws(model, 0, 5)
        segmentation_losses(model, build_loss(LossConfig()), batch)
        assert all(masks.any() for masks in seen)
        assert torch.equal(seen[-1][0, 0], batch.masks_TOHW[1, -1])
        assert tracked[3:] == [0, 1]

    def test_cached_features_are_those_of_its_frames(self, batch):
        totals = BatchTotals.from_batch(batch)
        features = encode_frames(trainable(3), batch.frames_BTHWC.flatten(0, 1))
        found, expected = self.losses(batch, totals, features), self.losses(batch, totals)
        torch.testing.assert_close(found["total"], expected["total"], rtol=1e-4, atol=1e-5)

    def test_memory_attention_learns_from_an_object_of_two_frames(self):
        clip = random_clip(1, 0, frames=2, side=64)
        for seed in range(4):
            model = trainable(3)
            seed_draws(model, 0, seed)
            prepared = model.prepare_prompt_inputs({}, to_datapoint(ClipBatch.collate([clip]), CPU, FAMILY))
            assert prepared["init_cond_frames"] == [0] and prepared["frames_to_add_correction_pt"] in ([], [0])


class TestForward:
    """Beside stock SAM2Train: the same losses, for less."""

    FRAMES = 3

    @pytest.fixture
    def model(self) -> TrainableSAM2:
        return trainable(self.FRAMES, PromptConfig(mask=1, box=0, point=0)).eval()

    def total(self, model, batch: ClipBatch, features=None) -> Tensor:
        return segmentation_losses(model, build_loss(LossConfig()), batch, features=features)["total"]

    def test_features_that_are_known_take_the_place_of_pixels(self, model):
        batch = ClipBatch.collate(still_batch(self.FRAMES).clips()[:1])
        features = encode_frames(model, batch.frames_BTHWC[0])
        assert not any(level.requires_grad for level in features)
        bare = replace(batch, frames_BTHWC=batch.frames_BTHWC[..., :0])
        assert torch.equal(self.total(model, bare, features), self.total(model, batch))

    def test_frames_are_encoded_a_few_at_a_time_on_a_cpu(self, model, monkeypatch):
        frames_THWC, together = still_batch(5).frames_BTHWC[0], []
        model.image_encoder.register_forward_hook(lambda _, images, __: together.append(len(images[0])))
        expected = encode_frames(model, frames_THWC)
        monkeypatch.setattr("src.models.sam2.train_forward.PIXELS_AT_ONCE", 2 * 64**2)
        found = encode_frames(model, frames_THWC)
        assert together == [5, 2, 2, 1]
        for level, same in zip(found, expected, strict=True):
            torch.testing.assert_close(level, same, rtol=1e-5, atol=1e-5)

    def test_the_last_frame_is_not_put_into_memory(self, model):
        batch, encoded = still_batch(self.FRAMES), []
        model.memory_encoder.register_forward_hook(lambda *_: encoded.append(1))
        total = self.total(model, batch)
        assert len(encoded) == self.FRAMES - 1
        model.__class__ = SAM2Train
        assert torch.equal(self.total(model, batch), total)
        assert len(encoded) == self.FRAMES - 1 + self.FRAMES


class TestGradient:
    @pytest.mark.parametrize("method", ["mope", "lora"])
    @pytest.mark.parametrize("frames", [2, 3])
    @pytest.mark.parametrize(
        "prompts", [PromptConfig(mask=1, box=0, point=0), PromptConfig(mask=0, box=0.5, point=0.5)]
    )
    def test_a_clip_from_stills_reaches_every_adapter_of_memory_attention(self, method, frames, prompts):
        model = trainable(frames, prompts)
        adapters = apply_method(model, LoraConfig(method=method, experts=2, top_k=2))
        assert len(adapters) == 16
        batch = still_batch(frames)
        for _ in range(4 if frames == 2 else 1):  # whatever frames SAM 2 draws to prompt
            model.zero_grad(set_to_none=True)
            segmentation_losses(model, build_loss(LossConfig()), batch)["total"].backward()
            for name, adapter in adapters.items():
                assert adapter.lora_B.grad.any(), name
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)

    def test_a_single_frame_reaches_none(self):
        model = trainable(1)
        apply_method(model, LoraConfig(experts=2))
        assert not segmentation_losses(model, build_loss(LossConfig()), still_batch(1))["total"].requires_grad


class TestPredictor:
    def test_it_is_a_stock_predictor_on_the_same_weights(self):
        model = trainable(2)
        predictor = as_video_predictor(model)
        assert type(predictor) is SAM2VideoPredictor
        assert not predictor.training
        ours = dict(model.named_parameters())
        assert all(parameter is ours[name] for name, parameter in predictor.named_parameters())
        assert len(dict(predictor.named_parameters())) == len(ours)
        assert dict(predictor.named_buffers()).keys() == dict(model.named_buffers()).keys()

    def test_the_model_keeps_its_class_and_mode(self):
        model = trainable(2)
        kind = type(model)
        as_video_predictor(model)
        assert type(model) is kind
        assert model.training

    def test_adapters_put_in_later_show_in_both(self):
        model = trainable(2)
        predictor = as_video_predictor(model)
        adapters = apply_method(model, LoraConfig(experts=2))
        inside = set(predictor.modules())
        assert all(adapter in inside for adapter in adapters.values())
