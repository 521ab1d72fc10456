"""What is labelled on an image, as answers to phrases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..records import RLE, Segmentation, VideoRecord
from .phrases import Vocabulary


@dataclass(frozen=True)
class Question:
    """A phrase asked of an image.

    Attributes:
        phrase: what is asked; ``visual`` where the box alone asks.
        shown: the areas of its instances, none where it is absent.
        ignored: areas that count neither for it nor against it.
        only: nothing outside the instances counts, as there may be more of them.
        example: number of the instance that has a box around it; None: no box.
    """

    phrase: str
    shown: tuple[Segmentation, ...] = ()
    ignored: tuple[Segmentation, ...] = ()
    only: bool = False
    example: int | None = None


class ImageLabels:
    """What is labelled on an image, category by category.

    Args:
        video: the image's record.
        frame: its number.
        vocabulary: phrases that may be asked of it.

    Attributes:
        shown: category → areas of its objects.
        crowds: category → areas of several objects that are not separated.
        unclear: areas of which it is not known what they show.
    """

    def __init__(self, video: VideoRecord, frame: int, vocabulary: Vocabulary) -> None:
        self.video, self.categories_of = video, vocabulary.categories_of
        self.shown: dict[str, list[Segmentation]] = {}
        self.crowds: dict[str, list[Segmentation]] = {}
        self.unclear = _void_of_all(video, frame)
        for tracks, areas in ((video.objects, self.shown), (video.crowds, self.crowds)):
            for track in tracks:
                area = track.segmentations[frame]
                if area is not None and track.category is None:
                    self.unclear.append(area)
                elif area is not None and track.category is not None:
                    areas.setdefault(track.category, []).append(area)

    def instances(self, phrase: str) -> list[Segmentation]:
        """Return the areas that answer a phrase."""
        return [area for category in sorted(self.categories_of[phrase]) for area in self.shown.get(category, ())]

    def is_absent(self, phrase: str) -> bool:
        """Return whether it is known that nothing on the image answers a phrase."""
        categories, known = self.categories_of[phrase], self.video.absent
        if any(category in self.shown or category in self.crowds for category in categories):
            return False
        return not categories & self.video.unsure and (known is None or categories <= known)

    def question(self, phrase: str) -> Question:
        """Return a phrase with its answer."""
        categories = self.categories_of[phrase]
        crowds = [area for category in sorted(categories) for area in self.crowds.get(category, ())]
        known = self.video.absent
        unknown = known is not None and not categories <= known | self.shown.keys()
        only = bool(categories & self.video.unsure) or unknown
        return Question(phrase, tuple(self.instances(phrase)), (*self.unclear, *crowds), only)


def _void_of_all(video: VideoRecord, frame: int) -> list[Segmentation]:
    """Return what is void whatever is asked for: not crowds, which count by their category."""
    void = video.void.get(frame)
    crowds = [area.decode() for track in video.crowds if (area := track.segmentations[frame]) is not None]
    if void is None or not crowds:
        return [] if void is None else [void]
    rest_HW = void.decode() & ~np.logical_or.reduce(crowds)
    return [RLE.encode(rest_HW)] if rest_HW.any() else []
