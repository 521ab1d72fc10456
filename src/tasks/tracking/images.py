"""Single images, prompted by ground truth: COCO's AP, mean IoU and Dice from a box and from more and more clicks.

Every object is prompted on the first frame that shows it, at the image's own size, through the model's image predictor:
nothing is tracked. Clicks are simulated as SAM's evaluation does (Kirillov et al., 2023, https://arxiv.org/abs/2304.02643,
section 7.1 and appendix D.1): the first on the pixel deepest inside the object, each further one on the pixel deepest
inside what is still wrong, positive where something is missing and negative where something is too much, along with the
mask so far. A mask's score in AP is the IoU that the model predicts for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from torch import nn

from ...core.console import progress_bar
from ...data.decode.masks import bounding_box, deepest_pixel
from ...data.records import RLE, ObjectTrack, VideoRecord
from ...evaluation.domains import Domain
from ...evaluation.image_results import BOX, ImageObject, ImageResult, Segmented, clicks_prompt
from ...evaluation.metrics import dice, region_similarity
from ...evaluation.protocol import first_frame
from ...models.protocols import ImagePredictor
from ...models.spec import spec_of
from .predict import VideoFrames, predicting

PIXELS_AT_ONCE = 2**24
"""Objects of an image are decoded together, so many that their masks have no more pixels than this."""


def evaluate_images(model: nn.Module, domain: Domain, clicks: int, label: str = "") -> ImageResult:
    """Segment every object of a domain on the first frame that shows it, from its box and from clicks.

    Args:
        model: with or without adapters in it.
        domain: stills are taken as they are, not as clips; ``max_objects`` applies to them as in tracking.
        clicks: how many, at least one.
        label: of the progress bar; the domain's name if empty.

    Raises:
        UserError: a frame cannot be read, or is of another size than its video.
    """
    found: list[ImageObject] = []
    with predicting(model) as predictor:
        images = spec_of(model).load().image_predictor(predictor)
        for video in progress_bar(domain.data.videos, desc=label or domain.name, leave=False):
            frames, batch = VideoFrames(video), max(1, PIXELS_AT_ONCE // (video.height * video.width))
            for t, objects in _by_first_frame(video, domain.max_objects):
                images.set_image(frames[t])
                name = f"{video.video_id}/{video.frames[t].stem}" if len(video) > 1 else video.video_id
                for start in range(0, len(objects), batch):
                    found += _segment(images, video, name, t, objects[start : start + batch], clicks)
    return ImageResult(found, clicks)


def _by_first_frame(video: VideoRecord, max_objects: int) -> Iterator[tuple[int, list[ObjectTrack]]]:
    """The frames on which objects are first seen, with those; of a still the largest objects."""
    starts = {obj.object_id: first_frame(video, obj.object_id) for obj in video.objects}
    for t in sorted(set(starts.values())):
        objects = [obj for obj in video.objects if starts[obj.object_id] == t]
        if len(video) == 1:
            areas = {o.object_id: s.area() for o in objects if (s := o.segmentations[0]) is not None}
            objects = sorted(objects, key=lambda o: (-areas[o.object_id], o.object_id))[:max_objects]
        yield t, objects


def _segment(
    predictor: ImagePredictor, video: VideoRecord, image: str, t: int, objects: list[ObjectTrack], clicks: int
) -> list[ImageObject]:
    """Prompt some objects of the image that is set; one that is in the void is left out."""
    counts_HW = np.ones((video.height, video.width), bool)
    if t in video.void:
        counts_HW &= ~video.void[t].decode()
    truths = {o.object_id: s.decode() & counts_HW for o in objects if (s := o.segmentations[t]) is not None}
    objects = [obj for obj in objects if truths[obj.object_id].any()]
    if not objects:
        return []
    truths_OHW = np.stack([truths[obj.object_id] for obj in objects])
    found: list[dict[str, Segmented]] = [{} for _ in objects]
    results = chain([_from_boxes(predictor, truths_OHW)], _from_clicks(predictor, truths_OHW, counts_HW, clicks))
    prompts = [BOX, *(clicks_prompt(count + 1) for count in range(clicks))]
    for prompt, (masks_OHW, scores_O) in zip(prompts, results, strict=True):
        for by_prompt, mask, true_HW, score in zip(found, masks_OHW, truths_OHW, scores_O, strict=True):
            mask_HW = mask & counts_HW
            iou, overlap = region_similarity(mask_HW, true_HW), dice(mask_HW, true_HW)
            by_prompt[prompt] = Segmented(RLE.encode(mask_HW), float(score), iou, overlap)
    return [
        ImageObject(image, o.object_id, o.original_id, o.category or "object", RLE.encode(true_HW), by_prompt)
        for o, true_HW, by_prompt in zip(objects, truths_OHW, found, strict=True)
    ]


def _from_boxes(predictor: ImagePredictor, truths_OHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (O, H, W) and predicted IoUs (O,) from the tight boxes of true masks."""
    boxes_O4 = np.array([bounding_box(truth_HW) for truth_HW in truths_OHW], np.float32)
    masks, scores, _ = _predict(predictor, box=boxes_O4, multimask_output=False)
    return masks[:, 0], scores[:, 0]


def _from_clicks(
    predictor: ImagePredictor, truths_OHW: np.ndarray, counts_HW: np.ndarray, clicks: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks (O, H, W) and predicted IoUs (O,) after each click; what is right to the pixel gets no further one.

    Of the masks that SAM 2 offers for a first click, which is ambiguous, the one with the best predicted IoU is taken.
    """
    objects = np.arange(len(truths_OHW))
    points_ON2 = np.zeros((len(objects), 0, 2), np.float32)
    labels_ON = np.zeros((len(objects), 0), np.int32)
    masks_OHW, scores_O, logits_O1hw = np.zeros_like(truths_OHW), np.zeros(len(objects), np.float32), None
    for count in range(clicks):
        new = [next_click(mask & counts_HW, truth) for mask, truth in zip(masks_OHW, truths_OHW, strict=True)]
        wrong = np.array([label >= 0 for _, label in new])
        points_ON2 = np.concatenate([points_ON2, np.array([[point] for point, _ in new], np.float32)], axis=1)
        labels_ON = np.concatenate([labels_ON, np.array([[label] for _, label in new], np.int32)], axis=1)
        if wrong.any():
            masks, scores, logits = _predict(
                predictor, point_coords=points_ON2, point_labels=labels_ON, mask_input=logits_O1hw,
                multimask_output=count == 0,
            )  # fmt: skip
            best = scores.argmax(axis=1)
            masks_OHW = np.where(wrong[:, None, None], masks[objects, best], masks_OHW)
            scores_O = np.where(wrong, scores[objects, best], scores_O)
            logits_O1hw = logits[objects, best][:, None]
        yield masks_OHW, scores_O


def next_click(mask_HW: np.ndarray, true_HW: np.ndarray) -> tuple[tuple[float, float], int]:
    """Where a user would click next to mend a mask, and how: 1 to add, 0 to take away; −1, no click, if it is right."""
    missing, too_much = deepest_pixel(true_HW & ~mask_HW), deepest_pixel(mask_HW & ~true_HW)
    if max(missing.depth, too_much.depth) == 0:
        return (0.0, 0.0), -1
    return (missing.xy, 1) if missing.depth >= too_much.depth else (too_much.xy, 0)


def _predict(predictor: ImagePredictor, **prompts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict with an axis of objects even for one: (O, C, H, W) bool, (O, C), (O, C, h, w)."""
    masks, scores, logits = predictor.predict(**prompts)
    if scores.ndim == 1:
        masks, scores, logits = masks[None], scores[None], logits[None]
    return masks.astype(bool), scores, logits
