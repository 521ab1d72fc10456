"""Reading and writing footage: order, orientation, laziness, and files that are not what they seem."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import struct
import threading
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from src.data.decode.video import FrameFiles, VideoFile, open_stream
from src.data.decode.video_frames import MAX_OPEN_VIDEOS, VideoFrame, read_header
from src.data.decode.video_writer import VideoWriter
from tests.errors import refuses


def corners(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture with a red top left, a green top right and a blue bottom left corner."""
    picture = np.full((height, width, 3), 90, dtype=np.uint8)
    picture[:16, :16], picture[:16, -16:], picture[-16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


def colours_at(frame: np.ndarray) -> str:
    """The colours of the corners: top left, top right, bottom left, bottom right."""
    rows, columns = (4, 4, -4, -4), (4, -4, 4, -4)
    found = [frame[y, x].astype(int) for y, x in zip(rows, columns, strict=True)]
    return "".join("RGB"[pixel.argmax()] if np.ptp(pixel) > 200 else "." for pixel in found)


@pytest.fixture
def video(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, Fraction(30000, 1001)) as writer:
        for level in (0, 50, 100, 150, 200):
            writer.write(np.maximum(corners(), np.uint8(level)) if level else corners())
    return path


def with_display_matrix(path: Path, *values: int) -> Path:
    """The mp4 with another display matrix in its track header (ISO 14496-12, 8.3.2): a b u c d v x y w."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # past the name, flags, times and numbers, and layer to volume
    assert struct.unpack(">i", content[matrix : matrix + 4]) == (0x10000,), "an upright video, to begin with"
    content[matrix : matrix + 36] = struct.pack(">9i", *values)
    path.write_bytes(content)
    return path


class TestVideoFiles:
    def test_what_is_written_is_read(self, video):
        footage = open_stream(video)
        assert isinstance(footage, VideoFile)
        assert (footage.name, footage.count, footage.rate) == ("clip", 5, Fraction(30000, 1001))
        assert footage.frame_file(12) == "00012.jpg"
        frames = list(footage)
        assert len(frames) == 5
        assert {(f.shape, f.dtype) for f in frames} == {((48, 64, 3), np.dtype(np.uint8))}
        assert np.abs(frames[0].astype(int) - corners()).mean() < 2, "colours come back"
        assert [round(f[-4, -4].mean() / 10) * 10 for f in frames] == [90, 90, 100, 150, 200], "in order"

    @pytest.mark.parametrize(
        ("matrix", "shape", "seen"),
        [
            ((0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 1 << 30), (48, 64), "RGB."),
            ((0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 1 << 30), (64, 48), "BR.G"),  # a phone held upright
            ((-0x10000, 0, 0, 0, -0x10000, 0, 64 << 16, 48 << 16, 1 << 30), (48, 64), ".BGR"),
            ((0, -0x10000, 0, 0x10000, 0, 0, 0, 64 << 16, 1 << 30), (64, 48), "G.RB"),
        ],
    )
    def test_frames_are_turned_as_the_metadata_ask(self, video, matrix, shape, seen):
        frame = next(iter(open_stream(with_display_matrix(video, *matrix))))
        assert frame.shape[:2] == shape
        assert colours_at(frame) == seen

    def test_odd_sides_grow_by_a_pixel(self, tmp_path):
        with VideoWriter(tmp_path / "odd.mp4") as writer:
            writer.write(corners(47, 63))
        (frame,) = open_stream(tmp_path / "odd.mp4")
        assert frame.shape == (48, 64, 3)
        assert colours_at(frame) == "RGB."

    @pytest.mark.parametrize(
        ("content", "code"),
        [(b"", "file.empty"), (b"no video" * 50, "video.damaged"), (b"version https://git-lfs", "file.lfs-pointer")],
    )
    def test_other_files_are_refused(self, tmp_path, content, code):
        (tmp_path / "x.mp4").write_bytes(content)
        with refuses(code, "x.mp4"):
            open_stream(tmp_path / "x.mp4")

    def test_sound_without_pictures_is_refused(self, tmp_path):
        with wave.open(str(tmp_path / "x.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(8000))
        with refuses("video.no-pictures"):
            open_stream(tmp_path / "x.wav")

    def test_damage_inside_is_told_when_it_is_reached(self, video):
        content = video.read_bytes()
        start = content.index(b"mdat") + 4
        video.write_bytes(
            content[:start] + b"\xff" * (content.index(b"moov") - 4 - start) + content[content.index(b"moov") - 4 :]
        )
        with refuses("video.damaged", "clip.mp4"):
            list(open_stream(video))


def encode(
    path: Path,
    frames: int = 40,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    start: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of a square that moves over noise, with its first time stamp at ``start``."""
    noise = np.random.default_rng(0).integers(0, 60, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=24, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            pixels = np.roll(noise, t, axis=0)
            pixels[t % 40 : t % 40 + 8, t : t + 8] = (250, 200, 10)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = start + t
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def read_by_process(frame: VideoFrame, queue: multiprocessing.Queue) -> None:
    queue.put(frame.read())


class TestSingleFrames:
    @pytest.mark.parametrize(
        ("name", "codec", "options", "start"),
        [
            ("b.mp4", "libx264", {"bf": "3", "g": "12"}, 0),
            ("open_gop.mp4", "libx264", {"bf": "3", "g": "8", "x264-params": "open-gop=1"}, 0),
            ("short_gop.mp4", "libx264", {"bf": "2", "g": "2"}, 0),
            ("late.mkv", "libx264", {"bf": "2", "g": "10"}, 500),
            ("one_key.mp4", "libx264", {"bf": "0", "g": "1000"}, 7),
            ("no_times.h264", "libx264", {"bf": "2", "g": "12"}, 0),
            ("mpeg4.avi", "mpeg4", {"bf": "2", "g": "12"}, 0),
            ("mpeg2.ts", "mpeg2video", {"bf": "2", "g": "12"}, 0),
        ],
    )
    def test_any_order_gives_what_reading_from_the_start_gives(self, tmp_path, name, codec, options, start):
        path = encode(tmp_path / name, codec=codec, options=options, start=start)
        expected = list(open_stream(path))
        assert read_header(path).count == len(expected)
        assert read_header(path).size == (48, 64)
        indices = [*range(len(expected)), *reversed(range(len(expected))), 3, 3, 4, 20, 5]
        indices += random.Random(0).choices(range(len(expected)), k=25)
        for index in indices:
            assert np.array_equal(VideoFrame(path, index).read(), expected[index]), index

    def test_frames_are_turned_as_the_metadata_ask(self, video):
        turned = with_display_matrix(video, 0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 1 << 30)
        assert read_header(turned).size == (64, 48)
        assert colours_at(VideoFrame(turned, 0).read()) == "BR.G"
        assert VideoFrame(turned, 3).read().shape == (64, 48, 3)

    def test_frames_that_an_edit_list_hides_are_not_counted(self, tmp_path):
        """An mp4 that starts in the middle of a group of pictures, as cutting without encoding makes it."""
        whole = encode(tmp_path / "whole.mp4", options={"bf": "2", "g": "12"})
        content = bytearray(whole.read_bytes())
        edit = content.index(b"elst") + 4 + 4 + 4 + 4  # past the name, version and count, and the edit's duration
        (begin,) = struct.unpack(">i", content[edit : edit + 4])
        content[edit : edit + 4] = struct.pack(">i", begin + 5 * 512)  # of 12288 a second
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(content)
        expected = list(open_stream(cut))
        assert 0 < len(expected) < 40
        assert read_header(cut).count == len(expected)
        for index in (len(expected) - 1, 0, 9, 3):
            assert np.array_equal(VideoFrame(cut, index).read(), expected[index])

    def test_a_file_that_was_broken_off_has_the_frames_that_are_left(self, tmp_path):
        front = {"movflags": "faststart"}
        whole = encode(tmp_path / "whole.mp4", options={"bf": "0", "g": "4"}, container_options=front)
        content = whole.read_bytes()
        assert content.index(b"moov") < content.index(b"mdat"), "the index comes first"
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(content[: len(content) * 2 // 3])
        assert 0 < read_header(cut).count < 40
        assert np.array_equal(VideoFrame(cut, 2).read(), VideoFrame(whole, 2).read())

    def test_only_a_few_files_stay_open(self, tmp_path):
        paths = [encode(tmp_path / f"{i}.mp4", frames=3) for i in range(MAX_OPEN_VIDEOS + 3)]
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(2):
            for path in paths:
                assert VideoFrame(path, 2).read().shape == (48, 64, 3)
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN_VIDEOS

    def test_a_file_that_is_replaced_is_read_anew(self, tmp_path):
        path = encode(tmp_path / "x.mp4", frames=3)
        first = VideoFrame(path, 0).read()
        with VideoWriter(path) as writer:
            writer.write(corners())
        assert not np.array_equal(VideoFrame(path, 0).read(), first)

    def test_threads_and_forked_processes_read_the_same(self, tmp_path):
        path = encode(tmp_path / "x.mp4", options={"bf": "3", "g": "12"})
        expected = list(open_stream(path))
        found: dict[int, np.ndarray] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: VideoFrame(path, i).read()})) for i in (30, 2, 17)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(np.array_equal(found[i], expected[i]) for i in (30, 2, 17))
        if "fork" not in multiprocessing.get_all_start_methods():
            pytest.skip("this platform cannot fork")
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        for index in (18, 3):
            child = context.Process(target=read_by_process, args=(VideoFrame(path, index), queue))
            child.start()
            assert np.array_equal(queue.get(timeout=30), expected[index])
            child.join(30)
            assert np.array_equal(VideoFrame(path, index + 1).read(), expected[index + 1]), "the parent goes on"

    def test_a_frame_is_small_and_can_be_sent(self, video):
        VideoFrame(video, 1).read()
        frame = pickle.loads(pickle.dumps(VideoFrame(video, 1)))
        assert frame == VideoFrame(video, 1)
        assert (frame.name, frame.stem) == (f"{video} frame 1", "00001")

    def test_what_cannot_be_read_is_told(self, video, tmp_path):
        with refuses("video.no-such-frame", "clip.mp4", "frame 5"):
            VideoFrame(video, 5).read()
        with refuses("file.missing", "none.mp4"):
            VideoFrame(tmp_path / "none.mp4", 0).read()
        (tmp_path / "x.mp4").write_bytes(b"no video" * 50)
        with refuses("video.damaged"):
            VideoFrame(tmp_path / "x.mp4", 0).read()
        assert VideoFrame(video, 4).read().shape == (48, 64, 3), "an error does no harm"


class TestWriter:
    def test_a_failure_leaves_the_earlier_file(self, video):
        before = video.read_bytes()
        with pytest.raises(RuntimeError), VideoWriter(video) as writer:
            writer.write(corners())
            raise RuntimeError
        assert video.read_bytes() == before
        assert [p.name for p in video.parent.iterdir()] == ["clip.mp4"]

    def test_without_frames_there_is_no_file(self, tmp_path):
        with VideoWriter(tmp_path / "none.mp4"):
            pass
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is full")
    def test_a_full_disk_is_told(self, tmp_path):
        writer = VideoWriter(tmp_path / "full.mp4")
        writer._temporary.symlink_to("/dev/full")
        with refuses("file.not-written", "full.mp4", "No space left"), writer:
            writer.write(corners())
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_told(self, video):
        with refuses("file.not-written"), VideoWriter(video / "inside.mp4"):
            pass


class TestFrameFiles:
    def test_a_folder_is_read_in_natural_order_whatever_the_extension(self, tmp_path):
        for number, name in enumerate(["frame2.PNG", "frame10.jpg", "frame9.jpeg", "a.webp"]):
            Image.new("RGB", (8, 6), (number * 10,) * 3).save(tmp_path / name)
        (tmp_path / "._frame1.png").write_bytes(b"left by macOS")
        (tmp_path / "notes.txt").write_text("no frame")
        footage = open_stream(tmp_path)
        assert isinstance(footage, FrameFiles)
        assert (footage.name, footage.count) == (tmp_path.name, 4)
        assert [footage.frame_file(i) for i in range(4)] == ["a.webp", "frame2.PNG", "frame9.jpeg", "frame10.jpg"]
        assert [round(frame.mean() / 10) for frame in footage] == [3, 0, 2, 1]

    def test_frames_are_read_one_at_a_time(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
        (tmp_path / "1.png").write_bytes(b"damaged")
        frames = iter(open_stream(tmp_path))
        assert next(frames).shape == (6, 8, 3)
        with refuses("image.unknown-type", "1.png"):
            next(frames)

    def test_one_image_is_a_video_of_one_frame(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "cat.jpg")
        footage = open_stream(tmp_path / "cat.jpg")
        assert (footage.name, footage.count, footage.frame_file(0)) == ("cat", 1, "cat.jpg")

    def test_the_davis_folder_takes_its_parents_name(self, tmp_path):
        (tmp_path / "chair" / "JPEGImages").mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "chair" / "JPEGImages" / "0.jpg")
        assert open_stream(tmp_path / "chair" / "JPEGImages").name == "chair"

    def test_frames_of_several_sizes_are_refused(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
        Image.new("RGB", (9, 6)).save(tmp_path / "1.png")
        with refuses("video.frame-size", "1.png", "9×6", "8×6"):
            list(open_stream(tmp_path))

    def test_two_files_for_one_frame_are_refused(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
        Image.new("RGB", (8, 6)).save(tmp_path / "0.jpg")
        with refuses("video.same-frame", "0.png", "0.jpg"):
            open_stream(tmp_path)

    def test_nothing_to_read_is_told(self, tmp_path):
        with refuses("video.no-frames"):
            open_stream(tmp_path)
        with refuses("file.missing"):
            open_stream(tmp_path / "none.mp4")
