"""Score models domain by domain: what was gained on the new one, what was forgotten on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sam2.modeling.sam2_base import SAM2Base

from ..config import Config, MotionConfig, Prompt, Protocol, SetConfig, Split, image_size_of
from ..core.console import progress_bar
from ..core.distributed import ALL, Shard
from ..core.errors import UserError
from ..data.clips.dataset import evaluation_video
from ..data.formats.registry import load_data, load_split
from ..data.records import RLE, DataSet, ObjectTrack, VideoRecord
from ..data.synthetic.worlds import HELD_OUT_SEED, SOURCE, make_videos
from ..gating.domain_gate import Decision
from ..tasks.tracking.predict import AfterFrame, predicting, track
from .metrics import ObjectScores, aggregate, score_object
from .predictions import refuse_overlap, write_masks
from .protocol import MEANING, first_prompted_frame, one_object_per_pixel, scored_frames

SOURCE_DOMAIN = "source"


@dataclass(frozen=True)
class Domain:
    """A data set to report on, how its still images become clips, and which frames are scored."""

    name: str
    data: DataSet
    frames: int
    max_objects: int
    max_side: int
    motion: MotionConfig
    protocol: Protocol = "after_prompt"

    def videos(self) -> Iterator[VideoRecord]:
        """The videos as they are evaluated, one at a time; those without an object are left out."""
        return (video for _, video in self.numbered(0, 1))

    def numbered(self, first: int, step: int) -> Iterator[tuple[int, VideoRecord]]:
        """Every ``step``-th of the videos, from number ``first`` on, with its number."""
        for index in range(first, len(self.data), step):
            clip = self.video(index)
            if clip.objects:
                yield index, clip

    def video(self, index: int) -> VideoRecord:
        """One of the data set's videos as it is evaluated; it may be without an object."""
        video = self.data.videos[index]
        return evaluation_video(video, index, self.frames, self.max_objects, self.max_side, self.motion)


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


def target_domain(config: Config, data: SetConfig, split: Split) -> Domain:
    """A split of one of the domains that the run learns.

    Raises:
        UserError: the split is not in the config, or its files are missing or damaged.
    """
    return domain_of(config, data.name, load_split(data, split, config))


def retention_domains(config: Config) -> list[Domain]:
    """What must not be forgotten: the bundled base's source domain (sam2_nano) and ``evaluation.domains``."""
    domains = []
    if config.model.name == "sam2_nano" and config.evaluation.source_clips:
        videos = make_videos(SOURCE, config.evaluation.source_clips, HELD_OUT_SEED, frames=8, side=128)
        domains.append(domain_of(config, SOURCE_DOMAIN, videos))
    return domains + [domain_of(config, domain.name, load_data(domain, config)) for domain in config.evaluation.domains]


def domain_of(config: Config, name: str, data: DataSet) -> Domain:
    """A data set as the run's settings evaluate it."""
    settings = config.evaluation
    if settings.max_images is not None:
        data = replace(data, videos=data.videos[: settings.max_images])
    return Domain(
        name, data, settings.frames, settings.max_objects, settings.max_side, config.dataset.clip.motion,
        settings.protocol,
    )  # fmt: skip


def evaluate_domain(
    model: SAM2Base,
    domain: Domain,
    prompt: Prompt,
    label: str = "",
    masks: Path | None = None,
    after_frame: AfterFrame | None = None,
    clips: int | None = None,
    shard: Shard = ALL,
) -> DomainResult:
    """Prompt every object of a domain where it first appears, track it, and score it as the domain's protocol says.

    Args:
        model: with or without adapters in it.
        domain: what to score it on.
        prompt: how objects are prompted.
        label: of the progress bar; the domain's name if empty.
        masks: the folder to save the predicted masks in; None: they are not saved.
        after_frame: as of :func:`~src.tasks.tracking.predict.track`.
        clips: stop when so many of its videos could be scored; None: all of them.
        shard: which videos this process takes, of several that score the same domain.

    Returns:
        The scores of all videos; and their results, of which only the first process has all.

    Raises:
        UserError: there is nothing to score, a frame cannot be read, or the data do not suit the protocol.
    """
    exclusive = one_object_per_pixel(domain.protocol)
    own: list[tuple[int, VideoResult]] = []
    videos, count = domain.numbered(shard.rank, shard.size), len(range(shard.rank, len(domain.data), shard.size))
    with predicting(model) as predictor:
        total = min(count, clips or count)
        for number, video in progress_bar(videos, total=total, desc=label or domain.name, leave=False):
            if exclusive:
                refuse_overlap(video)
            predicted = track(predictor, video, prompt, exclusive, after_frame)
            if masks is not None:
                write_masks(masks, video, predicted, exclusive)
            scores = {
                obj.object_id: score_track(video, obj, predicted[obj.object_id], frames)
                for obj in video.objects
                if (frames := scored_frames(domain.protocol, video, obj, predicted[obj.object_id]))
            }
            ids = {obj.object_id: obj.original_id for obj in video.objects}
            own.append((number, VideoResult(video.video_id, predicted, scores, ids)))
            if clips is not None and sum(bool(result.scores) for _, result in own) == clips:
                break
    results = [result for _, result in sorted(shard.collect(own), key=lambda numbered: numbered[0])]
    counted = [scores for video in results for scores in video.scores.values()]
    if not counted and shard.rank == 0:
        raise UserError(
            f"{domain.name}: no object can be scored: none is on a frame that counts by evaluation.protocol "
            f"{domain.protocol}"
        )
    return DomainResult(shard.broadcast(aggregate(counted)), results)


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


def score_track(video: VideoRecord, obj: ObjectTrack, predicted: list[RLE], frames: list[int]) -> ObjectScores:
    """Score an object's predicted masks, one a frame of the video, on some of its frames."""

    def decoded(t: int) -> np.ndarray | None:
        segmentation = obj.segmentations[t]
        return None if segmentation is None else segmentation.decode()

    return score_object(
        [predicted[t].decode() for t in frames],
        [decoded(t) for t in frames],
        [video.void[t].decode() if t in video.void else None for t in frames],
    )


def describe(config: Config, prompt: Prompt) -> str:
    """One line that says what the scores mean."""
    size = image_size_of(config.model)
    return (
        f"{config.model.name} at {size} px; each object is prompted once by its true {prompt} on the first frame that "
        f"shows it and tracked; {MEANING[config.evaluation.protocol]}"
    )
