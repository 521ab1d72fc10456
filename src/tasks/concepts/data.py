"""Data of concepts: the phrases of each data set, and what is true of its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ...config import Config
from ...core.errors import UserError
from ...data.concepts.labels import ImageLabels
from ...data.concepts.phrases import Vocabulary, build_vocabulary
from ...data.records import RLE, CategoryCounts, DataSet, Segmentation, VideoRecord, add_categories
from ...evaluation.concepts.records import ConceptTruth


def vocabularies(config: Config, sets: Iterable[Iterable[DataSet]]) -> list[Vocabulary]:
    """Return the phrases of each domain that a run learns.

    Args:
        config: the run.
        sets: for each domain its splits, whose categories are taken together.

    Raises:
        UserError: a domain has no categories, or ``dataset.phrases`` names one that no domain has.
    """
    names = [
        list(count_categories(splits, domain.name)) for splits, domain in zip(sets, config.dataset.domains, strict=True)
    ]
    phrases, foreign = config.dataset.phrases, config.training.concepts.foreign
    build_vocabulary([name for of in names for name in of], phrases, foreign)  # says what fits no domain
    return [build_vocabulary(of, {name: phrases[name] for name in of if name in phrases}, foreign) for of in names]


def count_categories(splits: Iterable[DataSet], name: str) -> CategoryCounts:
    """Return the categories of a domain. Raises UserError where it has none."""
    counts: CategoryCounts = {}
    for data in splits:
        add_categories(counts, data.category_counts())
    counts.pop("", None)
    if not counts:
        raise UserError(
            f"{name}: its objects have no categories, so there is nothing to ask for by name; use a format that says "
            "what objects are, such as COCO",
            "concepts.no-categories",
        )
    return counts


def truths_of(video: VideoRecord, frame: int, vocabulary: Vocabulary) -> list[ConceptTruth]:
    """Return what is true of an image, for every phrase of a vocabulary.

    A pair is not exhaustive where objects of its categories may be there that nobody labelled.
    """
    labels = ImageLabels(video, frame, vocabulary)
    numbers = {category: number for number, category in enumerate(vocabulary.phrases_of, start=1)}
    truths = []
    for phrase in vocabulary.phrases:
        question = labels.question(phrase)
        categories = sorted(numbers[category] for category in vocabulary.categories_of[phrase])
        known = labels.is_absent(phrase) or (bool(question.shown or question.ignored) and not question.only)
        truths.append(
            ConceptTruth(
                image_id=video.video_id,
                phrase=phrase,
                category_id=categories[0] if categories else 0,
                masks=[_encoded(area) for area in question.shown],
                ignored=_union(question.ignored),
                exhaustive=known,
            )
        )
    return truths


def _encoded(area: Segmentation) -> RLE:
    return area if isinstance(area, RLE) else RLE.encode(area.decode())


def _union(areas: Iterable[Segmentation]) -> RLE | None:
    masks = [area.decode() for area in areas]
    return RLE.encode(np.any(masks, axis=0)) if masks else None


def describe_vocabulary(vocabulary: Vocabulary, counts: Mapping[str, Mapping[int, int]], queries: int) -> list[str]:
    """Return lines about what a data set is asked for: its phrases, and those left out of images.

    Args:
        vocabulary: phrases of the set.
        counts: of its categories.
        queries: instances that the model can give, at most.
    """
    asked = [
        f"{' or '.join(phrases)} ({sum(n * frames for n, frames in counts.get(category, {}).items())})"
        for category, phrases in vocabulary.phrases_of.items()
    ]
    lines = [f"phrases, with their instances: {', '.join(asked)}"]
    for category, phrases in vocabulary.phrases_of.items():
        many = {n: frames for n, frames in counts.get(category, {}).items() if n > queries}
        if many:
            lines.append(
                f"warning: {phrases[0]}: {sum(many.values())} images show up to {max(many)}, more than the model's "
                f"{queries} queries; it is not asked of these images in training"
            )
    if len(vocabulary.phrases) == 1:
        lines.append(
            f"warning: {vocabulary.phrases[0]} is the only phrase, so nothing teaches what it is not, and the model "
            "may find it everywhere; name things that no image shows in training.concepts.foreign"
        )
    return lines
