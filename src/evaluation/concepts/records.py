"""What a model answers to a phrase on an image, and what is true: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...data.records import RLE

Region = Literal["segm", "bbox"]
"""Whether instances are compared by their masks or by their boxes, in the words of pycocotools."""


@dataclass(frozen=True)
class ConceptPrediction:
    """The instances that a model found for a phrase on an image.

    Attributes:
        image_id: the image.
        phrase: the noun phrase.
        scores: float64 (n,), the instance's probability times the presence probability.
        boxes: float64 (n, 4), corners x0, y0, x1, y1 in pixels of the image.
        masks: n masks at the image's own size; none where the model has no mask head in use.
        presence: the probability that the phrase is on the image at all; None of a model without such a head.
    """

    image_id: str
    phrase: str
    scores: np.ndarray
    boxes: np.ndarray
    masks: Sequence[RLE]
    presence: float | None

    def regions(self, region: Region) -> list[dict[str, object]] | np.ndarray:
        """Return what pycocotools compares: encoded masks, or boxes (n, 4) as left, top, width, height."""
        if region == "segm":
            return [mask.rle for mask in self.masks]
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)


@dataclass(frozen=True)
class ConceptTruth:
    """What is truly on an image for a phrase.

    Attributes:
        image_id: the image.
        phrase: the noun phrase.
        category_id: the category that the phrase asks for; several phrases may ask for one.
        masks: the instances, at the image's own size; none where the phrase is absent.
        ignored: an area that counts neither as right nor as wrong, such as a crowd.
        exhaustive: whether all instances are labelled. If not, the pair is left out of every score.
    """

    image_id: str
    phrase: str
    category_id: int
    masks: Sequence[RLE]
    ignored: RLE | None = None
    exhaustive: bool = True

    def regions(self, region: Region) -> list[dict[str, object]] | np.ndarray:
        """Return what pycocotools compares: encoded masks, or their boxes (n, 4) as left, top, width, height."""
        from pycocotools import mask as coco_mask

        encoded = [mask.rle for mask in self.masks]
        if region == "segm":
            return encoded
        return np.asarray(coco_mask.toBbox(encoded), np.float64).reshape(-1, 4)
