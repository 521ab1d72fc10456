"""What a session looks at: a picture or a video whose frames can be asked for in any order, from a file or a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from ..config import Config
from ..core.errors import UserError
from ..data.clips.dataset import still_in_motion
from ..data.decode.images import ImageFile
from ..data.decode.video import FrameFiles, VideoFrame, open_stream, read_header
from ..data.loading import place_of
from ..data.records import ArrayFrame, FrameSource
from ..evaluation.domains import Domain, retention_domains, target_domain

SAMPLES = 4
"""Videos or pictures offered of each domain of a run."""

CLIP_RATE = Fraction(8)
"""Frames per second of clips that come without a rate."""


class DemoInput:
    """A picture or video; it is a :class:`~src.data.decode.video.FrameStream` too.

    Args:
        name: what outputs are called after.
        frames: all of one size.
        rate: frames per second.
        left_out: frames at the end of the video that are not among ``frames``.

    Attributes:
        size: (H, W) of the frames.

    Raises:
        UserError: the first frame cannot be read.
    """

    def __init__(self, name: str, frames: Sequence[FrameSource], rate: Fraction = CLIP_RATE, left_out: int = 0) -> None:
        self.name, self.frames, self.rate, self.left_out = name, frames, rate, left_out
        self._last = (0, frames[0].read())
        self.size = self._last[1].shape[:2]

    @property
    def count(self) -> int:
        return len(self.frames)

    def frame_file(self, index: int) -> str:
        return f"{self.frames[index].stem}.jpg"

    def frame(self, index: int) -> np.ndarray:
        """RGB, uint8, (H, W, 3); the one asked for last is kept, as several parts of a page want the same.

        Raises:
            UserError: it cannot be read, or is of another size than the first.
        """
        last, frame = self._last
        if index != last:
            frame = self.frames[index].read()
            if frame.shape[:2] != self.size:
                raise UserError(f"{self.frames[index].name}: the frame is of another size than the first one")
            self._last = (index, frame)
        return frame

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.frame(index) for index in range(self.count))


def open_input(path: str | Path, most: int, config: Config, moving: bool) -> DemoInput:
    """An image, a folder of frames or a video file.

    Args:
        path: of it.
        most: frames of a video that are looked at, from its beginning.
        config: the run, whose ``evaluation.frames`` and simulated motion a still is given.
        moving: whether a still becomes a clip; its first frame is the still itself.

    Raises:
        UserError: it cannot be read as one of these.
    """
    footage = open_stream(path)
    if isinstance(footage, FrameFiles):
        frames: list[FrameSource] = [ImageFile(file) for file in footage.paths]
    else:
        frames = [VideoFrame(footage.path, index) for index in range(read_header(footage.path).count)]
    if len(frames) == 1 and moving:
        frames = _moved(frames[0], config)
    rate = CLIP_RATE if isinstance(footage, FrameFiles) else footage.rate
    return DemoInput(footage.name, frames[:most], rate, max(0, len(frames) - most))


def find_samples(config: Config) -> tuple[dict[str, Callable[[], DemoInput]], list[str]]:
    """Some videos of each domain of a run as they are evaluated: name → how to open it; and why there are no others.

    Of the domains that the run learns they come from the validation split.
    """
    few = config.evaluation.model_copy(
        update={"max_images": SAMPLES, "source_clips": min(SAMPLES, config.evaluation.source_clips)}
    )
    config = config.model_copy(update={"evaluation": few})
    readers: list[Callable[[], list[Domain]]] = [
        partial(lambda data: [target_domain(config, data, "valid")], data)
        for data in config.dataset.sets
        if place_of(data, "valid") is not None
    ]
    readers.append(partial(retention_domains, config))
    samples: dict[str, Callable[[], DemoInput]] = {}
    missing = []
    for read in readers:
        try:
            domains = read()
        except UserError as error:  # the page works without
            missing.append(str(error))
            continue
        for domain in domains:
            for index, video in enumerate(domain.data.videos[:SAMPLES]):
                samples[f"{domain.name}: {video.video_id}"] = partial(_sample, domain, index)
    return samples, missing


def _sample(domain: Domain, index: int) -> DemoInput:
    video = domain.video(index)
    return DemoInput(f"{domain.name}_{Path(video.video_id).name}", video.frames)


def _moved(still: FrameSource, config: Config) -> list[FrameSource]:
    settings = config.evaluation
    pictures = still_in_motion(
        still.read(), settings.frames, settings.max_side, config.dataset.clip.motion, np.random.default_rng(0)
    )
    return [ArrayFrame(picture, f"{still.name} frame {t}", f"{t:05d}") for t, picture in enumerate(pictures)]
