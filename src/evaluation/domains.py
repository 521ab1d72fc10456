"""The data sets that an evaluation reports on: what was learned, and what must not be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import Config, MotionConfig, Protocol, SetConfig, Split
from ..data.clips.dataset import evaluation_video
from ..data.loading import load_data, load_split
from ..data.options import LoadOptions
from ..data.records import DataSet, VideoRecord
from ..data.synthetic.worlds import HELD_OUT_SEED, SOURCE, make_videos

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


def target_domain(config: Config, data: SetConfig, split: Split) -> Domain:
    """A split of one of the domains that the run learns.

    Raises:
        UserError: the split is not in the config, or its files are missing or damaged.
    """
    return domain_of(config, data.name, load_split(data, split, LoadOptions.from_config(config)))


def retention_domains(config: Config) -> list[Domain]:
    """What must not be forgotten: the bundled base's source domain (sam2_nano) and ``evaluation.domains``."""
    domains = []
    if config.model.name == "sam2_nano" and config.evaluation.source_clips:
        videos = make_videos(SOURCE, config.evaluation.source_clips, HELD_OUT_SEED, frames=8, side=128)
        domains.append(domain_of(config, SOURCE_DOMAIN, videos))
    return domains + [
        domain_of(config, domain.name, load_data(domain, LoadOptions.from_config(config)))
        for domain in config.evaluation.domains
    ]


def domain_of(config: Config, name: str, data: DataSet) -> Domain:
    """A data set as the run's settings evaluate it."""
    settings = config.evaluation
    if settings.max_images is not None:
        data = replace(data, videos=data.videos[: settings.max_images])
    return Domain(
        name, data, settings.frames, settings.max_objects, settings.max_side, config.dataset.clip.motion,
        settings.protocol,
    )  # fmt: skip
