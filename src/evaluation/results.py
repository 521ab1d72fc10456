"""What models scored on a domain, video by video, and what a domain gate makes of two models' results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..data.records import RLE
from ..gating.domain_gate import Decision
from .domains import Domain
from .metrics import ObjectScores, aggregate
from .protocol import first_prompted_frame


@dataclass(frozen=True)
class VideoResult:
    """One video's masks (object id → one a frame), the scores of those objects that count, and what files call them."""

    video_id: str
    predicted: dict[int, list[RLE]]
    scores: dict[int, ObjectScores]
    original_ids: dict[int, int | str | None]

    @property
    def J(self) -> float:
        """The mean over objects; NaN without any that counts."""
        return aggregate(list(self.scores.values()))["J"]


@dataclass(frozen=True)
class DomainResult:
    """A model's scores on a domain, with the masks they come from."""

    scores: dict[str, float]
    videos: list[VideoResult]

    @property
    def objects(self) -> int:
        """How many objects are scored."""
        return sum(len(video.scores) for video in self.videos)

    @property
    def not_scored(self) -> int:
        """How many objects the protocol leaves out."""
        return sum(len(video.predicted) - len(video.scores) for video in self.videos)


@dataclass(frozen=True)
class GatedResult:
    """What becomes of a domain with a gate deciding.

    ``decisions``: video → the gate's word on it. ``learned``: whether the domain is one that it has learned.
    """

    result: DomainResult
    decisions: dict[str, Decision]
    learned: bool

    @property
    def known(self) -> int:
        """Of how many videos it knew the domain."""
        return sum(decision.domain is not None for decision in self.decisions.values())

    @property
    def wrong(self) -> int:
        """Of how many videos it decided wrongly: it rejected a learned domain, or accepted another."""
        return len(self.result.videos) - self.known if self.learned else self.known


def with_gate(
    domain: Domain,
    base: DomainResult,
    adapted: DomainResult,
    decide: Callable[[np.ndarray], Decision],
    learned: bool,
) -> GatedResult:
    """The results with a domain gate: the adapted model's on videos that it knows, the base's on all others.

    These are the masks that the gate, installed, would have given: it decides once a video, between the two.

    Args:
        domain: what both results are of.
        base, adapted: without a gate.
        decide: the gate's word on a frame, RGB uint8 (H, W, 3); it is asked about the first prompted one.
        learned: whether the gate has learned this domain.
    """
    videos: list[VideoResult] = []
    decisions: dict[str, Decision] = {}
    for video, unchanged, changed in zip(domain.videos(), base.videos, adapted.videos, strict=True):
        decision = decisions[video.video_id] = decide(video.frames[first_prompted_frame(video)].read())
        videos.append(unchanged if decision.domain is None else changed)
    counted = [scores for video in videos for scores in video.scores.values()]
    return GatedResult(DomainResult(aggregate(counted), videos), decisions, learned)
