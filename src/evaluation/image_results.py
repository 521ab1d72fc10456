"""Results on single images, prompt by prompt: COCO's AP, mean IoU and Dice."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.records import RLE

IMAGE_SCORES = ("AP", "AP50", "AP75", "mIoU", "Dice")

BOX = "box"
SHOWN_CLICKS = (1, 3, 8)

COCO_MOST = 100
"""Objects of an image at which COCO's own AP stops."""


def clicks_prompt(count: int) -> str:
    """Return the name of a number of clicks as a prompt."""
    return "1 click" if count == 1 else f"{count} clicks"


def shown_prompts(clicks: int) -> list[str]:
    """Return the prompts that tables show: a box, and 1, 3, 8 and the largest number of clicks."""
    counts = {count for count in (*SHOWN_CLICKS, clicks) if count <= clicks}
    return [BOX, *(clicks_prompt(count) for count in sorted(counts))]


@dataclass(frozen=True)
class Segmented:
    """The mask from a prompt, the IoU that the model predicts for it, and its true IoU and Dice."""

    mask: RLE
    score: float
    iou: float
    dice: float


@dataclass(frozen=True)
class ImageObject:
    """One object on one image; ``found``: prompt → predicted mask."""

    image: str
    object_id: int
    original_id: int | str | None
    category: str
    truth: RLE
    found: dict[str, Segmented]


@dataclass(frozen=True)
class ImageResult:
    """A model's masks on the images of a domain, from a box and from up to ``clicks`` clicks."""

    objects: list[ImageObject]
    clicks: int

    @property
    def images(self) -> int:
        """Number of images."""
        return len({o.image for o in self.objects})

    def scores(self, prompt: str) -> dict[str, float]:
        """Return :data:`IMAGE_SCORES` from 0 to 1: COCO's AP, and mean IoU and Dice over objects."""
        return average_precision(self.objects, prompt) | {
            "mIoU": float(np.mean([o.found[prompt].iou for o in self.objects])),
            "Dice": float(np.mean([o.found[prompt].dice for o in self.objects])),
        }

    def notes(self, name: str) -> list[str]:
        """Say where COCO's own AP would stop counting."""
        most = max(Counter(o.image for o in self.objects).values(), default=0)
        if most <= COCO_MOST:
            return []
        return [
            f"{name}: an image has up to {most} objects; all count here, COCO's own AP stops at {COCO_MOST} an image"
        ]

    def click_curve(self) -> list[float]:
        """Return the mean IoU after 1, 2, … clicks."""
        prompts = [clicks_prompt(count + 1) for count in range(self.clicks)]
        return [float(np.mean([o.found[prompt].iou for o in self.objects])) for prompt in prompts]


def average_precision(objects: Sequence[ImageObject], prompt: str) -> dict[str, float]:
    """Return COCO's AP of masks (IoU 0.50 to 0.95), AP50 and AP75: means over categories, by pycocotools.

    All objects of an image are counted. COCO stops at 100, but here each one was prompted.
    """
    sizes = {o.image: o.truth.rle["size"] for o in objects}
    images = {name: i for i, name in enumerate(sizes, 1)}
    categories = {name: i for i, name in enumerate(sorted({o.category for o in objects}), 1)}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": images[name], "height": size[0], "width": size[1]} for name, size in sizes.items()],
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
        "annotations": [
            {
                "id": number, "image_id": images[o.image], "category_id": categories[o.category], "iscrowd": 0,
                "area": o.truth.area(), "segmentation": o.truth.rle,
            }
            for number, o in enumerate(objects, 1)
        ],
    }  # fmt: skip
    results = [
        {
            "image_id": images[o.image], "category_id": categories[o.category], "score": o.found[prompt].score,
            "segmentation": o.found[prompt].mask.rle,
        }
        for o in objects
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its steps
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.maxDets = [max(COCO_MOST, len(objects))]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, 0]  # objects of all areas

    def mean(of_TRK: np.ndarray) -> float:
        return float(of_TRK[of_TRK > -1].mean())

    thresholds = evaluation.params.iouThrs
    at = {f"AP{percent}": int(np.argmin(abs(thresholds - percent / 100))) for percent in (50, 75)}
    return {"AP": mean(precision_TRK)} | {name: mean(precision_TRK[[i]]) for name, i in at.items()}
