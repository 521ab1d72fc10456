"""What models scored on a domain, video by video, and how a domain gate combines two models' results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..data.records import RLE
from ..gating.domain_gate import Decision
from .domains import Domain
from .image_results import ImageResult
from .intervals import bootstrap, change, intervals
from .metrics import ObjectScores, aggregate
from .protocol import first_prompted_frame

Intervals = dict[str, tuple[float, float]] | None
"""Score → the ends of its 95 % interval; None where there are too few videos."""


@dataclass(frozen=True)
class VideoResult:
    """One video's predicted masks and the scores of its objects.

    Attributes:
        video_id: the video.
        predicted: object id → masks, one a frame.
        scores: object id → scores, for the objects that the protocol counts.
        original_ids: object id → the id in the data set's own files.
    """

    video_id: str
    predicted: dict[int, list[RLE]]
    scores: dict[int, ObjectScores]
    original_ids: dict[int, int | str | None]

    def means(self) -> dict[str, float]:
        """Return the scores, means over the objects that count; NaN without any."""
        return aggregate(list(self.scores.values()))


@dataclass(frozen=True)
class DomainResult:
    """A model's scores on a domain, with the masks they come from.

    Attributes:
        scores: name → value.
        videos: in the domain's order.
        headline: the name of the score that the best weights are chosen by, and that tables show first.
    """

    scores: dict[str, float]
    videos: list[VideoResult]
    headline: str = "J"

    @property
    def objects(self) -> int:
        """Number of objects that are scored."""
        return sum(len(video.scores) for video in self.videos)

    @property
    def not_scored(self) -> int:
        """Number of objects that the protocol leaves out."""
        return sum(len(video.predicted) - len(video.scores) for video in self.videos)

    def by_video(self) -> list[list[ObjectScores]]:
        """Return the objects' scores, video by video."""
        return [list(video.scores.values()) for video in self.videos]


@dataclass(frozen=True)
class GatedResult:
    """A domain's result with a domain gate deciding.

    Attributes:
        result: the masks of the model that the domain gate chose, video by video.
        decisions: video → decision.
        learned: whether the domain gate has learned this domain.
    """

    result: DomainResult
    decisions: dict[str, Decision]
    learned: bool

    @property
    def known(self) -> int:
        """Number of videos that the domain gate assigned to one of its domains."""
        return sum(decision.domain is not None for decision in self.decisions.values())

    @property
    def wrong(self) -> int:
        """Number of wrong decisions: videos of a learned domain rejected, or of another one accepted."""
        return len(self.result.videos) - self.known if self.learned else self.known


def with_gate(
    domain: Domain,
    base: DomainResult,
    adapted: DomainResult,
    decide: Callable[[np.ndarray], Decision],
    learned: bool,
) -> GatedResult:
    """Combine two models' results as a domain gate decides: adapted for videos it knows, the base for all others.

    The masks are those of a model with the domain gate installed, since it decides once a video, between the two.

    Args:
        domain: the domain of both results.
        base, adapted: results without a domain gate.
        decide: the domain gate's decision on a frame, RGB uint8 (H, W, 3); it is called with the first prompted one.
        learned: whether the domain gate has learned this domain.
    """
    videos: list[VideoResult] = []
    decisions: dict[str, Decision] = {}
    for video, unchanged, changed in zip(domain.videos(), base.videos, adapted.videos, strict=True):
        decision = decisions[video.video_id] = decide(video.frames[first_prompted_frame(video)].read())
        videos.append(unchanged if decision.domain is None else changed)
    counted = [scores for video in videos for scores in video.scores.values()]
    return GatedResult(DomainResult(aggregate(counted), videos, base.headline), decisions, learned)


@dataclass(frozen=True)
class Comparison:
    """The base and the adapted model on one domain.

    Attributes:
        domain: the evaluated data set.
        base: the unadapted model's result.
        adapted: the adapted model's; None where there is only the base.
        images: both models' results on single images; None where they were not asked for.
        gated: the adapted model with its domain gate deciding; None without a domain gate.
    """

    domain: Domain
    base: DomainResult
    adapted: DomainResult | None
    images: tuple[ImageResult, ImageResult | None] | None = None
    gated: GatedResult | None = None

    def intervals(self) -> dict[str, Intervals]:
        """Return the 95 % intervals of ``base``, ``adapted`` and ``change``; None for those that there are none of."""
        base = bootstrap(self.base.by_video())
        adapted = bootstrap(self.adapted.by_video()) if self.adapted is not None else None
        return {
            "base": intervals(base),
            "adapted": intervals(adapted),
            "change": intervals(change(base, adapted)),
        }
