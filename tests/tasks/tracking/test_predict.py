"""Prediction is the stock predictor's, bit for bit, and leaves the model fit for further training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.modeling.position_encoding import PositionEmbeddingSine

from src.config import ClipConfig, LoraConfig, LossConfig, ModelConfig, PromptConfig
from src.data.clips import ClipBatch, sample_clip
from src.data.decode.masks import bounding_box, centre_point
from src.data.records import RLE, ArrayFrame, ObjectTrack, VideoRecord
from src.data.synthetic import SOURCE, make_video
from src.evaluation.protocol import first_frame
from src.lora.adapter import iter_adapter_layers
from src.lora.injection import apply_method
from src.models.sam2.build import build_model, config_overrides, sam2_config
from src.models.sam2.inference_state import forget_unreachable, new_state
from src.models.sam2.tracking import as_video_predictor, track_objects
from src.models.sam2.train_forward import build_loss, build_trainable, segmentation_losses
from src.tasks.tracking.predict import VideoFrames, _prompts, predicting, track
from tests.errors import refuses

SEED = 4  # of a video with several objects, all of them seen on the first frame


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """A folder of JPEG files that are not square, as the stock predictor takes it."""
    folder = tmp_path_factory.mktemp("frames")
    for t, frame in enumerate(make_video(SOURCE, SEED, 4, 80).frames):
        Image.fromarray(frame.read()[:60]).save(folder / f"{t}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def video(jpegs) -> VideoRecord:
    """The same frames as a record."""
    true = make_video(SOURCE, SEED, 4, 80)
    frames = [ArrayFrame(np.asarray(Image.open(jpegs / f"{t}.jpg").convert("RGB"))) for t in range(4)]
    objects = [
        ObjectTrack(o.object_id, [s and RLE.encode(s.decode()[:60]) for s in o.segmentations]) for o in true.objects
    ]
    assert len(objects) > 1
    return VideoRecord("v", 60, 80, list(frames), objects)


def stock_masks(predictor, folder, video: VideoRecord, prompt: str) -> dict[int, list[np.ndarray]]:
    """The flow of SAM 2's own notebook, from files on disk."""
    state = predictor.init_state(str(folder))
    for obj in video.objects:
        mask = obj.segmentations[0].decode()
        if prompt == "mask":
            predictor.add_new_mask(state, frame_idx=0, obj_id=obj.object_id, mask=torch.from_numpy(mask))
        else:
            given = {"box": np.array(bounding_box(mask), np.float32)} if prompt == "box" else {
                "points": np.array([centre_point(mask)], np.float32), "labels": np.array([1], np.int32),
            }  # fmt: skip
            predictor.add_new_points_or_box(state, frame_idx=0, obj_id=obj.object_id, **given)
    found: dict[int, list[np.ndarray]] = {obj.object_id: [] for obj in video.objects}
    for _, ids, logits in predictor.propagate_in_video(state):
        for row, i in enumerate(ids):
            found[i].append((logits[row, 0] > 0).numpy())
    return found


def assert_same_masks(found: dict[int, list[RLE]], expected: dict[int, list]) -> None:
    assert found.keys() == expected.keys()
    for i, masks in expected.items():
        assert len(masks) == len(found[i])
        for ours, theirs in zip(found[i], masks, strict=True):
            assert np.array_equal(ours.decode(), theirs.decode() if isinstance(theirs, RLE) else theirs)


def test_the_state_is_what_the_stock_predictor_makes_from_files(model, jpegs, video):
    with predicting(model) as predictor:
        ours = new_state(predictor, [frame.read() for frame in video.frames])
        theirs = predictor.init_state(str(jpegs))
    assert ours.keys() == theirs.keys()
    assert torch.equal(torch.stack(list(ours["images"])), theirs["images"])
    (ours_image, ours_features), (image, features) = ours["cached_features"].pop(0), theirs["cached_features"].pop(0)
    assert torch.equal(ours_image, image)
    assert torch.equal(ours_features["vision_features"], features["vision_features"])
    for key in ours.keys() - {"images"}:
        assert ours[key] == theirs[key], key
        assert type(ours[key]) is type(theirs[key]), key


@pytest.mark.parametrize("prompt", ["mask", "box", "point"])
def test_tracked_masks_are_the_stock_flows_bit_for_bit(model, jpegs, video, prompt):
    with predicting(model) as predictor:
        found = track(predictor, video, prompt)
        expected = stock_masks(predictor, jpegs, video, prompt)
    assert_same_masks(found, expected)
    assert any(mask.any() for masks in expected.values() for mask in masks[1:]), "nothing was tracked in this test"


def test_our_predictor_is_the_one_that_sam2_builds(model, jpegs, video):
    from sam2.build_sam import build_sam2_video_predictor

    stock = build_sam2_video_predictor(
        sam2_config("sam2_nano"), device="cpu", hydra_overrides_extra=config_overrides(ModelConfig(image_size=64))
    )
    stock.load_state_dict(model.state_dict())
    stock.fill_hole_area = 0  # filling needs the optional CUDA extension
    with predicting(model) as predictor:
        assert_same_masks(track(predictor, video, "point"), stock_masks(stock, jpegs, video, "point"))
        ours = {name: value for name, value in vars(predictor).items() if isinstance(value, (bool, int, float, str))}
    assert ours == {name: getattr(stock, name) for name in ours}


@pytest.mark.parametrize("method", ["mope", "lora"])
def test_new_adapters_change_no_bit(model, video, method):
    torch.manual_seed(0)
    adapted = build_model(ModelConfig(image_size=64))
    adapted.load_state_dict(model.state_dict())
    apply_method(adapted, LoraConfig(method=method, experts=3, target_modules=["all"]))
    with predicting(model) as base, predicting(adapted) as predictor:
        expected = track(base, video, "mask")
        assert_same_masks(track(predictor, video, "mask"), expected)
        for _, adapter in iter_adapter_layers(adapted):
            torch.nn.init.normal_(adapter.lora_B, std=3)
        found = track(predictor, video, "mask")
    assert any(found[i] != expected[i] for i in expected), "trained adapters take part"


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_every_module_comes_back(model, training):
    model.train(training)
    with predicting(model) as predictor:
        assert not any(module.training for module in predictor.modules())
    assert all(module.training is training for module in model.modules())
    with pytest.raises(RuntimeError, match="stop"), predicting(model):
        raise RuntimeError("stop")
    assert all(module.training is training for module in model.modules())


def test_training_goes_on_after_prediction(video):
    torch.manual_seed(0)
    model = build_trainable(ModelConfig(image_size=64), PromptConfig(), 3).train()
    model.requires_grad_(True)
    positions = [module for module in model.modules() if isinstance(module, PositionEmbeddingSine)]
    with predicting(model) as predictor:
        track(predictor, video, "mask")
    assert any(module.cache for module in positions)
    assert not any(t.is_inference() for module in positions for t in module.cache.values())
    still = make_video(SOURCE, SEED, 1, 64)
    batch = ClipBatch.collate([sample_clip(still, ClipConfig(frames=3), 64, 0, np.random.default_rng(0))])
    segmentation_losses(model, build_loss(LossConfig()), batch)["total"].backward()
    assert model.memory_attention.layers[0].linear1.weight.grad.any()
    assert not any(p.is_inference() for p in model.parameters())


def test_an_object_that_comes_in_late_is_tracked_from_there(model, video):
    first, second = video.objects[:2]
    late = ObjectTrack(9, [None, None, *first.segmentations[2:]])
    both = VideoRecord("v", video.height, video.width, video.frames, [late, second])
    # SAM 2 scales the time of object pointers by the length of the video: the part is made as long as the whole
    frames = [*video.frames[2:], video.frames[-1], video.frames[-1]]
    tail = VideoRecord("v", video.height, video.width, frames, [ObjectTrack(9, [*late.segmentations[2:], None, None])])
    alone = VideoRecord("v", video.height, video.width, video.frames, [second])
    assert (first_frame(both, 9), first_frame(both, second.object_id)) == (2, 0)
    with predicting(model) as predictor:
        found = track(predictor, both, "mask")
        assert_same_masks({9: found[9][2:]}, {9: track(predictor, tail, "mask")[9][:-2]})
        assert_same_masks({second.object_id: found[second.object_id]}, track(predictor, alone, "mask"))
    assert not any(mask.decode().any() for mask in found[9][:2])
    assert found[9][2].decode().any()


def test_tracking_leaves_no_progress_bar(model, video, capfd):
    from sam2 import sam2_video_predictor

    before = sam2_video_predictor.tqdm
    with predicting(model) as predictor:
        track(predictor, video, "mask")
    assert capfd.readouterr() == ("", "")
    assert sam2_video_predictor.tqdm is before


def test_as_video_predictor_keeps_weights_in_place(model):
    assert as_video_predictor(model).no_mem_embed is model.no_mem_embed


class TestPrompts:
    def test_the_centre_lies_deepest_inside(self):
        mask = np.zeros((20, 30), bool)
        mask[4:13, 10:19] = True
        assert centre_point(mask) == (14.0, 8.0)

    def test_the_centre_is_in_the_thick_part_and_on_the_object(self):
        mask = np.zeros((40, 40), bool)
        mask[5:16, 5:16] = True
        mask[9:12, 16:38] = True  # a thin tail moves the centroid, not the centre
        assert centre_point(mask) == (10.0, 10.0)
        ring = np.hypot(*(np.mgrid[:41, :41] - 20)) < 18
        ring &= np.hypot(*(np.mgrid[:41, :41] - 20)) > 10
        x, y = centre_point(ring)
        assert ring[int(y), int(x)]

    def test_the_border_of_the_picture_is_a_border(self):
        mask = np.zeros((9, 9), bool)
        mask[:, :5] = True
        x, _ = centre_point(mask)
        assert x == 2

    def test_one_pixel(self):
        mask = np.zeros((9, 9), bool)
        mask[3, 7] = True
        assert centre_point(mask) == (7.0, 3.0)
        assert bounding_box(mask) == (7.0, 3.0, 7.0, 3.0)

    def test_the_box_is_tight(self):
        mask = np.zeros((20, 30), bool)
        mask[4, 10] = mask[12, 25] = True
        assert bounding_box(mask) == (10.0, 4.0, 25.0, 12.0)


@dataclass
class Counted:
    """A frame that counts how often it is read."""

    frame: ArrayFrame
    name: str = "counted"
    stem: str = "00000"
    reads: int = 0

    def read(self) -> np.ndarray:
        self.reads += 1
        return self.frame.read()


class TestFramesAndMemory:
    def test_frames_are_read_as_they_come_whenever_objects_do(self, model, video):
        frames = [Counted(frame) for frame in video.frames]
        late = [
            replace(o, segmentations=[None] * t + list(o.segmentations[t:])) for t, o in enumerate(video.objects[:2])
        ]
        with predicting(model) as predictor:
            changed = replace(video, frames=frames, objects=late)
            tracking = track_objects(predictor, VideoFrames(changed), _prompts(changed, "mask"))
            next(tracking)
            assert [frame.reads > 0 for frame in frames] == [True, False, False, False]
            list(tracking)
        assert [frame.reads for frame in frames[1:]] == [1, 1, 1]

    def test_what_memory_attention_cannot_see_is_dropped_and_changes_no_mask(self, model):
        """Past 16 frames: as many object pointers, and 7 memories, are what it sees."""
        long = make_video(SOURCE, SEED, 24, 64)
        long = replace(long, objects=long.objects[:1])
        with predicting(model) as predictor:
            state = new_state(predictor, VideoFrames(long))
            mask = torch.from_numpy(long.masks(0)[long.objects[0].object_id])
            predictor.add_new_mask(state, 0, 1, mask)
            kept = [(logits[0, 0] > 0).numpy() for _, _, logits in predictor.propagate_in_video(state)]
            predictor.reset_state(state)
            predictor.add_new_mask(state, 0, 1, mask)
            found = []
            for t, _, logits in predictor.propagate_in_video(state):
                found.append((logits[0, 0] > 0).numpy())
                forget_unreachable(predictor, state, t + 1)
                assert len(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]) <= 16
            tracked = track(predictor, long, "mask")
        assert np.array_equal(found, kept)
        assert_same_masks(tracked, {long.objects[0].object_id: kept})
        assert any(mask.any() for mask in kept[17:])

    def test_a_frame_of_another_size_is_named(self, model, video):
        odd = ArrayFrame(np.zeros((60, 81, 3), np.uint8), "clip/0003.jpg")
        with predicting(model) as predictor, refuses("video.frame-size") as caught:
            track(predictor, replace(video, frames=[*video.frames[:3], odd]), "mask")
        assert str(caught.value) == (
            "clip/0003.jpg: the frame is 81×60 pixels, its video v 80×60; all frames of a video must be of one size"
        )

    def test_frames_behave_as_a_sequence(self, video):
        frames = VideoFrames(video)
        assert len(frames) == 4
        assert np.array_equal(frames[1:3], [video.frames[1].read(), video.frames[2].read()])
        assert len(list(frames)) == 4


def test_a_pixel_may_be_kept_to_one_object(model, video):
    with predicting(model) as predictor:
        free = track(predictor, video, "box")
        exclusive = track(predictor, video, "box", one_object_per_pixel=True)
    stacked = np.array([[mask.decode() for mask in masks] for masks in free.values()])
    held = np.array([[mask.decode() for mask in masks] for masks in exclusive.values()])
    assert (stacked.sum(axis=0) > 1).any(), "nothing overlaps in this test"
    assert held.sum(axis=0).max() == 1
    assert np.array_equal(held.any(axis=0), stacked.any(axis=0))
