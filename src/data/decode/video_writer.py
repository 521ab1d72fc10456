"""Videos, written frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.container
import av.video.stream
import numpy as np

from ...core.errors import UserError
from .video import DEFAULT_RATE

_BT709 = 1  # in FFmpeg's numbering of matrices, primaries and transfer curves; its limited range is 1 as well


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
