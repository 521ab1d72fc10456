"""Score models domain by domain: what was gained on the new one, what was forgotten on the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sam2.modeling.sam2_base import SAM2Base

from src.cli import progress_bar
from src.config import Config, MotionConfig, Prompt, SetConfig, Split
from src.data.clips import evaluation_video
from src.data.formats import load_data, load_split
from src.data.records import RLE, DataSet, VideoRecord
from src.data.synthetic import HELD_OUT_SEED, SOURCE, make_videos
from src.errors import UserError
from src.evaluation.metrics import Scores
from src.evaluation.predict import first_frame, predicting, track
from src.model.build import image_size_of

SOURCE_DOMAIN = "source"


@dataclass(frozen=True)
class Domain:
    """A data set to report on, and how its still images become clips."""

    name: str
    data: DataSet
    frames: int
    max_objects: int
    max_side: int
    motion: MotionConfig

    def videos(self) -> Iterator[VideoRecord]:
        """The videos as they are evaluated, one at a time; those without an object are left out."""
        for index, video in enumerate(self.data.videos):
            clip = evaluation_video(video, index, self.frames, self.max_objects, self.max_side, self.motion)
            if clip.objects:
                yield clip


@dataclass(frozen=True)
class VideoResult:
    """One video's masks (object id → one a frame) and each object's J."""

    video_id: str
    predicted: dict[int, list[RLE]]
    J_per_object: dict[int, float]


@dataclass(frozen=True)
class DomainResult:
    """A model's scores on a domain, with the masks they come from."""

    scores: dict[str, float]
    videos: list[VideoResult]

    @property
    def objects(self) -> int:
        return sum(len(video.predicted) for video in self.videos)


def target_domain(config: Config, data: SetConfig, split: Split) -> Domain:
    """A split of one of the domains that the run learns.

    Raises:
        UserError: the split is not in the config, or its files are missing or damaged.
    """
    return _domain(config, data.name, load_split(data, split, config))


def kept_domains(config: Config) -> list[Domain]:
    """What must not be forgotten: the bundled base's source domain (sam2_nano) and ``evaluation.domains``."""
    domains = []
    if config.model.name == "sam2_nano" and config.evaluation.source_clips:
        videos = make_videos(SOURCE, config.evaluation.source_clips, HELD_OUT_SEED, frames=8, side=128)
        domains.append(_domain(config, SOURCE_DOMAIN, videos))
    return domains + [_domain(config, domain.name, load_data(domain, config)) for domain in config.evaluation.domains]


def _domain(config: Config, name: str, data: DataSet) -> Domain:
    settings = config.evaluation
    if settings.max_images is not None:
        data = DataSet(data.name, data.videos[: settings.max_images], data.notes)
    return Domain(name, data, settings.frames, settings.max_objects, settings.max_side, config.dataset.clip.motion)


def evaluate_domain(model: SAM2Base, domain: Domain, prompt: Prompt, label: str = "") -> DomainResult:
    """Prompt every object of a domain where it first appears, track it, and score the frames after that one.

    Raises:
        UserError: there is nothing to score.
    """
    scores = Scores()
    results: list[VideoResult] = []
    with predicting(model) as predictor:
        bar = progress_bar(domain.videos(), total=len(domain.data), desc=label or domain.name, leave=False)
        for video in bar:
            predicted = track(predictor, video, prompt)
            J_per_object = {}
            for obj in video.objects:
                after = first_frame(video, obj.object_id) + 1
                if after == len(video):
                    continue  # seen on the last frame only: nothing was tracked
                true = [s if s is None else s.decode() for s in obj.segmentations[after:]]
                masks = [mask.decode() for mask in predicted[obj.object_id][after:]]
                J_per_object[obj.object_id] = scores.add_object(masks, true)
            results.append(VideoResult(video.video_id, predicted, J_per_object))
    if not scores.J_per_object:
        raise UserError(f"{domain.name}: no object can be scored; none is seen on a frame that others follow")
    return DomainResult(scores.summary(), results)


def describe(config: Config, prompt: Prompt) -> str:
    """One line that says what the scores mean."""
    size = image_size_of(config.model)
    return (
        f"{config.model.name} at {size} px; each object is prompted once by its true {prompt} on the first frame that "
        "shows it and tracked; scores are of the frames after that one"
    )
