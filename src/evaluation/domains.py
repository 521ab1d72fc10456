"""The data sets that an evaluation reports on: what was learned, and what must not be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import Config, DomainConfig, EvaluationConfig, MotionConfig, Protocol, Split
from ..data.clips import evaluation_video
from ..data.loading import load_data, load_split
from ..data.options import LoadOptions
from ..data.records import DataSet, VideoRecord
from ..data.synthetic import HELD_OUT_SEED, SOURCE, make_videos
from ..models.spec import model_spec

SOURCE_DOMAIN = SOURCE.name
"""Name of the domain that a bundled base was trained on."""


@dataclass(frozen=True)
class Domain:
    """A data set to report on, how its still images become clips, and which frames are scored.

    Attributes:
        name: name of the domain.
        data: videos and stills, as they were read.
        frames: frames of the clip that a still becomes.
        max_objects: objects scored per video, the largest ones.
        max_side: longest side of the frames of such a clip, in pixels.
        motion: the simulated motion of such a clip.
        protocol: the rule by which frames count.
    """

    name: str
    data: DataSet
    frames: int
    max_objects: int
    max_side: int
    motion: MotionConfig
    protocol: Protocol = "after_prompt"

    def videos(self) -> Iterator[VideoRecord]:
        """Yield the videos as they are evaluated; those without an object are left out."""
        return (video for _, video in self.numbered(0, 1))

    def numbered(self, first: int, step: int) -> Iterator[tuple[int, VideoRecord]]:
        """Yield every ``step``-th video from number ``first`` on, with its number."""
        for index in range(first, len(self.data), step):
            clip = self.video(index)
            if clip.objects:
                yield index, clip

    def video(self, index: int) -> VideoRecord:
        """Return a video as it is evaluated; it may be without an object."""
        video = self.data.videos[index]
        return evaluation_video(video, index, self.frames, self.max_objects, self.max_side, self.motion)


@dataclass(frozen=True)
class DomainOptions:
    """How a run reads and evaluates data sets.

    Attributes:
        evaluation: the section of the config.
        motion: the simulated motion that makes a clip of a still.
        loading: how data sets are read and checked.
        source_world: the synthetic world that the base was trained on; None where it is not a bundled one.
    """

    evaluation: EvaluationConfig
    motion: MotionConfig
    loading: LoadOptions
    source_world: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> DomainOptions:
        """Return the options of a run."""
        return cls(
            config.evaluation,
            config.dataset.clip.motion,
            LoadOptions.from_config(config),
            model_spec(config.model.name).source_world,
        )


def target_domain(data: DomainConfig, split: Split, options: DomainOptions) -> Domain:
    """Return a split of one of the domains that the run learns.

    Raises:
        UserError: the split is not in the config, or its files are missing or damaged.
    """
    return make_domain(data.name, load_split(data, split, options.loading), options)


def retention_domains(options: DomainOptions) -> list[Domain]:
    """Return what must not be forgotten: a bundled base's source domain, and ``evaluation.domains``."""
    settings = options.evaluation
    domains = []
    if options.source_world == SOURCE.name and settings.source_clips:
        videos = make_videos(SOURCE, settings.source_clips, HELD_OUT_SEED, frames=8, side=128)
        domains.append(make_domain(SOURCE_DOMAIN, videos, options))
    given = [make_domain(domain.name, load_data(domain, options.loading), options) for domain in settings.domains]
    return domains + given


def evaluation_domains(config: Config, split: Split) -> list[Domain]:
    """Return a split of the domains that the run learns, in the config's order, then what must not be forgotten.

    Raises:
        UserError: as :func:`target_domain`.
    """
    options = DomainOptions.from_config(config)
    learned = [target_domain(data, split, options) for data in config.dataset.domains]
    return [*learned, *retention_domains(options)]


def make_domain(name: str, data: DataSet, options: DomainOptions) -> Domain:
    """Return a data set as the run evaluates it: at most ``evaluation.max_images`` of its videos."""
    settings = options.evaluation
    if settings.max_images is not None:
        data = replace(data, videos=data.videos[: settings.max_images])
    return Domain(
        name, data, settings.frames, settings.max_objects, settings.max_side, options.motion, settings.protocol
    )
