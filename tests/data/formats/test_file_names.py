"""Names in annotations that are not quite the files': one file that fits is read, nothing outside the folder."""

from __future__ import annotations

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from src.config import NamedSplit
from src.data.formats.file_names import renamed
from tests.sources import open_coco, open_folder, open_place

NFC, NFD = (unicodedata.normalize(form, "größe.png") for form in ("NFC", "NFD"))
SQUARE = [[1, 1, 6, 1, 6, 6, 1, 6]]


def coco(folder, names, files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / file)
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": SQUARE, "bbox": [1]} for i in range(len(names))
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return open_coco(folder)


@pytest.mark.parametrize(
    ("listed", "file"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("A.PNG", "a.png"),
        ("my%20cell.png", "my cell.png"),
        ("..\\..\\label-studio\\upload\\4\\a.png", "images/a.png"),
        ("/data/local-files/?d=upload/a.png", "images/a.png"),
        ("https://host/upload/a.png?token=1", "a.png"),
    ],
)
def test_the_only_file_that_a_name_fits_is_read_and_said(tmp_path, listed, file):
    source = coco(tmp_path, [listed], [file, "b.png"])
    record, issues = source.read(0)
    assert os.path.samefile(record.frames[0].path, tmp_path / file)
    assert [(i.severity, i.problem) for i in issues] == [("repaired", "file names that only one file fits")]
    assert source.name_of(0) == file


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["/tool/a.png"], ["x/a.png", "y/a.png"]),
        (["../elsewhere/a.png"], ["b.png"]),
        (["/one/a.png", "/two/a.png"], ["a.png"]),
        (["/one/a.png", "a.png"], ["a.png"]),
    ],
    ids=["two files fit", "none fits", "two names fit it", "another image has it"],
)
def test_where_it_is_not_clear_which_file_is_meant_it_is_an_error(tmp_path, names, files):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "a.png")
    source = coco(tmp_path / "set", names, files)
    assert any(issue.severity == "error" and "image 0" in issue.entry for issue in source.issues)
    assert all(
        record.frames[0].path.parent == tmp_path / "set" for i in range(len(source)) if (record := source.read(i)[0])
    )


def write_image(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(path)


def write_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)


def as_ytvis_frames(folder, listed, file):
    write_image(folder / file)
    content = {"videos": [{"id": 1, "file_names": [listed]}], "categories": [{"id": 1, "name": "cell"}]}
    tracks = [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": [SQUARE]}]
    (folder / "tracks.json").write_text(json.dumps({**content, "annotations": tracks}))
    return folder, folder / "tracks.json"


def as_ytvis_images(folder, listed, file):
    write_image(folder / file)
    piece = {"id": 1, "image_id": 1, "category_id": 1, "track_id": 1, "segmentation": SQUARE}
    images = [{"id": 1, "video_id": 1, "file_name": listed}]
    (folder / "tracks.json").write_text(json.dumps({"images": images, "annotations": [piece], "categories": []}))
    return folder, folder / "tracks.json"


def as_panoptic(folder, listed, file):
    write_image(folder / "images" / file)
    numbers = np.zeros((8, 8, 3), np.uint8)
    numbers[2:5, 2:5] = (7, 0, 0)
    (folder / "panoptic").mkdir()
    Image.fromarray(numbers).save(folder / "panoptic" / "A.png")
    mask = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 7, "category_id": 1}]}
    content = {
        "images": [{"id": 1, "file_name": listed}],
        "annotations": [mask],
        "categories": [{"id": 1, "name": "x"}],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder / "images", folder / "panoptic.json"


def as_yolo(folder, listed, file):
    write_image(folder / file)
    (folder / "data.yaml").write_text("names: [cell]")
    (folder / f"{os.path.splitext(listed)[0]}.txt").write_text("0 0.1 0.1 0.8 0.1 0.8 0.8\n")
    return folder, None


def as_labelme(folder, listed, file):
    write_image(folder / file)
    square = {"label": "cell", "points": [[1, 1], [6, 1], [6, 6]], "shape_type": "polygon"}
    (folder / "of_it.json").write_text(json.dumps({"shapes": [square], "imagePath": listed}))
    return folder, None


def as_stills(folder, listed, file):
    write_image(folder / "images" / file)
    write_mask(folder / "masks" / listed)
    return folder / "images", folder / "masks"


def as_frames(folder, listed, file):
    write_image(folder / "JPEGImages" / "clip" / file)
    write_mask(folder / "Annotations" / "clip" / listed)
    return folder, None


@pytest.mark.parametrize(("listed", "file"), [(NFC, NFD), ("A.png", "a.png")], ids=["Unicode", "case"])
@pytest.mark.parametrize(
    "layout", [as_ytvis_frames, as_ytvis_images, as_panoptic, as_yolo, as_labelme, as_stills, as_frames]
)
def test_every_format_reads_the_only_file_that_fits(tmp_path, layout, listed, file):
    folder, annotations = layout(tmp_path, listed, file)
    place = NamedSplit(name="data", img_folder=str(folder), ann_file=None if annotations is None else str(annotations))
    source = open_place(place)
    record, issues = source.read(0)
    assert record is not None and os.path.basename(record.frames[0].path) == file
    found = [*source.issues, *issues]
    assert {"file names that only one file fits"} == {i.problem for i in found if i.severity == "repaired"}, found
    assert not [i for i in found if i.severity == "error"]


def test_names_that_two_files_fit_are_given_to_none():
    assert renamed(["A"], ["a"]) == {"A": "a"}
    assert renamed(["A.", "a."], ["x"]) == {}
    assert renamed(["STRASSE", "x"], ["straße", "strasse"]) == {}
    assert renamed(["A", "Ä"], ["a", "b"]) == {"A": "a"}
    assert renamed(["A", "a"], ["a"]) == {}


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    for folder, pixels in (("images", np.zeros((8, 8, 3), np.uint8)), ("masks", np.eye(8, dtype=np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
        os.rename(tmp_path / folder / "a.png", os.fsencode(tmp_path / folder) + b"/gr\xf6sse.png")
    source = open_folder(tmp_path / "images", tmp_path / "masks")
    record, issues = source.read(0)
    assert (record.video_id, issues) == ("gr\\xf6sse", [])
    record.video_id.encode("utf-8")


@pytest.mark.parametrize(("case", "images"), [("nfd", 6), ("label_studio", 8)])
def test_the_names_of_a_case_are_read(shared_case, case, images):
    folder = shared_case("03_file_names") / case
    source = open_coco(folder, next(folder.glob("*.json")))
    assert sum(source.read(index)[0] is not None for index in range(len(source))) == images
