"""Reading and writing footage: order, orientation, laziness, and files that are not what they seem."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.video import FrameFiles, VideoFile, VideoWriter, open_footage
from src.errors import UserError


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
        footage = open_footage(video)
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
        frame = next(iter(open_footage(with_display_matrix(video, *matrix))))
        assert frame.shape[:2] == shape
        assert colours_at(frame) == seen

    def test_odd_sides_grow_by_a_pixel(self, tmp_path):
        with VideoWriter(tmp_path / "odd.mp4") as writer:
            writer.write(corners(47, 63))
        (frame,) = open_footage(tmp_path / "odd.mp4")
        assert frame.shape == (48, 64, 3)
        assert colours_at(frame) == "RGB."

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "empty"), (b"no video" * 50, "cannot be read as a video"), (b"version https://git-lfs", "LFS")],
    )
    def test_other_files_are_refused(self, tmp_path, content, message):
        (tmp_path / "x.mp4").write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_footage(tmp_path / "x.mp4")

    def test_sound_without_pictures_is_refused(self, tmp_path):
        with wave.open(str(tmp_path / "x.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(8000))
        with pytest.raises(UserError, match="no pictures"):
            open_footage(tmp_path / "x.wav")

    def test_damage_inside_is_told_when_it_is_reached(self, video):
        content = video.read_bytes()
        start = content.index(b"mdat") + 4
        video.write_bytes(
            content[:start] + b"\xff" * (content.index(b"moov") - 4 - start) + content[content.index(b"moov") - 4 :]
        )
        with pytest.raises(UserError, match=r"clip\.mp4: "):
            list(open_footage(video))


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
        with pytest.raises(UserError, match=r"full\.mp4: cannot be written: No space left"), writer:
            writer.write(corners())
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_told(self, video):
        with pytest.raises(UserError, match="cannot be written"), VideoWriter(video / "inside.mp4"):
            pass


class TestFrameFiles:
    def test_a_folder_is_read_in_natural_order_whatever_the_extension(self, tmp_path):
        for number, name in enumerate(["frame2.PNG", "frame10.jpg", "frame9.jpeg", "a.webp"]):
            Image.new("RGB", (8, 6), (number * 10,) * 3).save(tmp_path / name)
        (tmp_path / "._frame1.png").write_bytes(b"left by macOS")
        (tmp_path / "notes.txt").write_text("no frame")
        footage = open_footage(tmp_path)
        assert isinstance(footage, FrameFiles)
        assert (footage.name, footage.count) == (tmp_path.name, 4)
        assert [footage.frame_file(i) for i in range(4)] == ["a.webp", "frame2.PNG", "frame9.jpeg", "frame10.jpg"]
        assert [round(frame.mean() / 10) for frame in footage] == [3, 0, 2, 1]

    def test_frames_are_read_one_at_a_time(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
        (tmp_path / "1.png").write_bytes(b"damaged")
        frames = iter(open_footage(tmp_path))
        assert next(frames).shape == (6, 8, 3)
        with pytest.raises(UserError, match=r"1\.png"):
            next(frames)

    def test_one_image_is_a_video_of_one_frame(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "cat.jpg")
        footage = open_footage(tmp_path / "cat.jpg")
        assert (footage.name, footage.count, footage.frame_file(0)) == ("cat", 1, "cat.jpg")

    def test_the_davis_folder_takes_its_parents_name(self, tmp_path):
        (tmp_path / "chair" / "JPEGImages").mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "chair" / "JPEGImages" / "0.jpg")
        assert open_footage(tmp_path / "chair" / "JPEGImages").name == "chair"

    def test_frames_of_several_sizes_are_refused(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
        Image.new("RGB", (9, 6)).save(tmp_path / "1.png")
        with pytest.raises(UserError, match=r"1\.png: the frame is 9×6 pixels, those before it 8×6"):
            list(open_footage(tmp_path))

    def test_two_files_for_one_frame_are_refused(self, tmp_path):
        Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
        Image.new("RGB", (8, 6)).save(tmp_path / "0.jpg")
        with pytest.raises(UserError, match="same frame"):
            open_footage(tmp_path)

    def test_nothing_to_read_is_told(self, tmp_path):
        with pytest.raises(UserError, match="no frames"):
            open_footage(tmp_path)
        with pytest.raises(UserError, match="no such file"):
            open_footage(tmp_path / "none.mp4")
