"""Videos read one frame at a time, in constant memory, from an image, a folder of frames or a video file; and written.

``open_footage(path)`` says which of them a path is. Frames come as RGB, uint8, (H, W, 3), upright, all of one size.
Video files are decoded and encoded by FFmpeg (through PyAV): https://pyav.basswood-io.com
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import av.container
import av.video.stream
import numpy as np

from src.data.images import read_image, refuse_placeholder
from src.errors import UserError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DEFAULT_RATE = Fraction(24)
"""Frames per second where nothing tells."""

_BT709 = 1  # in FFmpeg's numbering of matrices, primaries and transfer curves; its limited range is 1 as well


class Footage(Protocol):
    """A video to read."""

    @property
    def name(self) -> str:
        """What outputs are called after: the file's or folder's name without its extension."""

    @property
    def count(self) -> int | None:
        """The number of frames, None where only reading to the end would tell."""

    @property
    def rate(self) -> Fraction:
        """Frames per second."""

    def frame_file(self, index: int) -> str:
        """The file name of frame ``index``: its own, or the one it would have in a folder of frames."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames in order. Raises UserError where one is damaged or of another size than the first."""


@dataclass(frozen=True)
class FrameFiles:
    """Image files as the frames of a video; one file is a video of one frame."""

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
                raise UserError(f"{path}: the frame is {_sides(frame.shape)} pixels, those before it {_sides(size)}")
            yield frame


@dataclass(frozen=True)
class VideoFile:
    """A video file; ``count`` and ``rate`` are as its header says. Frames are turned as its metadata ask."""

    path: Path
    count: int | None
    rate: Fraction

    @property
    def name(self) -> str:
        return self.path.stem

    def frame_file(self, index: int) -> str:
        return f"{index:05d}.jpg"

    def __iter__(self) -> Iterator[np.ndarray]:
        with _opened(self.path) as (container, stream):
            size = None
            for index, frame in enumerate(container.decode(stream)):
                # the display matrix turns anticlockwise, as rot90 does
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                pixels = np.ascontiguousarray(turned, dtype=np.uint8)
                size = size or pixels.shape
                if pixels.shape != size:
                    raise UserError(
                        f"{self.path}: frame {index} is {_sides(pixels.shape)} pixels, those before it {_sides(size)}"
                    )
                yield pixels
            if size is None:
                raise UserError(f"{self.path}: the video holds no frame that can be read")


def open_footage(path: str | Path) -> FrameFiles | VideoFile:
    """An image file, a folder of image files (in natural order: 2 before 10), or a video file.

    A folder called JPEGImages takes the name of the one it lies in.

    Raises:
        UserError: there is no such file, the folder holds no images, two of them differ in their extension only, or
            the file is no video.
    """
    path = Path(path)
    if path.is_dir():
        folder = path.resolve()
        # puts DATASET/JPEGImages/VIDEO and VIDEO/JPEGImages on the same footing
        return FrameFiles(folder.parent.name if folder.name == "JPEGImages" else folder.name, _frame_paths(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FrameFiles(path.stem, [path])
    with _opened(path) as (_, stream):
        return VideoFile(path, stream.frames or None, stream.average_rate or DEFAULT_RATE)


def _frame_paths(folder: Path) -> list[Path]:
    # files such as ._frame.jpg, which macOS leaves beside others' files, are no images
    paths = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not paths:
        raise UserError(f"{folder}: no frames: the folder holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))})")
    paths.sort(key=lambda p: _natural(p.name))
    by_stem: dict[str, Path] = {}
    for path in paths:
        if (twin := by_stem.setdefault(path.stem, path)) != path:
            raise UserError(f"{folder}: {twin.name} and {path.name} would be the same frame; remove one of them")
    return paths


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that orders the numbers in names by value: ``frame2`` before ``frame10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The container and its first video stream. What FFmpeg raises until the block ends becomes a UserError."""
    try:
        with open(path, "rb") as file:
            refuse_placeholder(path, file.read(64))
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: there are no pictures in this file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: pixel formats that PyAV cannot convert
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read as a video: {reason}") from None


class VideoWriter:
    """Writes an H.264 mp4 frame by frame; the file appears when the ``with`` block ends well.

    Args:
        path: of the file; an earlier one is replaced.
        rate: frames per second.

    H.264 wants even sides: an odd one grows by a repeated row or column. Without frames no file is made.

    Raises:
        UserError: from any of its methods, if the file cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction = DEFAULT_RATE) -> None:
        self.path = path
        self.rate = rate
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._stream: av.video.stream.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        with self._failures_told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._temporary), "w", format="mp4")
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add a frame: RGB, uint8, (H, W, 3), all of one size."""
        height, width = frame.shape[:2]
        frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._add_stream(*frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._mux(picture.reformat(format="yuv420p", dst_colorspace="ITU709"))

    def _add_stream(self, height: int, width: int) -> av.video.stream.VideoStream:
        stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # players guess the colours of untagged video from its size
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
        return stream

    def _mux(self, picture: av.VideoFrame | None) -> None:
        """Encode a picture, or with None what is still held back."""
        assert self._stream is not None
        with self._failures_told():
            self._container.mux(self._stream.encode(picture))

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None or self._stream is None:
                with suppress(av.FFmpegError, OSError):  # closing a file that is given up
                    self._container.close()
                return
            self._mux(None)
            with self._failures_told():
                self._container.close()
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
