"""Files that were made to do harm: nothing in them runs, none leads out of its folder, none takes all memory.

Checkpoints and base weights that are damaged or would run code: ``tests/model/test_checkpoint.py``, ``test_build.py``.
Annotations of every kind of damage: ``tests/data/test_fuzz.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import src.data.decode.video
import src.data.formats.json_files
from src.config import MAX_YAML_CHARACTERS, NamedSplit, load_config
from src.core.errors import UserError
from src.data.checks.validate import check
from src.data.decode.images import read_image
from src.data.decode.segmentation import check_segmentation
from src.data.decode.video import open_stream
from src.data.decode.video_frames import read_header
from src.data.decode.video_writer import VideoWriter
from src.data.formats.json_files import ROBOFLOW, read_json
from src.data.formats.parsing import Bounds, IssueLog, open_frames
from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.synthetic import CELLS, make_videos
from src.data.unlabelled import open_unlabelled
from src.data.writers import write_coco, write_davis
from src.evaluation.predictions import write_masks
from src.lora.adapter_io import WEIGHTS_FILE, load_adapter, read_adapter_config
from src.models.sam2.build import build_model, read_weights
from src.models.sam2.streaming import MemoryBank
from src.train.trainer import Trainer
from tests.errors import refuses
from tests.sources import open_place
from tests.writers import write_folder, write_sav, write_ytvis


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def crater(tmp_path) -> Path:
    """What must not be there in the end."""
    yield tmp_path / "crater"
    assert not (tmp_path / "crater").exists()


class TestCode:
    def test_in_a_checkpoint_is_refused_by_name(self, make_config, tmp_path, crater):
        torch.save({"format_version": 1, "progress": Bomb(crater)}, tmp_path / "evil.pt")
        with refuses("torch-file.foreign-content", "evil.pt", f"{os.name}.mkdir"):
            Trainer.from_config(make_config(), tmp_path / "evil.pt")

    def test_in_a_checkpoint_that_auto_finds(self, make_config, tmp_path, crater):
        folder = tmp_path / "run" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(Bomb(crater), folder / "last.pt")
        with refuses("resume.damaged", "last.pt", f"{os.name}.mkdir"):
            Trainer.from_config(make_config(), "auto")

    def test_in_adapter_weights(self, make_config, tmp_path, crater):
        torch.save(Bomb(crater), tmp_path / WEIGHTS_FILE)
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(UserError):
            load_adapter(build_model(make_config().model), tmp_path)

    def test_in_a_memory_bank(self, tmp_path, crater):
        torch.save({"format_version": 1, "bank": Bomb(crater)}, tmp_path / "bank.pt")
        with refuses("torch-file.foreign-content", "bank.pt"):
            MemoryBank.load(tmp_path / "bank.pt")

    @pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os"])
    def test_in_a_config(self, tmp_path, crater, tag):
        (tmp_path / "evil.yaml").write_text(f"output_dir: {tag} ['{crater}']\n")
        with refuses("config.not-yaml", "evil.yaml"):
            load_config(tmp_path / "evil.yaml")
        with refuses("config.override", "output_dir", "tag:yaml.org,2002:python"):
            load_config(Path("src/configs/mope.yaml"), [f"output_dir={tag} ['{crater}']"])


def video(name: str) -> VideoRecord:
    mask_HW = np.ones((16, 16), bool)
    frame = ArrayFrame(np.zeros((16, 16, 3), np.uint8))
    return VideoRecord(name, 16, 16, [frame], [ObjectTrack(1, [RLE.encode(mask_HW)])])


class TestNamesThatLeaveTheirFolder:
    @pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
    @pytest.mark.parametrize("write", [write_coco, write_davis, write_folder, write_sav, write_ytvis])
    def test_of_a_video_that_is_written(self, tmp_path, write, name):
        name = name.replace("/tmp", str(tmp_path))
        with refuses("files.outside", "evil"):
            write(tmp_path / "a" / "b", DataSet("evil", [video(name.replace("../", "../../"))]))
        assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]

    def test_through_a_link_in_the_folder(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out" / "v").symlink_to(tmp_path / "elsewhere")
        with refuses("files.outside", str(tmp_path / "out")):
            write_masks(tmp_path / "out", video("v"), {1: [RLE.encode(np.ones((16, 16), bool))]}, exclusive=True)
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_of_the_run_in_a_checkpoint(self, make_config, tmp_path):
        trainer = Trainer.from_config(make_config())
        for name in ("../../evil", f"{tmp_path}/evil", "", "a/evil", 3.5):
            trainer.state.run_name = name
            trainer.write_checkpoint("last.pt")
            with refuses("checkpoint.not-a-run", "last.pt", repr(name)):
                Trainer.from_config(make_config(), trainer.checkpoints / "last.pt")
        assert not list(tmp_path.rglob("evil*"))

    def test_of_an_image_in_a_run(self, make_config, tiny_data, tmp_path):
        (tmp_path / "secret.jpg").write_bytes(next((tiny_data / "train").glob("*.jpg")).read_bytes())
        content = json.loads((tiny_data / "train" / "_annotations.coco.json").read_text())
        content["images"][0]["file_name"] = "../secret.jpg"
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.json").write_text(json.dumps(content))
        places = [f"dataset.train_img_folder={tmp_path / 'images'}", f"dataset.train_ann_file={tmp_path}/images/a.json"]
        with refuses("data.damaged", "../secret.jpg"):
            Trainer.from_config(make_config(*places))


def as_links(folder: Path, elsewhere: Path, pattern: str) -> int:
    """Move a folder's files of a kind elsewhere and put links in their place; returns how many."""
    files = sorted(folder.rglob(pattern))
    for number, file in enumerate(files):
        target = elsewhere / str(number) / file.name
        target.parent.mkdir(parents=True)
        file.rename(target)
        file.symlink_to(target)
    return len(files)


def image_is_sound(path: Path, folder: Path) -> bool:
    """Whether the frame can be opened; an error that names it where it cannot."""
    log = IssueLog("a")
    (frame,), _ = open_frames([path], None, log, Bounds.of(False, folder))
    assert (frame is None) == ([issue.file for issue in log.issues] == [str(path)])
    return frame is not None


class TestLinksThatLeaveTheirFolder:
    """A link that came with data may point at what is none of theirs: only the user can say that it is meant."""

    VIDEOS = make_videos(CELLS, 1, 0, frames=5, side=32)

    @pytest.mark.parametrize(
        ("write", "pattern"),
        [
            (write_coco, "*.jpg"), (write_ytvis, "*.png"), (write_sav, "*.mp4"),
            (write_davis, "JPEGImages/*/*.png"), (write_davis, "Annotations/*/*.png"),
            (write_folder, "images/*.png"), (write_folder, "masks/*.png"),
        ],
    )  # fmt: skip
    def test_of_a_file(self, tmp_path, write, pattern):
        write(tmp_path / "data", self.VIDEOS)
        assert as_links(tmp_path / "data", tmp_path / "elsewhere", pattern)
        place = NamedSplit(name="a", img_folder=str(tmp_path / "data"))
        report = check(open_place(place, 9), workers=0)
        assert not report.keep
        assert all(f"to {tmp_path / 'elsewhere'}" in error.problem for error in report.errors)
        assert "set dataset.follow_links=true" in report.errors[0].problem
        assert check(open_place(place, 9, follow_links=True), workers=0).keep

    def test_of_a_folder_of_frames(self, tmp_path):
        write_davis(tmp_path / "data", self.VIDEOS)
        (frames,) = (tmp_path / "data" / "JPEGImages").iterdir()
        frames.rename(tmp_path / "elsewhere")
        frames.symlink_to(tmp_path / "elsewhere")
        place = NamedSplit(name="a", img_folder=str(tmp_path / "data"))
        assert len(check(open_place(place, 9), workers=0).errors) == 5
        assert check(open_place(place, 9, follow_links=True), workers=0).keep

    def test_of_a_general_image(self, tmp_path):
        write_folder(tmp_path / "data", self.VIDEOS)
        as_links(tmp_path / "data", tmp_path / "elsewhere", "images/*.png")
        with refuses("data.link-leads-out", "dataset.follow_links=true"):
            open_unlabelled(tmp_path / "data")
        assert open_unlabelled(tmp_path / "data", follow_links=True).videos

    def test_is_refused_by_a_run_and_allowed_by_its_key(self, make_config, tiny_data, tmp_path):
        shutil.copytree(tiny_data / "train", tmp_path / "data")
        as_links(tmp_path / "data", tmp_path / "elsewhere", "*.jpg")
        places = [f"dataset.train_img_folder={tmp_path}/data", f"dataset.train_ann_file={tmp_path}/data/{ROBOFLOW}"]
        with refuses("data.damaged", "dataset.follow_links=true"):
            Trainer.from_config(make_config(*places))
        assert len(Trainer.from_config(make_config(*places, "dataset.follow_links=true")).task.train_sets[0]) == 5

    def test_within_the_folder_or_to_all_of_it_is_nothing_odd(self, tmp_path):
        write_folder(tmp_path / "data", self.VIDEOS)
        assert as_links(tmp_path / "data", tmp_path / "data" / ".store", "images/*.png")
        (tmp_path / "link").symlink_to(tmp_path / "data")
        place = NamedSplit(name="a", img_folder=str(tmp_path / "link"))
        report = check(open_place(place, 9), workers=0)
        assert not report.errors
        assert report.keep

    def test_to_itself_and_a_name_that_no_file_has_are_errors(self, tmp_path):
        write_folder(tmp_path / "data", self.VIDEOS)
        (image,) = (tmp_path / "data" / "images").iterdir()
        image.unlink()
        image.symlink_to(image)
        assert not image_is_sound(image, tmp_path / "data")
        assert not image_is_sound(tmp_path / "data" / "a\0b" / "c.png", tmp_path / "data")

    def test_that_lead_back_are_walked_once(self, tmp_path):
        """Otherwise two of them are 2⁴⁰ paths."""
        write_davis(tmp_path / "data", self.VIDEOS)
        for root in ("JPEGImages", "Annotations"):
            for name in ("a", "b"):
                (tmp_path / "data" / root / name).symlink_to(tmp_path / "data" / root)
        assert len(open_place(NamedSplit(name="a", img_folder=str(tmp_path / "data")), 9)) == 1


class TestVideosThatAreNone:
    """What FFmpeg could be led to by a file's contents or name, and what is no file."""

    @pytest.fixture
    def secret(self, tmp_path) -> Path:
        """A video outside the folder of the data."""
        with VideoWriter(tmp_path / "secret.mp4") as writer:
            for _ in range(3):
                writer.write(np.zeros((16, 16, 3), np.uint8))
        (tmp_path / "data").mkdir()
        return tmp_path / "secret.mp4"

    @pytest.mark.parametrize(
        "playlist",
        [
            "ffconcat version 1.0\nfile {0}\n",
            "ffconcat version 1.0\nfile ../secret.mp4\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        ],
        ids=["concat", "concat up", "m3u8", "m3u8 of a network", "dash"],
    )
    @pytest.mark.parametrize("name", ["v.mp4", "v.m3u8", "v.ffconcat"])
    def test_a_playlist_leads_nowhere(self, secret, name, playlist):
        path = secret.parent / "data" / name
        path.write_text(playlist.format(secret))
        with pytest.raises(UserError) as caught:
            open_stream(path)
        assert caught.value.code in ("video.other-format", "video.damaged") and str(path) in str(caught.value)

    @pytest.mark.parametrize("name", ["concat:x.mp4", "http:x.mp4", "-i.mp4", "%03d.mp4", "a?b#c.mp4"])
    def test_a_name_is_a_name(self, secret, monkeypatch, name):
        path = secret.rename(secret.parent / "data" / name)
        monkeypatch.chdir(path.parent)
        assert len(list(open_stream(Path(name)))) == 3

    @pytest.mark.parametrize(
        "read", [lambda path: list(open_stream(path)), read_image, lambda path: read_json(path, IssueLog("a"))]
    )
    @pytest.mark.parametrize("name", ["pipe.mp4", "pipe.png", "pipe.json"])
    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path, read, name):
        os.mkfifo(tmp_path / name)
        with refuses("file.not-regular", name):
            read(tmp_path / name)


class TestBombs:
    def test_an_image_that_would_fill_memory(self, tmp_path):
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(1_000_000))
        content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        with refuses("image.too-large", "bomb.png"):
            read_image(tmp_path / "bomb.png")

    def test_a_huge_json(self, tmp_path):
        with open(tmp_path / "huge.json", "wb") as file:
            file.truncate(src.data.formats.json_files.MAX_JSON_BYTES + 1)  # takes no room on the disk
        with refuses("data.json-too-large", "huge.json"):
            read_json(tmp_path / "huge.json", IssueLog("huge.json"))

    @pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 100_000 + "}"])
    def test_json_that_is_deep_or_has_huge_numbers(self, tmp_path, content):
        (tmp_path / "deep.json").write_text(content)
        with refuses("data.not-json", "deep.json"):
            read_json(tmp_path / "deep.json", IssueLog("deep.json"))

    @pytest.mark.parametrize(
        "rle",
        [
            {"size": [10**9, 10**9], "counts": [10**18]},
            {"size": [4, 4], "counts": [10**18]},
            {"size": [4, 4], "counts": [10**4000]},
            {"size": [4, 4], "counts": [-(10**9), 10**9 + 16]},
            {"size": [4, 4], "counts": "o" * 50 + "0"},
        ],
        ids=["size", "run", "digits", "negative", "text"],
    )
    def test_a_mask_of_absurd_size(self, rle):
        assert check_segmentation(rle, 4, 4) is not None

    @pytest.mark.parametrize(
        "content",
        [
            "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "lora: &a [*a]",
            "lora: " + "[" * 600,
            f"lora: {{rank: {'9' * 5000}}}",
            "lora: {rank: !!timestamp soon}",
        ],
        ids=["a billion laughs", "holds itself", "deep", "digits", "tag"],
    )
    def test_yaml_that_is_more_than_it_seems(self, tmp_path, content):
        (tmp_path / "bomb.yaml").write_text(content)
        with refuses("config.not-yaml", "bomb.yaml"):
            load_config(tmp_path / "bomb.yaml")

    def test_a_huge_yaml(self, tmp_path):
        (tmp_path / "bomb.yaml").write_text("x" * (MAX_YAML_CHARACTERS + 1))
        with refuses("config.not-yaml", "bomb.yaml", str(MAX_YAML_CHARACTERS)):
            load_config(tmp_path / "bomb.yaml")

    def test_aliases_in_reason_are_no_bomb(self, tmp_path):
        (tmp_path / "fine.yaml").write_text("evaluation: {frames: &n 3, max_objects: *n}")
        assert load_config(tmp_path / "fine.yaml").evaluation.max_objects == 3

    def test_a_checkpoint_that_is_packed(self, tmp_path):
        torch.save({"model": {"weight": torch.zeros(100_000)}}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
            unpacked = sum(member.file_size for member in bomb.infolist())
        with refuses("torch-file.damaged", "bomb.pt", f" {unpacked} "):
            read_weights(tmp_path / "bomb.pt")

    def test_an_adapter_config_that_is_deep(self, tmp_path):
        (tmp_path / "adapter_config.json").write_text("[" * 100_000)
        with refuses("adapter.damaged", "adapter_config.json"):
            read_adapter_config(tmp_path)

    def test_a_frame_that_is_larger_than_the_video_says(self, tmp_path, monkeypatch):
        """Two videos one after the other in one file, whose header is of the first."""
        with open(tmp_path / "bomb.ts", "wb") as bomb:
            for side in (32, 256):
                with av.open(str(tmp_path / "part.ts"), "w", format="mpegts") as container:
                    stream = container.add_stream("mpeg2video", rate=24)
                    stream.width = stream.height = side
                    frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
                    container.mux([packet for _ in range(3) for packet in stream.encode(frame)])
                    container.mux(stream.encode())
                bomb.write((tmp_path / "part.ts").read_bytes())
        with refuses("video.frame-size", "256×256", "32×32"):
            list(open_stream(tmp_path / "bomb.ts"))
        monkeypatch.setattr(src.data.decode.video, "MAX_PIXELS", 20_000)
        with refuses("video.damaged", "bomb.ts"):
            list(open_stream(tmp_path / "bomb.ts"))

    @pytest.mark.parametrize(("limit", "what"), [("MAX_FRAMES", "frames"), ("MAX_PIXELS", "pixels a frame")])
    def test_a_video_beyond_the_limits(self, tmp_path, monkeypatch, limit, what):
        with VideoWriter(tmp_path / "bomb.mp4") as writer:
            for _ in range(3):
                writer.write(np.zeros((16, 16, 3), np.uint8))
        assert read_header(tmp_path / "bomb.mp4").count == 3
        monkeypatch.setattr(src.data.decode.video, limit, 2)
        with refuses("video.too-large", "bomb.mp4", what):
            read_header(tmp_path / "bomb.mp4")
