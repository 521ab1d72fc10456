"""Run SAM 2's stock video predictor on a record: prompt each object where it first appears, track it to the end.

Frames are read when the predictor asks for them, and its state is held to what memory attention can still see: memory
does not grow with the length of a video, but for the encoded masks.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from ...config import Prompt
from ...core.errors import UserError
from ...data.decode.masks import bounding_box, centre_point
from ...data.records import RLE, ObjectTrack, VideoRecord
from ...evaluation.protocol import first_frame
from ...models.sam2.train_forward import as_video_predictor, normalise

AfterFrame = Callable[[int], None]


@contextlib.contextmanager
def predicting(model: SAM2Base) -> Iterator[SAM2VideoPredictor]:
    """The model as a stock video predictor for a while; its train or eval mode comes back afterwards."""
    was_training = model.training
    try:
        yield as_video_predictor(model)
    finally:
        model.train(was_training)


class VideoFrames(Sequence[np.ndarray]):
    """A video's frames, RGB uint8 (H, W, 3), each read when it is asked for, and none kept.

    Raises:
        UserError: when a frame is asked for that cannot be read, or is of another size than the video.
    """

    def __init__(self, video: VideoRecord) -> None:
        self.video = video

    def __len__(self) -> int:
        return len(self.video)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        source, size = self.video.frames[index], (self.video.height, self.video.width)
        frame = source.read()
        if frame.shape[:2] != size:
            height, width = frame.shape[:2]
            raise UserError(
                f"{source.name}: the frame is {width}×{height} pixels, its video {self.video.video_id} "
                f"{size[1]}×{size[0]}; all frames of a video must be of one size"
            )
        return frame


class ModelFrames:
    """Frames as SAM 2 sees them, float32 (3, S, S), resized and normalised when they are asked for.

    It stands in for the tensor of all frames in the predictor's state. The predictor itself keeps the last frame it
    encoded, so going through a video in order resizes every frame once.
    """

    def __init__(self, frames: Sequence[np.ndarray], image_size: int) -> None:
        self.frames, self.image_size = frames, image_size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, t: int) -> Tensor:
        resized = Image.fromarray(self.frames[t]).resize((self.image_size, self.image_size))
        return normalise(torch.from_numpy(np.array(resized)))


@torch.inference_mode()
def init_state(predictor: SAM2VideoPredictor, frames: Sequence[np.ndarray]) -> dict[str, Any]:
    """What ``SAM2VideoPredictor.init_state`` makes from a folder of JPEG files, made from frames given one at a time.

    Args:
        predictor: a stock predictor.
        frames: RGB uint8 (H, W, 3), all of one size, such as :class:`VideoFrames`.
    """
    height, width = frames[0].shape[:2]
    state: dict[str, Any] = {
        "images": ModelFrames(frames, predictor.image_size),
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


def track(
    predictor: SAM2VideoPredictor,
    video: VideoRecord,
    prompt: Prompt,
    one_object_per_pixel: bool = False,
    after_frame: AfterFrame | None = None,
) -> dict[int, list[RLE]]:
    """Prompt every object of a video from its true mask and track it.

    Args:
        predictor: a stock predictor, with or without adapters in it.
        video: every object of it is seen on some frame.
        prompt: the true mask, its tight box, or one click at its centre, on the first frame that shows the object.
        one_object_per_pixel: where predictions overlap, the pixel is the object's with the highest logit.
        after_frame: called with a frame's number when all that concerns it has been computed; frame 0 may come twice.

    Returns:
        Object id → predicted masks, one a frame, at the video's own size; empty before the prompted frame.

    Raises:
        UserError: a frame cannot be read, or is of another size than the video.
    """
    nothing = RLE.encode(np.zeros((video.height, video.width), bool))
    found = {obj.object_id: [nothing] * first_frame(video, obj.object_id) for obj in video.objects}
    for object_ids, logits_OHW in _tracked(predictor, video, prompt, after_frame):
        masks_OHW = logits_OHW > 0
        if one_object_per_pixel:
            winner_HW = logits_OHW.argmax(dim=0)
            masks_OHW &= winner_HW == torch.arange(len(object_ids), device=winner_HW.device)[:, None, None]
        for object_id, mask_HW in zip(object_ids, masks_OHW.cpu().numpy(), strict=True):
            found[object_id].append(RLE.encode(mask_HW))
    return found


def _tracked(
    predictor: SAM2VideoPredictor, video: VideoRecord, prompt: Prompt, after_frame: AfterFrame | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Frame by frame from the first prompt to the end: the objects prompted so far, and their mask logits (O, H, W)."""
    state = init_state(predictor, VideoFrames(video))
    if after_frame is not None:
        after_frame(0)  # its image is encoded, whichever frame is prompted first
    start_of = {obj.object_id: first_frame(video, obj.object_id) for obj in video.objects}
    starts = sorted(set(start_of.values()))
    # objects do not affect each other, and a frame before the prompt has no memory to track by
    for start, end in zip(starts, [*starts[1:], len(video)], strict=True):
        for obj in video.objects:
            if start_of[obj.object_id] == start:
                _prompt(predictor, state, start, obj, prompt)
        with _no_progress_bar():
            frames = predictor.propagate_in_video(state, start, max_frame_num_to_track=end - 1 - start)
            for t, object_ids, logits_O1HW in frames:
                if after_frame is not None:
                    after_frame(t)
                yield object_ids, logits_O1HW[:, 0]
                _forget(predictor, state, t)


def _forget(predictor: SAM2VideoPredictor, state: dict[str, Any], t: int) -> None:
    """Drop what was tracked on the frame that memory attention can no longer see from the one after ``t``."""
    memories = predictor.num_maskmem * predictor.memory_temporal_stride_for_eval
    oldest = t + 1 - max(memories, predictor.max_obj_ptrs_in_encoder)
    for outputs in state["output_dict_per_obj"].values():
        outputs["non_cond_frame_outputs"].pop(oldest - 1, None)


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
