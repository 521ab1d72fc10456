"""Frames that come while they are looked at: from a camera, the network, or standard input.

``open_live(text)`` opens ``camera:0``, an RTSP or HTTP address, or ``-``. A thread reads ahead by one frame, so memory
does not grow. Cameras and live addresses do not wait: where the reader is busy, only the newest frame is kept.
Standard input and recordings behind an address lose no frame.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import PurePosixPath
from types import TracebackType
from urllib.parse import urlsplit

import av
import av.container
import numpy as np

from ...core.errors import UserError
from .video import CONTAINERS, DEFAULT_RATE, checked_stream, refusing_damage, upright

OPEN_SECONDS, READ_SECONDS = 10.0, 30.0
"""How long an address may take to answer, and to send more."""

PIPE = "ffmpeg … -f nut - | sam2-mope predict --input -"
"""What reads everything that is not read here."""

_PROTOCOLS = {
    "http": "http,https,tcp,tls", "https": "https,http,tcp,tls",
    "rtsp": "rtsp,rtp,udp,tcp", "rtsps": "rtsps,rtsp,rtp,udp,tcp,tls",
}  # fmt: skip
"""Scheme of an address → what FFmpeg may open for it; files are none of it."""


def is_live(text: str) -> bool:
    """Return whether an input is no path: ``-``, ``camera:N``, ``rtsp://…``, ``http://…``."""
    return text == "-" or text.startswith("camera:") or text.partition("://")[0].lower() in _PROTOCOLS


def open_live(text: str) -> LiveFrames:
    """Open a camera, an address or standard input; close what is returned.

    Raises:
        UserError: there is no such camera, nothing answers, or what comes is no video.
    """
    if text == "-":
        return LiveFrames("stdin", "standard input", _open_standard_input(), waits=True)
    if text.startswith("camera:"):
        number = _camera(text)
        return LiveFrames(f"camera{number}", text, _open_camera(text, number), waits=False)
    try:
        address = urlsplit(text)
        shown, host = address._replace(netloc=address.netloc.rpartition("@")[2], query="").geturl(), address.hostname
    except ValueError:
        host = None
    if not host:
        raise UserError(f"{text.rpartition('@')[2]}: no address; write it as rtsp://HOST/PATH", "live.address")
    container = _open_address(text, shown, address.scheme.lower())
    name = re.sub(r"[^\w.-]+", "_", PurePosixPath(address.path).stem or host).strip(".") or "stream"
    return LiveFrames(name, shown, container, waits=container.duration is not None)


class LiveFrames:
    """Frames as they come, RGB uint8 (H, W, 3); a :class:`~src.data.decode.video.FrameStream`.

    Every iteration begins with the first frame, and goes on with those that nobody has taken.

    Args:
        name: for naming outputs.
        shown: what messages call it.
        container: opened, owned from now on.
        waits: whether frames wait for a busy reader, instead of giving way to newer ones.

    Attributes:
        lost: how many frames gave way to newer ones.
        failure: why frames ended after the first, where it was not their end.
    """

    count = None

    def __init__(self, name: str, shown: str, container: av.container.InputContainer, waits: bool) -> None:
        self.name, self.shown, self.lost = name, shown, 0
        self.failure: UserError | None = None
        self._container, self._waits = container, waits
        self._stream = checked_stream(container, shown)
        self._stream.thread_type = "SLICE"  # threads of whole frames would hold frames back
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE
        self._first: np.ndarray | None = None
        self._next: np.ndarray | None = None
        self._ended = self._stopped = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def frame_file(self, index: int) -> str:
        """Return the file name that a frame would have."""
        return f"{index:05d}.jpg"

    def first(self) -> np.ndarray:
        """Return the first frame, which waits. Raises UserError where none comes."""
        if self._first is None:
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name=self.name, daemon=True)
                self._thread.start()
            self._first = self._take()
            if self._first is None:
                why = "stopped before a frame came" if self._stopped else "no frame came; see that it sends a video"
                raise self.failure or UserError(f"{self.shown}: {why}", "video.no-frames")
        return self._first

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self.first()
        while (frame := self._take()) is not None:
            yield frame

    def stop(self) -> None:
        """Let frames end; safe to call from a signal handler."""
        self._stopped = True

    def __enter__(self) -> LiveFrames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is None:
            self._container.close()
        else:  # it closes the container; it may be waiting for a frame that never comes
            self._thread.join(timeout=1.0)

    def _take(self) -> np.ndarray | None:
        with self._changed:
            while self._next is None and not self._ended and not self._stopped:
                self._changed.wait(0.2)  # a signal's handler wakes nobody
            frame, self._next = (None if self._stopped else self._next), None
            self._changed.notify_all()
        return frame

    def _put(self, frame: np.ndarray) -> None:
        with self._changed:
            while self._waits and self._next is not None and not self._stopped:
                self._changed.wait(0.2)
            self.lost += self._next is not None and not self._stopped
            self._next = frame
            self._changed.notify_all()

    def _read(self) -> None:
        size = None
        try:
            with refusing_damage(self.shown), self._container:
                for packet_frame in self._container.decode(self._stream):
                    if self._stopped:
                        return
                    frame = upright(packet_frame)
                    size = size or frame.shape
                    if frame.shape != size:
                        raise UserError(
                            f"{self.shown}: frames change from {size[1]}×{size[0]} to "
                            f"{frame.shape[1]}×{frame.shape[0]} pixels; start again",
                            "video.frame-size",
                        )
                    self._put(frame)
        except UserError as error:
            self.failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


class _StandardInput:
    """Standard input for FFmpeg: no seeking, and no waiting for more than there is."""

    name = "standard input"

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        return os.read(0, size)


def _open_standard_input() -> av.container.InputContainer:
    if os.isatty(0):
        raise UserError(f"standard input is a terminal; send a video: {PIPE}", "live.terminal")
    return _opened("standard input", _StandardInput(), {"format_whitelist": ",".join(CONTAINERS)})


def _camera(text: str) -> int:
    found = re.fullmatch(r"camera:(\d{1,3})", text)
    if not found:
        raise UserError(f"{text}: cameras are camera:0, camera:1, …", "live.camera")
    return int(found[1])


def _open_camera(text: str, number: int) -> av.container.InputContainer:
    if sys.platform == "darwin":
        return _opened(text, str(number), {"framerate": "30"}, "avfoundation")
    if not sys.platform.startswith("linux"):
        raise UserError(f"{text}: not on this system; ffmpeg reads its cameras: {PIPE}", "live.camera")
    device = f"/dev/video{number}"
    if not os.path.exists(device):
        raise UserError(f"{text}: there is no {device}; see that a camera is connected", "live.camera")
    return _opened(text, device, {}, "v4l2")


def _open_address(text: str, shown: str, scheme: str) -> av.container.InputContainer:
    # playlists (HLS, DASH) name further addresses, and are left out as they are for files
    options = {"protocol_whitelist": _PROTOCOLS[scheme], "format_whitelist": ",".join((*CONTAINERS, "mpjpeg", "rtsp"))}
    if scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # UDP loses packets, and frames break
    return _opened(shown, text, options)


def _opened(
    shown: str, file: str | _StandardInput, options: dict[str, str], form: str | None = None
) -> av.container.InputContainer:
    """Open with FFmpeg, all that it raises being UserErrors."""
    with refusing_damage(shown):
        try:
            return av.open(file, mode="r", format=form, options=options, timeout=(OPEN_SECONDS, READ_SECONDS))
        except (av.error.ArgumentError, av.error.InvalidDataError):  # as FFmpeg calls formats that are not on the list
            raise UserError(
                f"{shown}: no video, or of a format that is not read, such as HLS; ffmpeg reads more: {PIPE}",
                "video.other-format",
            ) from None
