"""Run a video predictor on a record: prompt each object where it first appears, track it to the end.

Frames are read when the predictor asks for them, and it keeps what it can still look back on: memory does not grow with
the length of a video, but for the encoded masks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import nn

from ...config import Prompt
from ...core.errors import UserError
from ...data.decode.masks import bounding_box, centre_point
from ...data.prompts import Prompt as ObjectPrompt
from ...data.records import RLE, ObjectTrack, VideoRecord
from ...evaluation.protocol import first_frame
from ...models.protocols import AfterFrame
from ...models.spec import spec_of


@contextlib.contextmanager
def predicting(model: nn.Module) -> Iterator[nn.Module]:
    """Use the model as a video predictor for a while; its train or eval mode comes back afterwards."""
    was_training = model.training
    try:
        yield spec_of(model).load().as_video_predictor(model)
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
                f"{size[1]}×{size[0]}; all frames of a video must be of one size",
                "video.frame-size",
            )
        return frame


def track(
    predictor: nn.Module,
    video: VideoRecord,
    prompt: Prompt,
    one_object_per_pixel: bool = False,
    after_frame: AfterFrame | None = None,
) -> dict[int, list[RLE]]:
    """Prompt every object of a video from its true mask and track it.

    Args:
        predictor: of :func:`predicting`, with or without adapters in it.
        video: every object of it is seen on some frame; it may be without any.
        prompt: the true mask, its tight box, or one click at its centre, on the first frame that shows the object.
        one_object_per_pixel: where predictions overlap, the pixel is the object's with the highest logit.
        after_frame: called with a frame's number when all that concerns it has been computed; frame 0 may come twice.

    Returns:
        Object id → predicted masks, one a frame, at the video's own size; empty before the prompted frame.

    Raises:
        UserError: a frame cannot be read, or is of another size than the video.
    """
    if not video.objects:
        return {}
    nothing = RLE.encode(np.zeros((video.height, video.width), bool))
    found = {obj.object_id: [nothing] * first_frame(video, obj.object_id) for obj in video.objects}
    room = spec_of(predictor).load()
    for _, object_ids, logits_OHW in room.track_objects(
        predictor, VideoFrames(video), _prompts(video, prompt), after_frame
    ):
        masks_OHW = logits_OHW > 0
        if one_object_per_pixel:
            winner_HW = logits_OHW.argmax(dim=0)
            masks_OHW &= winner_HW == torch.arange(len(object_ids), device=winner_HW.device)[:, None, None]
        for object_id, mask_HW in zip(object_ids, masks_OHW.cpu().numpy(), strict=True):
            found[object_id].append(RLE.encode(mask_HW))
    return found


def _prompts(video: VideoRecord, prompt: Prompt) -> dict[int, Iterator[ObjectPrompt]]:
    """Return, by the frame on which objects are first seen, their prompts, each made when it is asked for."""
    objects: dict[int, list[ObjectTrack]] = {}
    for obj in video.objects:
        objects.setdefault(first_frame(video, obj.object_id), []).append(obj)
    return {t: map(partial(true_prompt, prompt, t), on_frame) for t, on_frame in objects.items()}


def true_prompt(prompt: Prompt, t: int, obj: ObjectTrack) -> ObjectPrompt:
    """Return an object's true mask on a frame, its tight box, or a click at its centre."""
    segmentation = obj.segmentations[t]
    assert segmentation is not None
    mask = segmentation.decode()
    if prompt == "mask":
        return ObjectPrompt(obj.object_id, mask=mask)
    if prompt == "box":
        return ObjectPrompt(obj.object_id, box=bounding_box(mask))
    return ObjectPrompt(obj.object_id, points=(centre_point(mask),), labels=(1,))
