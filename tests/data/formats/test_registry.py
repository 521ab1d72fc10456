"""What a data set is recognised as, where its annotations are looked for, and what is said when nothing fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from src.config import NamedSplit
from src.data import formats
from src.data.checks.report import data_set
from src.data.checks.validate import check
from src.data.formats import format_names, readers
from src.data.formats.reader import Location, OpenOptions
from src.data.formats.registry import open_source, recognise
from src.data.records import DataSet
from src.data.synthetic import SOURCE, make_videos
from src.data.writers import write_coco, write_davis
from tests.errors import refuses
from tests.sources import open_place, recognised
from tests.writers import write_folder, write_sav, write_tracked_coco, write_ytvis


@pytest.fixture(scope="module")
def videos() -> DataSet:
    return make_videos(SOURCE, 2, 0, frames=2, side=32)


def load(where: NamedSplit) -> DataSet:
    source = open_place(where)
    return data_set(source, check(source, workers=0))


def place(folder: Path, ann_file: Path | None = None, **more) -> NamedSplit:
    return NamedSplit(name="x", img_folder=str(folder), ann_file=None if ann_file is None else str(ann_file), **more)


WRITERS = {
    "coco": write_coco, "ytvis": write_ytvis, "davis": write_davis, "sav": write_sav, "folder": write_folder,
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("named", [True, False], ids=["named", "auto"])
def test_every_format_is_recognised_and_may_be_named(kind, named, videos, tmp_path):
    WRITERS[kind](tmp_path, videos)
    data = load(place(tmp_path, format=kind if named else "auto"))
    assert [video.video_id for video in data.videos] == [video.video_id for video in videos.videos]
    assert recognised(place(tmp_path))[0] == kind


@pytest.mark.parametrize("kind", WRITERS)
def test_wanted_videos_in_every_format(kind, videos, tmp_path):
    WRITERS[kind](tmp_path, videos)
    wanted = videos.videos[1].video_id
    (tmp_path / "val.txt").write_text(f"\n{wanted}\n")
    for names in ([wanted], str(tmp_path / "val.txt")):
        source = open_place(place(tmp_path, videos=names))
        assert [source.read(index)[0].video_id for index in range(len(source))] == [wanted]
    with refuses("data.no-such-video", "'sorce_00000'", videos.videos[0].video_id):
        open_place(place(tmp_path, videos=["sorce_00000"]))


class TestRecognition:
    def test_annotations_that_are_named_decide(self, videos, tmp_path):
        write_coco(tmp_path / "set", videos)
        write_ytvis(tmp_path / "set", videos)
        write_tracked_coco(tmp_path / "tracked", videos)
        for file, kind in {
            "set/_annotations.coco.json": "coco", "set/instances.json": "ytvis", "tracked/instances.json": "ytvis",
        }.items():  # fmt: skip
            assert recognised(place(tmp_path / "set", tmp_path / file)) == (kind, tmp_path / file)

    def test_a_masklet_file_may_be_named(self, videos, tmp_path):
        write_sav(tmp_path, videos)
        file = tmp_path / f"{videos.videos[0].video_id}_manual.json"
        assert recognised(place(tmp_path, file)) == ("sav", file)
        assert len(open_place(place(tmp_path, file))) == 1

    def test_roboflow_s_file_comes_before_masks(self, videos, tmp_path):
        write_davis(tmp_path, videos)
        assert recognised(place(tmp_path))[0] == "davis"
        write_coco(tmp_path, videos)
        assert recognised(place(tmp_path)) == ("coco", tmp_path / "_annotations.coco.json")

    @pytest.mark.parametrize("images", ["train2017", "images/train2017"])
    def test_a_folder_of_annotations_beside_the_images(self, images, videos, tmp_path):
        write_coco(tmp_path / images, videos)
        (tmp_path / "annotations").mkdir()
        content = (tmp_path / images / "_annotations.coco.json").read_text()
        (tmp_path / images / "_annotations.coco.json").rename(tmp_path / "annotations" / "any.json")
        assert recognised(place(tmp_path / images)) == ("coco", tmp_path / "annotations" / "any.json")
        (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
        with refuses("data.not-recognised") as caught:
            recognised(place(tmp_path / images))
        assert "there are 2: any.json, captions_train2017.json" in str(caught.value)
        (tmp_path / "annotations" / "instances_train2017.json").write_text(content)
        found = ("coco", tmp_path / "annotations" / "instances_train2017.json")
        assert recognised(place(tmp_path / images)) == found
        assert recognised(place(tmp_path / images, format="coco")) == found
        assert recognised(place(tmp_path / images, tmp_path / "annotations" / "any.json"))[0] == "coco"

    def test_the_folder_s_own_file_above_it(self, videos, tmp_path):
        write_coco(tmp_path / "train", videos)
        (tmp_path / "train" / "_annotations.coco.json").rename(tmp_path / "instances_train.json")
        for kind in ("auto", "coco"):
            assert recognised(place(tmp_path / "train", format=kind)) == ("coco", tmp_path / "instances_train.json")
        (tmp_path / "instances_train.json").rename(tmp_path / "instances_val.json")
        with refuses("data.not-recognised"):
            recognised(place(tmp_path / "train"))

    def test_folders_of_masks_are_of_videos_or_of_stills(self, videos, tmp_path):
        write_davis(tmp_path / "d", videos)
        write_folder(tmp_path / "f", videos)
        assert recognised(place(tmp_path / "d/JPEGImages", tmp_path / "d/Annotations"))[0] == "davis"
        assert recognised(place(tmp_path / "f/images", tmp_path / "f/masks"))[0] == "folder"
        assert recognised(place(tmp_path / "f/images"))[0] == "folder"
        name = videos.videos[0].video_id
        (tmp_path / "d/JPEGImages" / name).rename(tmp_path / "JPEGImages")
        (tmp_path / "d/Annotations" / name).rename(tmp_path / "Annotations")
        assert recognised(place(tmp_path))[0] == "davis", "one video, going by the folders' names"
        assert recognised(place(tmp_path / "JPEGImages", tmp_path / "Annotations"))[0] == "davis"

    def test_masks_among_the_images(self, videos, tmp_path):
        write_folder(tmp_path, videos)
        for mask in (tmp_path / "masks").iterdir():
            mask.rename(tmp_path / "images" / f"{mask.stem}_mask.png")
        (tmp_path / "masks").rmdir()
        assert recognised(place(tmp_path / "images"))[0] == "folder"

    def test_where_nothing_fits_it_is_told_what_was_looked_for(self, videos, tmp_path):
        write_folder(tmp_path, videos)
        empty = tmp_path / "empty"
        empty.mkdir()
        for where in (place(empty), place(tmp_path / "images", empty)):
            with refuses("data.not-recognised") as caught:
                recognised(where)
            message = str(caught.value)
            assert message.startswith(f"{empty}: no annotations found")
            assert all(reader.looks_for in message for reader in readers())

    @pytest.mark.parametrize("kind", ["auto", "coco", "davis", "folder", "sav", "ytvis"])
    def test_what_is_missing_is_told(self, kind, tmp_path):
        with refuses("data.missing-folder") as caught:
            recognised(place(tmp_path / "nowhere", format=kind))
        assert str(tmp_path / "nowhere") in str(caught.value)
        with refuses("data.missing-annotations") as caught:
            recognised(place(tmp_path, tmp_path / "nowhere.json", format=kind))


TOY = """
from src.data.formats.reader import Location, OpenOptions
from src.data.records import RLE, ArrayFrame, ObjectTrack, VideoRecord
import numpy as np


class ToySource:
    def __init__(self, location, options):
        self.name, self.files, self.issues = options.name, [location.annotations], []

    def __len__(self):
        return 1

    def read(self, index):
        pixels = np.loadtxt(self.files[0], dtype=np.uint8)
        track = ObjectTrack(1, [RLE.encode(pixels > 0)])
        return VideoRecord("toy", *pixels.shape, [ArrayFrame(np.stack([pixels] * 3, -1))], [track]), []


class ToyReader:
    name, order, looks_for = "toy", 0, "toy.txt"

    def recognise(self, location):
        file = location.annotations or location.folder / "toy.txt"
        return Location(location.folder, file) if file.name == "toy.txt" and file.exists() else None

    def open(self, location, options):
        return ToySource(location, options)


READER = ToyReader()
"""


class TestANewFormat:
    @pytest.fixture(autouse=True)
    def toy(self, tmp_path, monkeypatch):
        """The package of formats with one file more, and a folder of data."""
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "toy.py").write_text(TOY)
        monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "package")])
        np.savetxt(tmp_path / "toy.txt", np.eye(8), fmt="%d")
        yield
        sys.modules.pop("src.data.formats.toy", None)

    @pytest.mark.parametrize("name", ["auto", "toy"])
    def test_is_one_file(self, name, tmp_path):
        where = place(tmp_path, format=name)
        assert recognised(where) == ("toy", tmp_path / "toy.txt")
        (video,) = load(where).videos
        assert video.objects[0].segmentations[0].area() == 8

    def test_leaves_the_others_as_they_are(self, videos, tmp_path):
        for kind, write in WRITERS.items():
            write(tmp_path / kind, videos)
            assert recognised(place(tmp_path / kind))[0] == kind

    def test_is_a_name_that_a_config_may_have(self, tmp_path):
        with pytest.raises(ValidationError, match=f"must be one of {', '.join(['auto', *format_names()])}"):
            place(tmp_path, format="toys")
        assert "toy" in format_names()


def test_a_format_that_there_is_not_is_refused(tmp_path):
    with refuses("data.unknown-format", "'coco'"):
        recognise(Location(tmp_path), "cocoa")


def test_modules_are_called_as_their_formats():
    assert sorted(reader.name for reader in readers()) == format_names()


def test_those_with_a_sure_sign_are_asked_first():
    shipped = ["sav", "ytvis", "coco", "folder", "davis"]
    assert [reader.name for reader in readers() if reader.name in shipped] == shipped


def test_names_of_formats_import_none():
    program = "import src.data.formats as f, sys; f.format_names(); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


class TestLoading:
    def test_damage_is_summarised(self, videos, tmp_path):
        write_davis(tmp_path, videos)
        for mask in (tmp_path / "Annotations").rglob("*.png"):
            mask.write_bytes(b"")
        with refuses("data.damaged") as caught:
            load(place(tmp_path))
        assert str(caught.value).count("the file is empty") == 4

    def test_what_is_left_out_is_counted(self, videos, tmp_path):
        write_davis(tmp_path, videos)
        for mask in (tmp_path / "Annotations" / videos.videos[0].video_id).iterdir():
            mask.unlink()
        data = load(place(tmp_path))
        assert data.notes == {"videos without masks, left out": 1}
        for mask in (tmp_path / "Annotations").rglob("*.png"):
            mask.unlink()
        with refuses("data.nothing-usable", "2 videos without masks, left out"):
            load(place(tmp_path, format="davis"))


def test_real_data_of_every_format(shared_data):
    expected = {
        ("vid_puma", None): ("davis", 2),
        ("vid_vocalfolds", None): ("davis", 1),
        ("coco_flakes_microscopy/test", None): ("coco", 10),
        ("coco_cells_rle/val", None): ("coco", 5),
        ("coco_cells_rle/val", "coco_cells_rle/instances_val.json"): ("coco", 5),
        ("sav", None): ("sav", 2),
        ("odd_inputs/datumaro/mots_dataset/train", None): ("folder", 2),
    }
    for (folder, ann_file), (kind, count) in expected.items():
        where = place(shared_data(folder), None if ann_file is None else shared_data(ann_file))
        assert recognised(where)[0] == kind
        assert len(open_place(where)) == count


def test_pictures_of_formats_that_nobody_reads_are_noted(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "b.gif")
    (issue,) = open_source(Location(tmp_path / "images", tmp_path / "masks"), OpenOptions()).issues
    assert issue.severity == "note" and issue.file.endswith("b.gif") and ".gif" in issue.problem
