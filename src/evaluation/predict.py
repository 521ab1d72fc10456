"""Run SAM 2's stock video predictor on a record: prompt each object where it first appears, track it to the end."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from src.config import Prompt
from src.data.masks import bounding_box, centre_point
from src.data.records import RLE, ObjectTrack, VideoRecord
from src.model.segmenter import as_video_predictor, normalise


@contextlib.contextmanager
def predicting(model: SAM2Base) -> Iterator[SAM2VideoPredictor]:
    """The model as a stock video predictor for a while; its train or eval mode comes back afterwards."""
    was_training = model.training
    try:
        yield as_video_predictor(model)
    finally:
        # the predictor works in inference mode, and autograd may not keep tensors that were made there
        for module in model.modules():
            if isinstance(module, PositionEmbeddingSine):
                module.cache.clear()
        model.train(was_training)


@torch.inference_mode()
def init_state(predictor: SAM2VideoPredictor, frames: list[np.ndarray]) -> dict[str, Any]:
    """What ``SAM2VideoPredictor.init_state`` makes from a folder of JPEG files, made from frames in memory.

    Args:
        predictor: a stock predictor.
        frames: RGB uint8 (H, W, 3), all of one size.
    """
    height, width = frames[0].shape[:2]
    size = (predictor.image_size, predictor.image_size)
    resized = np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
    state: dict[str, Any] = {
        "images": normalise(torch.from_numpy(resized)).to(predictor.device),
        "num_frames": len(frames),
        "offload_video_to_cpu": False,
        "offload_state_to_cpu": False,
        "video_height": height,
        "video_width": width,
        "device": predictor.device,
        "storage_device": predictor.device,
        "obj_id_to_idx": OrderedDict(),
        "obj_idx_to_id": OrderedDict(),
        "obj_ids": [],
    }
    for name in (
        "point_inputs_per_obj", "mask_inputs_per_obj", "cached_features", "constants", "output_dict_per_obj",
        "temp_output_dict_per_obj", "frames_tracked_per_obj",
    ):  # fmt: skip
        state[name] = {}
    predictor._get_image_feature(state, frame_idx=0, batch_size=1)
    return state


def first_frame(video: VideoRecord, object_id: int) -> int:
    """The frame an object is first seen on, which is where it is prompted."""
    track = next(o for o in video.objects if o.object_id == object_id)
    return next(t for t, segmentation in enumerate(track.segmentations) if segmentation is not None)


def track(predictor: SAM2VideoPredictor, video: VideoRecord, prompt: Prompt) -> dict[int, list[RLE]]:
    """Prompt every object of a video from its true mask and track it.

    Args:
        predictor: a stock predictor, with or without adapters in it.
        video: every object of it is seen on some frame.
        prompt: the true mask, its tight box, or one click at its centre, on the first frame that shows the object.

    Returns:
        Object id → predicted masks, one a frame, at the video's own size; empty before the prompted frame.
    """
    state = init_state(predictor, [source.read() for source in video.frames])
    nothing = RLE.encode(np.zeros((video.height, video.width), bool))
    start_of = {obj.object_id: first_frame(video, obj.object_id) for obj in video.objects}
    found = {object_id: [nothing] * start for object_id, start in start_of.items()}
    # objects do not affect each other, and a frame before the prompt has no memory to track by
    for start in sorted(set(start_of.values())):
        predictor.reset_state(state)
        for obj in video.objects:
            if start_of[obj.object_id] == start:
                _prompt(predictor, state, start, obj, prompt)
        with _no_progress_bar():
            for _, object_ids, logits_O1HW in predictor.propagate_in_video(state, start_frame_idx=start):
                for object_id, mask in zip(object_ids, (logits_O1HW[:, 0] > 0).cpu().numpy(), strict=True):
                    found[object_id].append(RLE.encode(mask))
    return found


def _prompt(predictor: SAM2VideoPredictor, state: dict[str, Any], t: int, obj: ObjectTrack, prompt: Prompt) -> None:
    segmentation = obj.segmentations[t]
    assert segmentation is not None
    mask = segmentation.decode()
    if prompt == "mask":
        predictor.add_new_mask(state, t, obj.object_id, torch.from_numpy(mask))
    elif prompt == "box":
        predictor.add_new_points_or_box(state, t, obj.object_id, box=np.array(bounding_box(mask), np.float32))
    else:
        point = np.array([centre_point(mask)], np.float32)
        predictor.add_new_points_or_box(state, t, obj.object_id, points=point, labels=np.array([1], np.int32))


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence the bar that the stock predictor draws for every video."""
    from sam2 import sam2_video_predictor

    original = sam2_video_predictor.tqdm
    sam2_video_predictor.tqdm = lambda iterable, **_: iterable
    try:
        yield
    finally:
        sam2_video_predictor.tqdm = original
