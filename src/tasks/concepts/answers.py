"""What a model answers to phrases on an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.clips.transforms import resize_picture
from ...data.records import RLE
from ...evaluation.concepts.records import ConceptPrediction
from ...models.spec import spec_of

PHRASES_AT_ONCE = 16
"""Phrases that a forward pass answers, at most."""

MASK_THRESHOLD = 0.5


@torch.no_grad()
def answer(
    model: nn.Module, picture_HW3: np.ndarray, phrases: Sequence[str], image_id: str = "", threshold: float = 0.0,
    most: int = 100, masks: bool = True,
) -> list[ConceptPrediction]:  # fmt: skip
    """Find phrases on an image: one prediction each, best instances first.

    Args:
        model: in eval mode, with adapters or without.
        picture_HW3: RGB uint8.
        phrases: what to find.
        image_id: of the image.
        threshold: least score of an instance.
        most: instances of a phrase, at most.
        masks: whether masks are made beside boxes.
    """
    room: Any = spec_of(model).load()
    size = room.input_size(model)
    small = resize_picture(picture_HW3, size, size).clamp(0, 255).round().byte().permute(1, 2, 0)
    features = room.encode_images(model, small[None])
    found: list[ConceptPrediction] = []
    for start in range(0, len(phrases), PHRASES_AT_ONCE):
        part = phrases[start : start + PHRASES_AT_ONCE]
        pairs = torch.zeros(len(part), dtype=torch.long)
        output = room.forward_concepts(model, features, pairs, room.encode_phrases(model, part), masks=masks)
        found += _predictions(output, part, picture_HW3.shape[:2], image_id, threshold, most)
    return found


def _predictions(
    output: Any, phrases: Sequence[str], size: tuple[int, ...], image_id: str, threshold: float, most: int
) -> list[ConceptPrediction]:
    scores_PQ = output.scores_PQ.double().cpu()
    presence_P = output.presence_LP[-1].double().sigmoid().cpu()
    height, width = size
    corners_PQ4 = output.boxes_LPQ4[-1].double().cpu().clamp(0, 1) * torch.tensor([width, height, width, height])
    predictions = []
    for number, phrase in enumerate(phrases):
        order = scores_PQ[number].argsort(descending=True, stable=True)[:most]
        order = order[scores_PQ[number, order] >= threshold]
        logits = None if output.masks_KQhw is None else output.masks_KQhw[number, order.to(output.masks_KQhw.device)]
        predictions.append(
            ConceptPrediction(
                image_id=image_id,
                phrase=phrase,
                scores=scores_PQ[number, order].numpy(),
                boxes=corners_PQ4[number, order].numpy(),
                masks=[] if logits is None else [_full_size(mask_hw, height, width) for mask_hw in logits],
                presence=float(presence_P[number]),
            )
        )
    return predictions


def _full_size(logits_hw: Tensor, height: int, width: int) -> RLE:
    """Return a mask at the image's size, as ``Sam3Processor`` makes it: probabilities, resized, above a half."""
    soft_hw = logits_hw.float().sigmoid()[None, None]
    soft_HW = F.interpolate(soft_hw, (height, width), mode="bilinear", align_corners=False)[0, 0]
    return RLE.encode((soft_HW > MASK_THRESHOLD).cpu().numpy())
