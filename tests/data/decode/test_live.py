"""Frames from standard input, HTTP and RTSP: all or the newest, one at a time, and one line where nothing comes."""

from __future__ import annotations

import io
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
from PIL import Image

from src.data.decode.live import is_live, open_live
from src.data.decode.video_writer import VideoWriter
from tests.errors import refuses
from tests.footage import SIDE, piped, y4m


def grey(value: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), value, np.uint8)


@contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server on this machine, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the reader has left
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_standard_input_loses_no_frame_and_keeps_none():
    alive: list[weakref.ref[np.ndarray]] = []
    most, values = 0, []
    with piped(y4m(600)), open_live("-") as source:
        assert (source.name, source.count, source.rate) == ("stdin", None, 25)
        for frame in source:
            alive = [each for each in alive if each() is not None] + [weakref.ref(frame)]
            most = max(most, len(alive))
            values.append(int(frame[0, 0, 0]))
    assert len(values) == 600 and source.lost == 0 and source.failure is None
    assert values[:3] == [0, 1, 2], "in their order"
    assert most <= 3, "the first, the current and the last frame"


def test_every_iteration_begins_with_the_first_frame_and_loses_none():
    with piped(y4m(5)), open_live("-") as source:
        assert next(iter(source)).mean() == source.first().mean() == 0
        assert len(list(source)) == 5


def test_a_recording_over_http_loses_no_frame(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path) as writer:
        for t in range(12):
            writer.write(grey(10 * t))

    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(path.stat().st_size))
        request.end_headers()
        request.wfile.write(path.read_bytes())

    with served(send) as address, open_live(f"{address}/yard.mp4?key=secret") as source:
        assert source.name == "yard" and "secret" not in source.shown
        frames = []
        for frame in source:
            time.sleep(0.01)
            frames.append(frame.mean())
    assert len(frames) == 12 and frames == sorted(frames)


def pictures(frames: Iterator[np.ndarray], pause: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """What a camera with HTTP answers: JPEG after JPEG."""

    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
        request.end_headers()
        for frame in frames:
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "JPEG")
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {picture.tell()}\r\n\r\n"
            request.wfile.write(head.encode() + picture.getvalue() + b"\r\n")
            time.sleep(pause)

    return send


def test_of_a_live_picture_a_busy_reader_gets_the_newest():
    with served(pictures((grey(2 * t) for t in range(100)), 0.002)) as address, open_live(address) as source:
        seen = []
        for frame in source:
            seen.append(frame.mean())
            time.sleep(0.03)
    assert source.lost > 0 and len(seen) + source.lost >= 99
    assert seen == sorted(seen)


def test_what_breaks_off_keeps_the_frames_before():
    sizes = (np.full((side, side, 3), 90, np.uint8) for side in [16] * 60 + [32] * 60)
    with served(pictures(sizes, 0.002)) as address, open_live(address) as source:
        assert {frame.shape for frame in source} == {(16, 16, 3)}
    assert source.failure is not None and source.failure.code == "video.frame-size"


def test_stopping_ends_a_stream_that_goes_on():
    forever = threading.Event()

    def endless() -> Iterator[bytes]:
        yield from y4m(60)
        forever.wait(20)

    with piped(endless()), open_live("-") as source:
        for count, _ in enumerate(source, 1):
            if count == 2:
                source.stop()
        forever.set()
    assert count == 2


def test_rtsp():
    """A server of three answers: MPEG-TS in RTP, within the connection."""
    transport = io.BytesIO()
    with av.open(transport, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for t in range(50):
            picture = np.full((64, 64, 3), 4 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    packets = [transport.getvalue()[i : i + 1316] for i in range(0, len(transport.getvalue()), 1316)]
    listener = socket.create_server(("127.0.0.1", 0))
    sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as requests:
            while line := requests.readline():
                headers = dict(part.decode().strip().split(": ", 1) for part in iter(requests.readline, b"\r\n"))
                method, body, more = line.split()[0].decode(), "", ""
                if method == "DESCRIBE":
                    body, more = sdp, "Content-Type: application/sdp\r\n"
                elif method == "SETUP":
                    more = f"Transport: {headers['Transport']}\r\nSession: 1\r\n"
                elif method == "PLAY":
                    more = "Session: 1\r\n"
                head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['CSeq']}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
                connection.sendall((head + body).encode())
                if method == "PLAY":
                    for number, packet in enumerate(packets):
                        rtp = bytes([0x80, 33]) + number.to_bytes(2, "big") + (number * 90).to_bytes(4, "big") + b"same"
                        data = rtp + packet
                        connection.sendall(b"$\x00" + len(data).to_bytes(2, "big") + data)
                    return

    threading.Thread(target=serve, daemon=True).start()
    with listener, open_live(f"rtsp://user:word@127.0.0.1:{listener.getsockname()[1]}/yard") as source:
        assert source.name == "yard" and "word" not in source.shown
        frames = [frame.mean() for frame in source]
    assert frames and frames == sorted(frames)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("camera:9", "live.camera"),
        ("camera:front", "live.camera"),
        ("http://", "live.address"),
        ("http://127.0.0.1:1/x", "video.damaged"),
    ],
)
def test_what_cannot_be_opened(text, code):
    with refuses(code, text):
        open_live(text)


def test_what_is_no_video_says_what_to_do():
    with piped(iter([b"not a video, but text"])), refuses("video.other-format", "ffmpeg"):
        open_live("-")


def test_a_playlist_over_http_is_refused(tmp_path):
    secret = tmp_path / "secret.mp4"
    with VideoWriter(secret) as writer:
        writer.write(grey(9))

    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n".encode())

    with served(send) as address, refuses("video.other-format", "list.m3u8"):
        open_live(f"{address}/list.m3u8")


def test_paths_are_no_streams():
    assert not any(is_live(text) for text in ("clip.mp4", "C:/clip.mp4", "camera", "file:///clip.mp4", "./-"))
