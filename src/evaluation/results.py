"""What models scored on a domain, and how a domain gate combines two models' results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..data.records import RLE
from ..gating.domain_gate import Decision
from .domains import Domain
from .image_results import ImageResult
from .intervals import Draws, bootstrap, change, intervals
from .metrics import STATISTICS, ObjectScores, aggregate
from .protocol import first_prompted_frame
from .score_names import TRACKING, ScoreNames
from .sheets import overlay_sheet, true_masks
from .text_table import aligned

Intervals = dict[str, tuple[float, float]] | None
"""Score → the ends of its 95 % interval; None where there are too few videos."""


class EvaluatedDomain(Protocol):
    """Data to report on; what else it has only its task knows."""

    @property
    def name(self) -> str:
        """Name of the domain, unique in an evaluation."""


class ModelResult(Protocol):
    """What a model scored on a domain, whatever the task. Its units are videos or images."""

    @property
    def names(self) -> ScoreNames:
        """What the scores are called."""

    @property
    def scores(self) -> dict[str, float]:
        """Score → value; a domain may lack some."""

    @property
    def size(self) -> int:
        """Number of units."""

    @property
    def parts(self) -> int:
        """Number of parts of all units together, as tables count them."""

    def draws(self) -> Draws | None:
        """Return the main scores on resampled units; None with fewer than two units."""

    def notes(self, domain: Any) -> list[str]:
        """Return what a reader of the table must know of this domain, as lines."""

    def counts(self, domain: Any) -> dict[str, Any]:
        """Return what results.json says of the domain: counts, and how it is scored."""

    def per_unit(self, adapted: Any) -> list[dict[str, Any]]:
        """Return plain data of each unit, with another model's result on the same units."""

    def ranking(self) -> dict[str, float]:
        """Return the score by which units are shown as best or worst: unit → value."""

    def sheets(self, domain: Any, adapted: Any, chosen: Sequence[str]) -> dict[str, np.ndarray]:
        """Draw some units, truth beside both models' results: unit → RGB uint8 (H, W, 3)."""

    def sections(self, folder: Path, comparisons: Sequence[Comparison]) -> list[str]:
        """Write figures into a folder, and return what results.md says beside the common tables, as lines."""


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
    """A model's scores on a domain's tracked videos, with the masks they come from.

    Attributes:
        scores: name → value.
        videos: in the domain's order.
    """

    names: ClassVar[ScoreNames] = TRACKING
    scores: dict[str, float]
    videos: list[VideoResult]

    @property
    def size(self) -> int:
        """Number of videos."""
        return len(self.videos)

    @property
    def objects(self) -> int:
        """Number of objects that are scored."""
        return sum(len(video.scores) for video in self.videos)

    @property
    def parts(self) -> int:
        """Number of objects that are scored."""
        return self.objects

    @property
    def not_scored(self) -> int:
        """Number of objects that the protocol leaves out."""
        return sum(len(video.predicted) - len(video.scores) for video in self.videos)

    def by_video(self) -> list[list[ObjectScores]]:
        """Return the objects' scores, video by video."""
        return [list(video.scores.values()) for video in self.videos]

    def draws(self) -> Draws | None:
        """Return J, F and J&F on resampled videos."""
        return bootstrap(self.by_video())

    def notes(self, domain: Domain) -> list[str]:
        """Say how many objects are left out, and where DAVIS' own tool would count objects that are not there."""
        lines = []
        if self.not_scored:
            counted = f"{self.not_scored} objects are" if self.not_scored > 1 else "1 object is"
            lines.append(f"{domain.name}: {counted} on no frame that counts, and left out")
        gaps = [video for video in self.videos if len(video.scores) < max(video.scores, default=0)]
        if domain.protocol == "davis" and gaps:
            lines.append(
                f"{domain.name}: objects' numbers have gaps in {len(gaps)} videos, such as {gaps[0].video_id}; "
                "davis2017-evaluation scores missing numbers as objects too, and its means are then higher"
            )
        return lines

    def counts(self, domain: Domain) -> dict[str, Any]:
        """Return the numbers of videos and objects, and the protocol."""
        return {
            "videos": self.size,
            "objects": self.objects,
            "objects_not_scored": self.not_scored,
            "protocol": domain.protocol,
        }

    def per_unit(self, adapted: DomainResult) -> list[dict[str, Any]]:
        """Return each video's scores, and each object's."""
        pairs = zip(self.videos, adapted.videos, strict=True)
        return [_video_json(base, other) for base, other in pairs if base.scores]

    def ranking(self) -> dict[str, float]:
        """Return the headline score of each video that has one."""
        return {video.video_id: video.means()[self.names.headline] for video in self.videos if video.scores}

    def sheets(self, domain: Domain, adapted: DomainResult | None, chosen: Sequence[str]) -> dict[str, np.ndarray]:
        """Draw some frames of videos, a row for the truth and for each model."""
        models = {"base": self} if adapted is None else {"base": self, "adapted": adapted}
        predicted = {name: {v.video_id: v.predicted for v in result.videos} for name, result in models.items()}
        return {
            video.video_id: overlay_sheet(
                video,
                {"truth": true_masks(video), **{name: of[video.video_id] for name, of in predicted.items()}},
            )
            for video in domain.videos()
            if video.video_id in chosen
        }

    def sections(self, folder: Path, comparisons: Sequence[Comparison]) -> list[str]:
        """Return the table of recall and decay."""
        title = "Share of frames above 0.5 (recall), and first quarter less last quarter of the frames (decay):"
        return [title, "", statistics_table(comparisons), ""]


def statistics_table(comparisons: Sequence[Comparison]) -> str:
    """Return recall and decay, as Markdown."""
    rows = []
    for c in comparisons:
        for model, values in c.scores_by_model().items():
            cells = [c.base.names.format(name, values[name], model == "change") for name in STATISTICS]
            rows.append([c.domain.name if model == "base" else "", model, *cells])
    return aligned(["domain", "model", *(name.replace("_", " ") for name in STATISTICS)], rows, {0, 1}, markdown=True)


def _video_json(base: VideoResult, adapted: VideoResult) -> dict[str, Any]:
    """Return a video's scores, means over its objects, and each object's, means over its frames."""

    def of_object(scores: ObjectScores) -> dict[str, float]:
        return {"J": scores.J, "F": scores.F, "frames": len(scores.J_T)}

    def of_video(video: VideoResult) -> dict[str, float]:
        means = video.means()
        return {name: means[name] for name in TRACKING.main}

    return {
        "video": base.video_id,
        "base": of_video(base),
        "adapted": of_video(adapted),
        "objects": [
            {
                "object": object_id,
                "original_id": base.original_ids[object_id],
                "base": of_object(scores),
                "adapted": of_object(adapted.scores[object_id]),
            }
            for object_id, scores in base.scores.items()
        ],
    }


@dataclass(frozen=True)
class GatedResult:
    """A domain's result with a domain gate deciding.

    Attributes:
        result: the masks of the model that the domain gate chose, video by video.
        decisions: video → decision.
        learned: whether the domain gate has learned this domain.
    """

    result: ModelResult
    decisions: dict[str, Decision]
    learned: bool

    @property
    def known(self) -> int:
        """Number of videos that the domain gate assigned to one of its domains."""
        return sum(decision.domain is not None for decision in self.decisions.values())

    @property
    def wrong(self) -> int:
        """Number of wrong decisions: videos of a learned domain rejected, or of another one accepted."""
        return self.result.size - self.known if self.learned else self.known


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
    return GatedResult(DomainResult(aggregate(counted), videos), decisions, learned)


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

    domain: EvaluatedDomain
    base: ModelResult
    adapted: ModelResult | None
    images: tuple[ImageResult, ImageResult | None] | None = None
    gated: GatedResult | None = None

    def scores_by_model(self) -> dict[str, dict[str, float]]:
        """Return the scores of ``base``, and where there is an adapted model its own and their ``change``."""
        if self.adapted is None:
            return {"base": self.base.scores}
        return with_change(self.base.scores, self.adapted.scores)

    def intervals(self) -> dict[str, Intervals]:
        """Return the 95 % intervals of ``base``, ``adapted`` and ``change``; None for those that there are none of."""
        return self._intervals

    @cached_property
    def _intervals(self) -> dict[str, Intervals]:
        base = self.base.draws()
        adapted = self.adapted.draws() if self.adapted is not None else None
        return {
            "base": intervals(base),
            "adapted": intervals(adapted),
            "change": intervals(change(base, adapted)),
        }


def with_change(base: dict[str, float], adapted: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return two models' scores, and the second's less the first's."""
    return {"base": base, "adapted": adapted, "change": {name: adapted[name] - base[name] for name in base}}
