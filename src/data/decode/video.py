"""Videos, read one frame at a time in constant memory, and written.

``open_stream(path)`` opens an image, a folder of frames or a video file. Frames are RGB, uint8, (H, W, 3), upright, and
all of one size.
``VideoFrame(path, index)`` is any one frame of a video file, the same to the bit as reading from the start gives.
Video files are decoded and encoded by FFmpeg (through PyAV): https://pyav.basswood-io.com
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Protocol

import av
import av.container
import av.video.stream
import numpy as np

from ...core.errors import UserError
from .images import MAX_PIXELS, read_image, refuse_placeholder

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DEFAULT_RATE = Fraction(24)
"""Frames per second where the video does not say."""

MAX_OPEN_VIDEOS = 4
"""Video files that a process keeps open for reading single frames; the least recently used is closed first."""

MAX_FRAMES = 1_000_000
"""Videos of more frames, nine hours at 30 a second, are refused: most likely the number is wrong."""

_BT709 = 1  # in FFmpeg's numbering of matrices, primaries and transfer curves; its limited range is 1 as well


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
        with _opened(self.path) as (container, stream):
            size = None
            for index, frame in enumerate(container.decode(stream)):
                pixels = _upright(frame)
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
    with _opened(path) as (_, stream):
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


def _upright(frame: av.VideoFrame) -> np.ndarray:
    # the display matrix turns anticlockwise, as rot90 does
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(turned, dtype=np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """Open a container and its first video stream.

    What FFmpeg raises until the block ends becomes a UserError.
    """
    with _refusing_damage(path), _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _open(path: Path) -> av.container.InputContainer:
    with open(path, "rb") as file:
        refuse_placeholder(path, file.read(64))
    container = av.open(str(path))
    if not container.streams.video or container.format.name == "tty":  # FFmpeg would draw text as a terminal does
        container.close()
        raise UserError(f"{path}: there are no pictures in this file", "video.no-pictures")
    stream = container.streams.video[0]
    pixels = stream.codec_context.width * stream.codec_context.height
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a later frame may be larger than the header says
    for number, what, limit in ((pixels, "pixels a frame", MAX_PIXELS), (stream.frames, "frames", MAX_FRAMES)):
        if number > limit:
            container.close()
            raise UserError(
                f"{path}: the video has {number} {what}, over the limit of {limit}; make it smaller", "video.too-large"
            )
    return container


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "file.missing") from None
    except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: pixel formats that PyAV cannot convert
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read as a video: {reason}", "video.damaged") from None


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video file as a frame source.

    It is upright, and its pixels do not depend on what was read before.

    Reading goes on from the frame read last where that is nearer than the keyframe before this one.
    """

    path: Path
    index: int

    @property
    def name(self) -> str:
        return f"{self.path} frame {self.index}"

    @property
    def stem(self) -> str:
        return f"{self.index:05d}"

    def read(self) -> np.ndarray:
        with _refusing_damage(self.path):
            return _decoders().read(self.path, self.index)


@dataclass(frozen=True)
class VideoHeader:
    """A video file's number of frames, and their upright (height, width)."""

    count: int
    size: tuple[int, int]


def read_header(path: Path) -> VideoHeader:
    """Read what a video file holds.

    Decodes its first frame, which alone shows how the video is turned.

    Raises:
        UserError: it cannot be read, holds no frame, or more than are allowed.
    """
    with _opened(path) as (container, stream):
        count = _trusted_count(path, stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise UserError(f"{path}: the video holds no frame that can be read", "video.no-frames")
        size = _upright(first).shape[:2]
    return VideoHeader(_packet_times(*_version(path)).count if count is None else count, size)


def _trusted_count(path: Path, stream: av.video.stream.VideoStream) -> int | None:
    """Return the header's number of frames, None where the file contradicts it.

    Not every container has an index, one with an edit list hides frames, and of a broken-off file the index is whole.
    """
    entries = stream.index_entries
    shown = sum(not entry.is_discard for entry in entries)
    end = max((entry.pos + entry.size for entry in entries), default=0)
    return shown if 0 < shown == stream.frames and end <= path.stat().st_size else None


@dataclass(frozen=True)
class _PacketTimes:
    """A video's packets: how many frames they are, and when.

    ``shown`` holds the time stamps of the frames in the order of showing, ``keys`` those of the keyframes among them;
    both are None where the container has no time stamps, or not one a frame.
    """

    count: int
    shown: list[int] | None = field(repr=False)
    keys: list[int] | None = field(repr=False)


def _version(path: Path) -> tuple[Path, int, int]:
    """Return a file's path, modification time and length."""
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1024)
def _packet_times(path: Path, _changed: int, _length: int) -> _PacketTimes:
    """Read through the packets of a file, decoding none."""
    with _opened(path) as (container, stream):
        packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
        times = [(p.pts, p.is_keyframe) for p in packets if p.pts is not None]
    if len({time for time, _ in times}) < len(packets):
        return _PacketTimes(len(packets), None, None)
    return _PacketTimes(len(packets), sorted(t for t, _ in times), sorted(t for t, key in times if key))


class _Decoder:
    """An open video file that gives any frame.

    It decodes from the nearest keyframe, or goes on from its current frame.

    Without time stamps it can only count, from the first frame on.
    """

    def __init__(self, path: Path, times: _PacketTimes) -> None:
        self.path, self.times = path, times
        self._rewind()

    def _rewind(self) -> None:
        self.container = _open(self.path)
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "NONE"  # single frames gain nothing by threads, and forked processes lose them
        self._frames = self.container.decode(self.stream)
        self.next = 0

    def close(self) -> None:
        self.container.close()

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < self.times.count:
            raise UserError(
                f"{self.path}: there is no frame {index}; the video has {self.times.count}", "video.no-such-frame"
            )
        frame = self._by_counting(index) if self.times.shown is None else self._by_time(index)
        if frame is None:
            raise UserError(f"{self.path}: frame {index} is damaged", "video.damaged")
        self.next = index + 1
        return _upright(frame)

    def _by_counting(self, index: int) -> av.VideoFrame | None:
        if index < self.next:
            self.close()
            self._rewind()
        for _ in range(self.next, index):
            next(self._frames, None)
        return next(self._frames, None)

    def _by_time(self, index: int) -> av.VideoFrame | None:
        shown, keys = self.times.shown, self.times.keys
        assert shown is not None and keys is not None
        time = shown[index]
        before = bisect_right(keys, time)
        if self.next <= index and (not before or keys[before - 1] <= shown[self.next]):
            return self._forward(time)
        # containers seek by the time of decoding, so that a seek may end a keyframe too late
        for key in [*reversed(keys[:before]), min(0, shown[0])]:
            self.container.seek(key, stream=self.stream)
            self._frames = self.container.decode(self.stream)
            if (frame := self._forward(time)) is not None:
                return frame
        return None

    def _forward(self, time: int) -> av.VideoFrame | None:
        """Decode up to the frame of a time; None if there is none, or it has gone by."""
        for frame in self._frames:
            if frame.pts is not None and frame.pts >= time:
                return frame if frame.pts == time else None
        return None


class _Decoders:
    """The video files that this process has open. Threads take turns."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[Path, int, int], _Decoder] = OrderedDict()

    def read(self, path: Path, index: int) -> np.ndarray:
        key = _version(path)
        with self._lock:
            decoder = self._open.pop(key, None) or _Decoder(path, _packet_times(*key))
            try:
                pixels = decoder.read(index)
            except BaseException:  # where it stands is not known any more
                decoder.close()
                raise
            self._open[key] = decoder
            while len(self._open) > MAX_OPEN_VIDEOS:
                self._open.popitem(last=False)[1].close()
            return pixels


_of_processes = [_Decoders()]


def _decoders() -> _Decoders:
    """Return this process' own decoders.

    Those of the process it was forked from are kept, but never touched.
    """
    if _of_processes[-1].process != os.getpid():
        _of_processes.append(_Decoders())
    return _of_processes[-1]


class VideoWriter:
    """Writes an H.264 mp4 frame by frame.

    The file appears when the ``with`` block ends without an error.

    Args:
        path: of the file; an earlier one is replaced.
        rate: frames per second.
        lossless: keep every pixel as it is, in a file that is larger and that not every player shows.

    H.264 wants even sides: an odd one grows by a repeated row or column. Without frames no file is made.

    Raises:
        UserError: from any of its methods, if the file cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction = DEFAULT_RATE, lossless: bool = False) -> None:
        self.path, self.rate, self.lossless = path, rate, lossless
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._stream: av.video.stream.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        with self._refusing_failures():
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
        self._mux(picture if self.lossless else picture.reformat(format="yuv420p", dst_colorspace="ITU709"))

    def _add_stream(self, height: int, width: int) -> av.video.stream.VideoStream:
        if self.lossless:
            stream = self._container.add_stream("libx264rgb", rate=self.rate, options={"qp": "0"})
            stream.height, stream.width, stream.pix_fmt = height, width, "rgb24"
            return stream
        stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        # players guess the colours of untagged video from its size
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
        return stream

    def _mux(self, picture: av.VideoFrame | None) -> None:
        """Encode a picture, or with None what is still held back."""
        assert self._stream is not None
        with self._refusing_failures():
            self._container.mux(self._stream.encode(picture))

    @contextmanager
    def _refusing_failures(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}", "file.not-written") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None or self._stream is None:
                with suppress(av.FFmpegError, OSError):  # closing a file that is given up
                    self._container.close()
                return
            self._mux(None)
            with self._refusing_failures():
                self._container.close()
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
