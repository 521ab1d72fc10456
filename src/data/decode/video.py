"""Videos, read one frame at a time in constant memory.

``open_stream(path)`` opens an image, a folder of frames or a video file. Frames are RGB, uint8, (H, W, 3), upright, and
all of one size. Video files are decoded by FFmpeg (through PyAV): https://pyav.basswood-io.com
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import av.container
import av.video.stream
import numpy as np

from ...core.errors import UserError
from ...core.files import refuse_irregular
from .images import MAX_PIXELS, read_image, refuse_placeholder

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".mkv", ".mov", ".mp4", ".webm"})
DEFAULT_RATE = Fraction(24)
"""Frames per second where the video does not say."""

MAX_FRAMES = 1_000_000
"""Videos of more frames, nine hours at 30 a second, are refused: most likely the number is wrong."""


CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "asf", "flv", "ogg", "mxf", "nut",
    "h264", "hevc", "m4v", "ivf", "obu", "av1", "mjpeg", "mjpeg_2000", "yuv4mpegpipe", "gif", "apng", "dv", "vc1",
    "wtv", "rm", "tty", "wav", "mp3", "flac", "aac",
)  # fmt: skip
"""FFmpeg's names of the formats that are read. Each is a file by itself: none names other files, as playlists do."""


class FrameStream(Protocol):
    """A video to read."""

    @property
    def name(self) -> str:
        """The file's or folder's name without its extension, for naming outputs."""

    @property
    def count(self) -> int | None:
        """The number of frames, None where only reading all would show it."""

    @property
    def rate(self) -> Fraction:
        """Frames per second."""

    def frame_file(self, index: int) -> str:
        """Return the file name of frame ``index``, its own or the one it would have."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames in order.

        Raises UserError where one is damaged or of another size than the first.
        """


@dataclass(frozen=True)
class FrameFiles:
    """Image files as the frames of a video, or a single one."""

    name: str
    paths: list[Path]
    rate: Fraction = DEFAULT_RATE

    @property
    def count(self) -> int:
        return len(self.paths)

    def frame_file(self, index: int) -> str:
        return self.paths[index].name

    def __iter__(self) -> Iterator[np.ndarray]:
        size = None
        for path in self.paths:
            frame = read_image(path)
            size = size or frame.shape
            if frame.shape != size:
                raise UserError(
                    f"{path}: the frame is {_sides(frame.shape)} pixels, those before it {_sides(size)}",
                    "video.frame-size",
                )
            yield frame


@dataclass(frozen=True)
class VideoFile:
    """A video file, its frames turned as its metadata ask.

    ``count`` and ``rate`` are as its header says.
    """

    path: Path
    count: int | None
    rate: Fraction

    @property
    def name(self) -> str:
        return self.path.stem

    def frame_file(self, index: int) -> str:
        return f"{index:05d}.jpg"

    def __iter__(self) -> Iterator[np.ndarray]:
        with opened_video(self.path) as (container, stream):
            size = None
            for index, frame in enumerate(container.decode(stream)):
                pixels = upright(frame)
                size = size or pixels.shape
                if pixels.shape != size:
                    raise UserError(
                        f"{self.path}: frame {index} is {_sides(pixels.shape)} pixels, those before it {_sides(size)}",
                        "video.frame-size",
                    )
                yield pixels
            if size is None:
                raise UserError(f"{self.path}: the video holds no frame that can be read", "video.no-frames")


def open_stream(path: str | Path) -> FrameFiles | VideoFile:
    """Open an image file, a folder of image files, or a video file.

    Files of a folder are in natural order: 2 before 10.

    A folder called JPEGImages takes the name of its parent.

    Raises:
        UserError: there is no such file, the folder holds no images, two of them differ in their extension only, or
            the file is no video.
    """
    path = Path(path)
    if path.is_dir():
        folder = path.resolve()
        # puts DATASET/JPEGImages/VIDEO and VIDEO/JPEGImages on the same footing
        return FrameFiles(folder.parent.name if folder.name == "JPEGImages" else folder.name, frame_paths(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder", "file.missing")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FrameFiles(path.stem, [path])
    with opened_video(path) as (_, stream):
        return VideoFile(path, stream.frames or None, stream.average_rate or DEFAULT_RATE)


def frame_paths(folder: Path) -> list[Path]:
    """Return the image files of a folder in natural order.

    No two of them may differ in their extension only.

    Raises:
        UserError: there are no images, or two that would be the same frame.
    """
    paths = [path for path in folder.iterdir() if is_image(path)]
    if not paths:
        raise UserError(
            f"{folder}: no frames: the folder holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))})",
            "video.no-frames",
        )
    paths.sort(key=lambda p: natural(p.name))
    by_stem: dict[str, Path] = {}
    for path in paths:
        if (twin := by_stem.setdefault(path.stem, path)) != path:
            raise UserError(
                f"{folder}: {twin.name} and {path.name} would be the same frame; remove one of them", "video.same-frame"
            )
    return paths


def is_image(path: Path | os.DirEntry[str]) -> bool:
    """Return whether a name is that of an image.

    Files such as ._frame.jpg, which macOS leaves beside others, are none.
    """
    return os.path.splitext(path.name)[1].lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that orders numbers in names by value: ``frame2`` before ``frame10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"


def upright(frame: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame as RGB, turned as its metadata ask."""
    # the display matrix turns anticlockwise, as rot90 does
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(turned, dtype=np.uint8)


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """Open a container and its first video stream.

    What FFmpeg raises until the block ends becomes a UserError.
    """
    with refusing_damage(path), open_container(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def open_container(path: Path) -> av.container.InputContainer:
    """Open a video file with FFmpeg.

    Raises:
        UserError: it is empty, has no pictures, or is larger than the limits.
    """
    refuse_irregular(path)
    with open(path, "rb") as file:
        refuse_placeholder(path, file.read(64))
    # a playlist names further files, and a name such as concat:x.mp4 would be a command
    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{os.path.abspath(path)}", options=options)
    except av.error.ArgumentError:  # as FFmpeg calls a format that is not on the list
        raise UserError(
            f"{path}: damaged, or of a format that is not read, such as a playlist of other files; convert it to MP4",
            "video.other-format",
        ) from None
    checked_stream(container, path)
    return container


def checked_stream(container: av.container.InputContainer, source: Path | str) -> av.video.stream.VideoStream:
    """Return a container's first video stream, its frames limited in size; ``source`` is what messages call it.

    Raises:
        UserError: it has no pictures, or is larger than the limits; the container is closed then.
    """
    if not container.streams.video or container.format.name == "tty":  # FFmpeg would draw text as a terminal does
        container.close()
        raise UserError(f"{source}: there are no pictures in this file", "video.no-pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None:  # whatever PyAV's types say
        container.close()
        raise UserError(f"{source}: FFmpeg does not know the code of its pictures; convert it", "video.other-format")
    pixels = stream.codec_context.width * stream.codec_context.height
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a later frame may be larger than the header says
    for number, what, limit in ((pixels, "pixels a frame", MAX_PIXELS), (stream.frames, "frames", MAX_FRAMES)):
        if number > limit:
            container.close()
            raise UserError(
                f"{source}: the video has {number} {what}, over the limit of {limit}; make it smaller",
                "video.too-large",
            )
    return stream


@contextmanager
def refusing_damage(path: Path | str) -> Iterator[None]:
    """Turn what FFmpeg raises about a file until the block ends into a UserError."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "file.missing") from None
    except av.error.ExitError:  # as FFmpeg calls a time that ran out
        raise UserError(f"{path}: nothing came any more; see that it still sends", "video.timeout") from None
    except MemoryError:  # also FFmpeg's own
        raise UserError(f"{path}: memory ran out while it was read; it may be sound", "video.out-of-memory") from None
    except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: pixel formats that PyAV cannot convert
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read as a video: {reason}", "video.damaged") from None
