"""Which categories are objects and which are void, in every format that has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.formats.reader import Location, OpenOptions
from src.data.formats.registry import open_source
from src.data.records import RLE
from tests.errors import refuses

SIZE = 8
CATEGORIES = [{"id": 1, "name": "cell"}, {"id": 2, "name": "ignore"}, {"id": 3, "name": "debris"}]


def area(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


CELL, IGNORED, DEBRIS = area(0, 0, 4, 4), area(2, 0, 6, 4), area(0, 6, 8, 8)
"""The second overlaps the first."""


def rle(mask: np.ndarray) -> dict:
    return {"size": [SIZE, SIZE], "counts": RLE.encode(mask).rle["counts"].decode()}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE)).save(path)


def write_coco(folder: Path) -> None:
    picture(folder / "a.png")
    annotations = [
        {"id": kind, "image_id": 1, "category_id": kind, "segmentation": rle(mask), "bbox": [1]}
        for kind, mask in ((1, CELL), (2, IGNORED), (3, DEBRIS))
    ]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations, "categories": CATEGORIES}
    (folder / "x.json").write_text(json.dumps(content))


def write_tracks(folder: Path) -> None:
    picture(folder / "v" / "a.png")
    annotations = [
        {"id": kind, "video_id": 1, "category_id": kind, "segmentations": [rle(mask)]}
        for kind, mask in ((1, CELL), (2, IGNORED), (3, DEBRIS))
    ]
    content = {"videos": [{"id": 1, "file_names": ["v/a.png"]}], "annotations": annotations, "categories": CATEGORIES}
    (folder / "x.json").write_text(json.dumps(content))


def write_labelme(folder: Path) -> None:
    picture(folder / "a.png")
    corners = {"cell": (0, 0, 4, 4), "ignore": (2, 0, 6, 4), "debris": (0, 6, 8, 8)}
    shapes = [
        {"label": name, "shape_type": "rectangle", "points": [[x0, y0], [x1, y1]]}
        for name, (x0, y0, x1, y1) in corners.items()
    ]
    content = {"version": "5", "imagePath": "a.png", "imageHeight": SIZE, "imageWidth": SIZE, "shapes": shapes}
    (folder / "a.json").write_text(json.dumps(content))


def write_yolo(folder: Path) -> None:
    picture(folder / "a.png")
    (folder / "data.yaml").write_text("names: [cell, ignore, debris]")
    corners = [(0, 0, 4, 4), (2, 0, 6, 4), (0, 6, 8, 8)]
    lines = [f"{kind} {x0} {y0} {x1} {y0} {x1} {y1} {x0} {y1}" for kind, (x0, y0, x1, y1) in enumerate(corners)]
    shares = [" ".join([line[0], *(str(int(v) / SIZE) for v in line.split()[1:])]) for line in lines]
    (folder / "a.txt").write_text("\n".join(shares))


WRITERS = [write_coco, write_tracks, write_labelme, write_yolo]


@pytest.mark.parametrize("write", WRITERS)
def test_ignored_categories_are_void_but_where_an_object_is(tmp_path, write):
    write(tmp_path)
    options = OpenOptions(ignore_categories=["ignore"])
    record, issues = open_source(Location(tmp_path), options).read(0)
    assert [o.category for o in record.objects] == ["cell", "debris"]
    np.testing.assert_array_equal(record.void[0].decode(), IGNORED & ~record.objects[0].segmentations[0].decode())
    assert [i.severity for i in issues if "ignored categories" in i.problem] == ["repaired"]


@pytest.mark.parametrize("write", WRITERS)
def test_categories_that_are_not_wanted_are_no_objects_and_not_void(tmp_path, write):
    write(tmp_path)
    record, issues = open_source(Location(tmp_path), OpenOptions(categories=["cell"])).read(0)
    assert [o.category for o in record.objects] == ["cell"]
    assert record.void == {}
    assert sum("not wanted" in issue.problem for issue in issues) == 2


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("key", ["categories", "ignore_categories"])
def test_a_category_that_is_not_there_is_refused_with_near_names(tmp_path, write, key):
    write(tmp_path)
    with refuses("data.no-such-category", key, "'ingore'", "there are ignore"):
        open_source(Location(tmp_path), OpenOptions(**{key: ["ingore"]}))


@pytest.mark.parametrize("write", WRITERS)
def test_a_category_that_looks_like_void_is_said(tmp_path, write):
    write(tmp_path)
    (issue,) = open_source(Location(tmp_path), OpenOptions()).issues
    assert (issue.severity, issue.entry) == ("note", "ignore") and "dataset.ignore_categories" in issue.action
    assert open_source(Location(tmp_path), OpenOptions(ignore_categories=["ignore"])).issues == []


@pytest.mark.parametrize(("folder", "format"), [("masks", "folder"), ("Annotations", "davis")])
def test_of_masks_the_numbers_are_the_categories(tmp_path, folder, format):
    picture(tmp_path / "JPEGImages" / "00000.png")
    (tmp_path / folder).mkdir()
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[IGNORED], values[CELL], values[DEBRIS], values[4, 0] = 2, 1, 3, 255
    Image.fromarray(values).save(tmp_path / folder / "00000.png")
    options = OpenOptions(ignore_categories=["2"], categories=["1"])
    record, _ = open_source(Location(tmp_path / "JPEGImages", tmp_path / folder), options, format).read(0)
    assert [o.object_id for o in record.objects] == [1]
    void = values == 2
    void[4, 0] = True
    np.testing.assert_array_equal(record.void[0].decode(), void)


@pytest.mark.parametrize(("folder", "format"), [("masks", "folder"), ("Annotations", "davis")])
def test_of_masks_there_are_no_names(tmp_path, folder, format):
    picture(tmp_path / "JPEGImages" / "00000.png")
    (tmp_path / folder).mkdir()
    Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(tmp_path / folder / "00000.png")
    for options in ({"ignore_categories": ["ignore"]}, {"categories": ["cell"]}):
        with refuses("data.no-such-category", "number (12) or colour"):
            open_source(Location(tmp_path / "JPEGImages", tmp_path / folder), OpenOptions(**options), format)


@pytest.mark.parametrize(("numbers", "void"), [((1001, 10000), True), ((3, 10000), False)])
def test_the_ignore_region_of_mots_is_void(tmp_path, numbers, void):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    values = np.zeros((SIZE, SIZE), np.uint16)
    values[CELL], values[DEBRIS] = numbers
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    record, _ = open_source(Location(tmp_path / "images"), OpenOptions()).read(0)
    assert [o.object_id for o in record.objects] == [n for n in numbers if n != 10000 or not void]
    assert bool(record.void) == void
    if void:
        np.testing.assert_array_equal(record.void[0].decode(), DEBRIS)


@pytest.mark.parametrize("write", [write_coco, write_tracks])
def test_crowds_are_void(tmp_path, write):
    write(tmp_path)
    content = json.loads((tmp_path / "x.json").read_text())
    content["annotations"][1]["iscrowd"] = 1
    (tmp_path / "x.json").write_text(json.dumps(content))
    record, _ = open_source(Location(tmp_path), OpenOptions()).read(0)
    assert [o.category for o in record.objects] == ["cell", "debris"]
    np.testing.assert_array_equal(record.void[0].decode(), IGNORED & ~CELL)


def test_objects_without_categories_cannot_be_chosen_by_them(tmp_path):
    with refuses("data.no-such-category", "SA-V"):
        open_source(Location(tmp_path), OpenOptions(categories=["cell"]), "sav")


def test_the_ignored_areas_of_a_case(shared_case):
    folder = Location(shared_case("11_ignore_category"))
    source = open_source(folder, OpenOptions(ignore_categories=["ignore"]))
    records = [source.read(index)[0] for index in range(len(source))]
    assert sum(len(record.objects) for record in records) == 12
    assert sum(len(record.void) for record in records) == 6
