"""The training images of a run, each with what is asked of it, drawn from its key alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from ...config import AugmentationConfig, ConceptConfig
from ...core.errors import UserError
from ..clips import SampleKey, VideoOrder
from ..records import DataSet, VideoRecord
from .draw import draw_image, draw_questions
from .labels import Question
from .phrases import Vocabulary
from .types import ConceptBatch, join_concepts


@dataclass(frozen=True)
class ConceptOptions:
    """How images and phrases are drawn.

    Attributes:
        concepts: how many phrases of which kind.
        size: side of the square images in pixels.
        queries: instances that the model can give, at most.
        masks: whether masks are trained.
        augmentation: magnitudes; None: no augmentation.
    """

    concepts: ConceptConfig
    size: int
    queries: int
    masks: bool = True
    augmentation: AugmentationConfig | None = None


class ConceptDataset(VideoOrder, Dataset[ConceptBatch | UserError]):
    """The training images of one or several data sets, in the order of :class:`~src.data.clips.VideoOrder`.

    ``dataset[epoch, index]`` draws a batch of one image, the same one every time. ``dataset[epoch, index, False]`` is
    that batch without pixels: no image is read. Of a video one annotated frame is drawn. An image of which nothing can
    be asked is replaced by the next one in the order.

    Args:
        sets: images and videos, set by set.
        weights: of the sets.
        length: images per epoch.
        vocabularies: phrases of each set, of which alone its images are labelled.
        options: how images and phrases are drawn.
        seed: random seed.
        views: number of ways in which each image is drawn, which repeat in turn; None: draws never repeat.
    """

    def __init__(
        self, sets: Sequence[DataSet], weights: Sequence[float], length: int,
        vocabularies: Sequence[Vocabulary], options: ConceptOptions, seed: int, views: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(sets, weights, length, seed, views)
        self.vocabularies, self.options = vocabularies, options

    def with_pixels(self, batch: ConceptBatch) -> ConceptBatch:
        """Return a batch of this data set with its pixels, which are read if it has none.

        Raises:
            UserError: an image cannot be read.
        """
        if batch.has_pixels:
            return batch
        images = []
        for key in batch.keys:
            image = self[key]
            if isinstance(image, UserError):
                raise image
            images.append(image)
        return join_concepts(images)

    def __getitem__(self, key: SampleKey | tuple[int, int, bool]) -> ConceptBatch | UserError:
        epoch, index, *asked = key
        sample_key = self.sample_key(epoch, index)
        rng = np.random.default_rng((self.seed, *sample_key))
        try:
            data, video, frame, questions = self._ask(sample_key, rng)
            name = video.video_id if len(self.sets) == 1 else f"{data.name}/{video.video_id}"
            options = self.options
            image = draw_image(
                video, frame, questions, options.size, rng, options.augmentation, options.masks, all(asked), name
            )
        except UserError as error:  # handed on as it is: a loader process would wrap its traceback around it
            return error
        return replace(image, keys=(sample_key,))

    def _ask(
        self, key: SampleKey, rng: np.random.Generator
    ) -> tuple[DataSet, VideoRecord, int, list[Question]]:  # fmt: skip
        """Return an image and what is asked of it: the first one in the order of which anything can be."""
        options, tried = self.options, 0
        vocabulary = self.vocabularies[self.chosen_set(*key)]
        while True:
            data, video = self.source(*key, later=tried)
            frames = [t for t in range(len(video)) if any(o.segmentations[t] is not None for o in video.objects)]
            frame = frames[int(rng.integers(len(frames)))]
            questions = draw_questions(video, frame, vocabulary, options.concepts, options.queries, rng)
            if questions:
                return data, video, frame, questions
            tried += 1
            if tried == len(data):
                raise UserError(
                    f"{data.name}: no phrase can be asked of any image: every category has more than the model's "
                    f"{options.queries} instances wherever it is shown, or is labelled in part only",
                    "concepts.nothing-to-ask",
                )
