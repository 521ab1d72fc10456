"""Pictures and videos for a session: frames in any order, from a file or a sample of the run's domains."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from ..config import Config, MotionConfig
from ..core.errors import UserError
from ..data.clips import animate_picture
from ..data.decode.images import ImageFile
from ..data.decode.video import FrameFiles, open_stream
from ..data.decode.video_frames import VideoFrame, read_header
from ..data.records import ArrayFrame, FrameSource
from ..evaluation.domains import Domain, DomainOptions, retention_domains, target_domain

SAMPLES = 4
"""Videos or pictures offered of each domain of a run."""

CLIP_RATE = Fraction(8)
"""Frames per second of clips that come without a rate."""

Samples = dict[str, Callable[[], "DemoInput"]]
"""Name → how to open the sample."""


class DemoInput:
    """A picture or video; it is a :class:`~src.data.decode.video.FrameStream` too.

    Args:
        name: name of the output files.
        frames: frames of one size.
        rate: frames per second.
        left_out: number of frames at the end of the video that are not among ``frames``.

    Attributes:
        size: (H, W) of the frames.

    Raises:
        UserError: the first frame cannot be read.
    """

    def __init__(self, name: str, frames: Sequence[FrameSource], rate: Fraction = CLIP_RATE, left_out: int = 0) -> None:
        self.name, self.frames, self.rate, self.left_out = name, frames, rate, left_out
        first = frames[0].read()
        self._last = (0, first)
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def frame_file(self, index: int) -> str:
        """Return the name of a frame as a file."""
        return f"{self.frames[index].stem}.jpg"

    def frame(self, index: int) -> np.ndarray:
        """Return a frame, RGB uint8 (H, W, 3); the last one is cached, since several parts of a page want the same.

        Raises:
            UserError: it cannot be read, or is of another size than the first.
        """
        last, frame = self._last
        if index != last:
            frame = self.frames[index].read()
            if frame.shape[:2] != self.size:
                raise UserError(
                    f"{self.frames[index].name}: the frame is of another size than the first one",
                    code="demo.frame-size",
                )
            self._last = (index, frame)
        return frame

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.frame(index) for index in range(self.count))


@dataclass(frozen=True)
class StillMotion:
    """How a still becomes a clip by simulated motion.

    Attributes:
        frames: number of frames.
        max_side: longest side of the frames, in pixels.
        motion: the motion.
    """

    frames: int
    max_side: int
    motion: MotionConfig

    def clip(self, still: FrameSource) -> list[FrameSource]:
        """Return the frames of a clip, the still itself first."""
        pictures = animate_picture(still.read(), self.frames, self.max_side, self.motion, np.random.default_rng(0))
        return [ArrayFrame(picture, f"{still.name} frame {t}", f"{t:05d}") for t, picture in enumerate(pictures)]


def open_input(path: str | Path, most: int, motion: StillMotion | None = None) -> DemoInput:
    """Open an image, a folder of frames or a video file.

    Args:
        path: the file or folder.
        most: the largest number of frames; later ones are left out.
        motion: how a still becomes a clip; None leaves it a still.

    Raises:
        UserError: it cannot be read as one of these.
    """
    stream = open_stream(path)
    if isinstance(stream, FrameFiles):
        frames: list[FrameSource] = [ImageFile(file) for file in stream.paths]
    else:
        frames = [VideoFrame(stream.path, index) for index in range(read_header(stream.path).count)]
    if len(frames) == 1 and motion is not None:
        frames = motion.clip(frames[0])
    rate = CLIP_RATE if isinstance(stream, FrameFiles) else stream.rate
    return DemoInput(stream.name, frames[:most], rate, max(0, len(frames) - most))


def keep_upload(path: str | Path, folder: Path) -> Path:
    """Move an uploaded file into a session's folder, and remove the one before; returns where it is."""
    place = folder / "upload"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return Path(shutil.move(path, place / Path(path).name))


def find_samples(config: Config) -> tuple[Samples, list[str]]:
    """Return some videos of each domain of a run, as they are evaluated, and why domains are missing.

    Samples of learned domains come from the validation split.
    """
    few = config.evaluation.model_copy(
        update={"max_images": SAMPLES, "source_clips": min(SAMPLES, config.evaluation.source_clips)}
    )
    options = replace(DomainOptions.from_config(config), evaluation=few)
    readers: list[Callable[[], list[Domain]]] = [
        partial(lambda data: [target_domain(data, "valid", options)], data)
        for data in config.dataset.domains
        if data.split("valid") is not None
    ]
    readers.append(partial(retention_domains, options))
    samples: Samples = {}
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
