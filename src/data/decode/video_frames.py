"""Single frames of video files, the same to the bit as reading from the start gives."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import av.container
import av.video.stream
import numpy as np

from ...core.errors import UserError
from .video import open_container, opened_video, refusing_damage, upright

MAX_OPEN_VIDEOS = 4
"""Video files that a process keeps open for reading single frames; the least recently used is closed first."""


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
        with refusing_damage(self.path):
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
    with opened_video(path) as (container, stream):
        count = _trusted_count(path, stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise UserError(f"{path}: the video holds no frame that can be read", "video.no-frames")
        size = upright(first).shape[:2]
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
    with opened_video(path) as (container, stream):
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
        self.container = open_container(self.path)
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
        return upright(frame)

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
