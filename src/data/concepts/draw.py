"""Draws what is asked of an image: phrases that it shows and does not show, and boxes around examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...config import AugmentationConfig, ConceptConfig
from ..clips.augment import apply_view, augment_colours, sample_view
from ..clips.frames import read_pictures
from ..clips.transforms import resize_mask, to_pixels
from ..records import Segmentation, VideoRecord
from .labels import ImageLabels, Question
from .phrases import Vocabulary, words_of
from .types import PADDING, POSITIVE, VISUAL, ConceptBatch

SIDES = frozenset({
    "left", "right", "leftmost", "rightmost", "clockwise", "anticlockwise", "counterclockwise", "mirrored",
})  # fmt: skip
"""Words that a mirror image contradicts."""

DIRECTIONS = frozenset({
    "horizontal", "vertical", "diagonal", "upright", "tilted", "slanted", "level", "top", "bottom", "upper", "lower",
})  # fmt: skip
"""Words that a turned image contradicts."""

_VIEW_SIDE = 64
"""Side, in pixels, of the masks by which is decided whether a view loses an object."""


def draw_questions(
    video: VideoRecord, frame: int, vocabulary: Vocabulary, config: ConceptConfig, queries: int,
    rng: np.random.Generator,
) -> list[Question]:  # fmt: skip
    """Draw the phrases to ask of an image.

    A phrase is absent where it is known to be: no object and no crowd is of its categories, and none of them is
    labelled in part only. A phrase with more instances than ``queries`` is not asked.

    Args:
        video: what is labelled on the image.
        frame: the image's number.
        vocabulary: phrases of the run.
        config: how many phrases of which kind.
        queries: instances that the model can give, at most.
        rng: random numbers for all draws.
    """
    image = ImageLabels(video, frame, vocabulary)
    questions: list[Question] = []
    for category in rng.permutation(sorted(image.shown)):
        known = vocabulary.phrases_of.get(str(category), ())
        phrase = known[int(rng.integers(len(known)))] if known else ""
        asked = any(question.phrase == phrase for question in questions)
        if phrase and not asked and 0 < len(image.instances(phrase)) <= queries:
            questions.append(image.question(phrase))
        if len(questions) == config.positives:
            break
    shown_words = frozenset[str]().union(*(words_of(p) for c in image.shown for p in vocabulary.phrases_of.get(c, ())))
    absent = [str(phrase) for phrase in rng.permutation([p for p in vocabulary.phrases if image.is_absent(p)])]
    hard = [phrase for phrase in absent if words_of(phrase) & shown_words][: config.hard_negatives]
    easy = [phrase for phrase in absent if phrase not in hard][: config.negatives]
    questions = [_with_example(question, config.exemplars, rng) for question in questions]
    return questions + [image.question(phrase) for phrase in (*hard, *easy)]


def _with_example(question: Question, share: float, rng: np.random.Generator) -> Question:
    """Add a box around one of the instances, for a share of questions; in half of them it stands alone."""
    chance, example, alone = rng.random(), int(rng.integers(len(question.shown))), rng.random() < 0.5
    if chance >= share:
        return question
    phrase = VISUAL if alone else question.phrase
    return Question(phrase, question.shown, question.ignored, question.only, example)


def draw_image(
    video: VideoRecord, frame: int, questions: Sequence[Question], size: int, rng: np.random.Generator,
    augmentation: AugmentationConfig | None = None, masks: bool = True, pixels: bool = True, name: str = "",
) -> ConceptBatch:  # fmt: skip
    """Return an image with what is asked of it, seen through a random view.

    Colours keep their hue and saturation, which phrases may name. The image is not mirrored where a phrase says a side,
    nor turned where one says a direction.

    Args:
        video: the image's record.
        frame: its number.
        questions: of :func:`draw_questions`, at least one.
        size: side of the square image in pixels.
        rng: random numbers for all draws.
        augmentation: magnitudes; None: no augmentation.
        masks: whether masks are wanted beside boxes.
        pixels: whether the image is read; False gives the same batch without pixels.
        name: of the image.

    Raises:
        UserError: the image cannot be read or is not of its record's size.
    """
    shown = [area for question in questions for area in question.shown]
    fitting = None if augmentation is None else _fitting(augmentation, questions)
    view = None if fitting is None else _draw_view(shown, video.width / video.height, fitting, rng)
    found = [_seen(area, size, view) for area in shown]
    if not all(mask_SS.any() for mask_SS in found):  # the view left too little of a small instance
        view, found = None, [_seen(area, size, None) for area in shown]
    picture_13SS = torch.zeros(1, 0, size, size)
    if pixels:
        picture_13SS = read_pictures(video, np.array([frame]), size)
        picture_13SS = picture_13SS if view is None else apply_view(picture_13SS, torch.zeros(1, 0, 1, 1), view)[0]
        if fitting is not None:  # nothing is drawn after it, so that a batch without pixels is the same one
            picture_13SS = augment_colours(picture_13SS, fitting, rng)
    areas = iter(found)
    instances = [_stack([next(areas) for _ in question.shown], size) for question in questions]
    ignored = [_ignored(question, own, view, size) for question, own in zip(questions, instances, strict=True)]
    boxes = [boxes_of(own) for own in instances]
    exemplars, labels = _exemplars(questions, boxes)
    return ConceptBatch(
        images_BHWC=torch.from_numpy(to_pixels(picture_13SS)),
        image_of_pair=torch.zeros(len(questions), dtype=torch.long),
        phrases=tuple(question.phrase for question in questions),
        exemplars_PX4=exemplars,
        exemplar_labels_PX=labels,
        boxes=tuple(boxes),
        masks=tuple(own if masks else own[:0] for own in instances),
        ignored=tuple(ignored),
        names=(name or video.video_id,),
    )


def boxes_of(masks_NSS: Tensor) -> Tensor:
    """Return the boxes around masks, none of which is empty: float32 (N, 4), corners in 0–1."""
    size = masks_NSS.shape[-1]
    boxes = []
    for mask_SS in masks_NSS:
        ys, xs = (torch.nonzero(mask_SS.any(axis))[:, 0] for axis in (1, 0))
        boxes.append(torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]) / size)
    return torch.stack(boxes).float() if boxes else torch.zeros(0, 4)


def _draw_view(
    shown: Sequence[Segmentation], aspect: float, augmentation: AugmentationConfig, rng: np.random.Generator
) -> Tensor:
    """Draw a view (2, 3) that loses no instance, judged by small masks."""
    small = [_visible(resize_mask(area.decode(), _VIEW_SIDE, _VIEW_SIDE)) for area in shown]
    return sample_view(_stack(small, _VIEW_SIDE), aspect, augmentation, rng)


def _seen(area: Segmentation, size: int, view: Tensor | None) -> Tensor:
    """Return an area as a mask, seen through a view: bool (S, S)."""
    soft_SS = _visible(resize_mask(area.decode(), size, size))
    if view is not None:
        soft_SS = _visible(apply_view(torch.zeros(1, 0, size, size), soft_SS[None, None], view)[1][0, 0])
    return soft_SS > 0.5


def _fitting(augmentation: AugmentationConfig, questions: Sequence[Question]) -> AugmentationConfig:
    """Return an augmentation of a single image that no phrase contradicts."""
    words = frozenset[str]().union(*(words_of(question.phrase) for question in questions))
    changes = {"saturation": 0.0, "grey": 0.0, "frame_brightness": 0.0, "frame_contrast": 0.0, "frame_saturation": 0.0}
    if words & SIDES:
        changes |= {"flip": 0.0}
    if words & DIRECTIONS:
        changes |= {"degrees": 0.0, "shear": 0.0}
    return augmentation.model_copy(update=changes)


def _ignored(question: Question, own_NSS: Tensor, view: Tensor | None, size: int) -> Tensor:
    """Return the area that does not count: bool (S, S), or (0, S, S) where there is none."""
    areas = [_seen(area, size, view) for area in question.ignored]
    if question.only:
        areas.append(torch.ones(size, size, dtype=torch.bool))
    if not areas:
        return torch.zeros(0, size, size, dtype=torch.bool)
    return torch.stack(areas).any(0) & ~own_NSS.any(0)


def _exemplars(questions: Sequence[Question], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return exemplar boxes (P, X, 4) and their labels (P, X); X is 1 where a question has one, else 0."""
    count = int(any(question.example is not None for question in questions))
    exemplars_PX4 = torch.zeros(len(questions), count, 4)
    labels_PX = torch.full((len(questions), count), PADDING)
    for number, (question, own) in enumerate(zip(questions, boxes, strict=True)):
        if question.example is not None:
            low, high = own[question.example, :2], own[question.example, 2:]
            exemplars_PX4[number, 0] = torch.cat([(low + high) / 2, high - low])
            labels_PX[number, 0] = POSITIVE
    return exemplars_PX4, labels_PX


def _visible(mask_SS: Tensor) -> Tensor:
    """Strengthen a soft mask too thin to fill half a pixel, so that it shows on a pixel at least."""
    most = mask_SS.max()
    return mask_SS if most > 0.5 else mask_SS / most.clamp(min=1e-6)


def _stack(masks: Sequence[Tensor], size: int) -> Tensor:
    """Return masks (N, S, S), of one kind."""
    return torch.stack(list(masks)) if masks else torch.zeros(0, size, size, dtype=torch.bool)
