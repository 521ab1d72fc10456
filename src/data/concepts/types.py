"""Images with noun phrases, the unit of training for concepts, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..clips.types import SampleKey

VISUAL = "visual"
"""The phrase that stands where only exemplar boxes ask, as in SAM 3's own training."""

POSITIVE, NEGATIVE, PADDING = 1, 0, -10
"""Labels of exemplar boxes; ``Sam3Model`` takes the last for no box."""


@dataclass(frozen=True)
class ConceptBatch:
    """B images and P pairs of an image and a phrase; the pairs of an image are neighbours.

    Attributes:
        images_BHWC: uint8 RGB (B, S, S, 3), squashed to a square; (B, S, S, 0) where no pixels were read.
        image_of_pair: int64 (P,), each pair's image.
        phrases: P noun phrases; ``visual`` where only exemplar boxes ask.
        exemplars_PX4: float32 (P, X, 4), boxes as centre, width and height in 0–1; X may be 0.
        exemplar_labels_PX: int64, 1 positive, 0 negative, -10 no box.
        boxes: P × float32 (n, 4), corners x0, y0, x1, y1 in 0–1; n is 0 where the phrase is absent.
        masks: P × bool (n, S, S); (0, S, S) where masks are not trained.
        ignored: P × bool, (S, S), the area that loss and score leave out, or (0, S, S) where there is none.
        names: of the images.
        keys: of the images, none unless all of them come from a data set.
    """

    images_BHWC: Tensor
    image_of_pair: Tensor
    phrases: tuple[str, ...]
    exemplars_PX4: Tensor
    exemplar_labels_PX: Tensor
    boxes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    ignored: tuple[Tensor, ...]
    names: tuple[str, ...]
    keys: tuple[SampleKey, ...] = ()

    @property
    def has_pixels(self) -> bool:
        """Whether the images' pixels were read."""
        return self.images_BHWC.shape[-1] > 0

    def pin_memory(self) -> ConceptBatch:
        """Return the batch with its tensors in pinned memory."""
        return replace(
            self,
            images_BHWC=self.images_BHWC.pin_memory(),
            image_of_pair=self.image_of_pair.pin_memory(),
            exemplars_PX4=self.exemplars_PX4.pin_memory(),
            exemplar_labels_PX=self.exemplar_labels_PX.pin_memory(),
            boxes=tuple(each.pin_memory() for each in self.boxes),
            masks=tuple(each.pin_memory() for each in self.masks),
            ignored=tuple(each.pin_memory() for each in self.ignored),
        )


def join_concepts(batches: list[ConceptBatch]) -> ConceptBatch:
    """Return batches, of images of one size, as one; exemplar boxes are padded to the most of any pair."""
    most = max(batch.exemplars_PX4.shape[1] for batch in batches)
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + len(batch.names))
    keys = tuple(key for batch in batches for key in batch.keys)
    return ConceptBatch(
        images_BHWC=torch.cat([batch.images_BHWC for batch in batches]),
        image_of_pair=torch.cat(
            [batch.image_of_pair + start for batch, start in zip(batches, starts[:-1], strict=True)]
        ),
        phrases=tuple(phrase for batch in batches for phrase in batch.phrases),
        exemplars_PX4=torch.cat([_padded(batch.exemplars_PX4, most, 0) for batch in batches]),
        exemplar_labels_PX=torch.cat([_padded(batch.exemplar_labels_PX, most, PADDING) for batch in batches]),
        boxes=tuple(each for batch in batches for each in batch.boxes),
        masks=tuple(each for batch in batches for each in batch.masks),
        ignored=tuple(each for batch in batches for each in batch.ignored),
        names=tuple(name for batch in batches for name in batch.names),
        keys=keys if len(keys) == starts[-1] else (),
    )


def _padded(values_PX: Tensor, count: int, fill: int) -> Tensor:
    """Return (P, X, …) with X grown to a count."""
    pairs, have, *rest = values_PX.shape
    return torch.cat([values_PX, values_PX.new_full((pairs, count - have, *rest), fill)], dim=1)
