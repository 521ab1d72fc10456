"""Label Studio's JSON: brush strokes, polygons, boxes and ellipses as they were drawn; damage is named by task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from src.config import NamedSplit
from src.data.decode.brush_rle import decode_brush, encode_brush
from src.data.formats.reader import Location
from src.data.formats.registry import recognise
from tests.errors import refuses
from tests.sources import open_place

HEIGHT, WIDTH = 20, 40
RING = np.zeros((HEIGHT, WIDTH), bool)
RING[4:14, 8:20] = True
RING[7:10, 11:15] = False


def region(kind: str, label: str | None = "cell", **value: object) -> dict:
    labels = {} if label is None else {kind: [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {
        "id": str(value),
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        **size,
        "value": {**value, **labels},
    }


def task(number: int, image: str, *result: dict, **annotation: object) -> dict:
    return {
        "id": number,
        "data": {"image": image},
        "annotations": [{"result": list(result), "was_cancelled": False, **annotation}],
    }


def opened(folder: Path, *tasks: object):
    """The records of tasks beside their images, and the issues."""
    (folder / "export.json").write_text(json.dumps(tasks))
    reader, _ = recognise(Location(folder))
    assert reader.name == "label_studio"
    source = open_place(NamedSplit(name="data", img_folder=str(folder)))
    read = [source.read(index) for index in range(len(source))]
    issues = [*source.issues, *(issue for _, found in read for issue in found)]
    return [record for record, _ in read if record], issues


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path)


def test_regions_are_objects_with_their_labels(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "sub/b.png")
    image(tmp_path / "0123abcd-c.png")
    in_two = [
        region("polygon", None, points=[[0, 0], [50, 0], [50, 50]]),
        region("labels", "leaf", points=[[0, 0], [50, 0], [50, 50]]),
    ]
    in_two[1]["id"] = in_two[0]["id"]
    records, issues = opened(
        tmp_path,
        task(
            1,
            "/data/upload/7/0badcafe-a.png",
            region("brushlabels", rle=encode_brush(RING), format="rle"),
            region("rectanglelabels", "box", x=25, y=50, width=50, height=25, rotation=0),
            region("ellipselabels", x=50, y=50, radiusX=25, radiusY=50, rotation=0),
            region("keypointlabels", x=1, y=1, width=0.4),
        ),
        task(2, "/data/local-files/?d=sub/b.png", *in_two),
        task(
            3,
            "https://host/data/upload/7/0123abcd-c.png",
            region("rectanglelabels", x=50, y=50, width=25, height=50, rotation=90),
        ),
    )
    assert [record.video_id for record in records] == ["a.png", "sub/b.png", "0123abcd-c.png"]
    (brush, box, ellipse), (leaf,), (turned,) = (record.objects for record in records)
    assert [each.category for each in (brush, box, ellipse, leaf, turned)] == ["cell", "box", "cell", "leaf", "cell"]
    assert np.array_equal(brush.segmentations[0].decode(), RING)
    assert np.array_equal(np.argwhere(box.segmentations[0].decode())[[0, -1]], [[10, 10], [14, 29]])
    assert ellipse.segmentations[0].area() == pytest.approx(np.pi * 10 * 10, rel=0.05)
    assert leaf.segmentations[0].area() == pytest.approx(20 * 10 / 2, rel=0.15)
    # a quarter turn clockwise about its upper left corner (20, 10): 10 px wide and 10 high, to the left of it
    assert np.array_equal(np.argwhere(turned.segmentations[0].decode())[[0, -1]], [[10, 10], [19, 19]])
    (points,) = issues
    assert (points.severity, points.entry) == ("repaired", "a.png, result[3]")


def test_of_several_annotations_the_truth_or_the_newest_is_read(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    halves = [region("rectanglelabels", name, x=0, y=0, width=w, height=50) for name, w in (("old", 50), ("new", 100))]
    first, second = task(1, "a.png", halves[0], updated_at="2024-01-01"), task(2, "b.png", halves[0], ground_truth=True)
    for each in (first, second):
        each["annotations"].append({"result": [halves[1]], "was_cancelled": False, "updated_at": "2024-02-01"})
        each["annotations"].append({"result": [], "was_cancelled": True, "updated_at": "2024-03-01"})
    records, issues = opened(tmp_path, first, second)
    assert [record.objects[0].category for record in records] == ["new", "old"]
    assert {issue.problem for issue in issues} == {"tasks with several annotations"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (task(9, "a.png", region("brushlabels", rle=encode_brush(RING)[:40])), "ends too early"),
        (task(9, "a.png", region("brushlabels", rle=encode_brush(RING[:, 1:]))), "3120 values, 40×20 pixels have 3200"),
        (task(9, "a.png", region("brushlabels", rle=[300])), "not a list of bytes"),
        (task(9, "a.png", region("polygonlabels", points=[[1, "x"]])), "could not convert"),
        (task(9, "a.png", region("rectanglelabels", x=1)), "not that of a rectanglelabels"),
        (task(9, "none.png", region("rectanglelabels", x=1)), "there is no image 'none.png'"),
        ({"id": 9, "image": "a.png", "tag": []}, "not as \"JSON-MIN\""),
        ("text", "has no list 'annotations'"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, bad, words):
    image(tmp_path / "a.png")
    image(tmp_path / "good.png")
    good = task(1, "good.png", region("rectanglelabels", x=0, y=0, width=50, height=50))
    records, issues = opened(tmp_path, good, bad)
    assert [record.video_id for record in records] == ["good.png"]
    (error,) = [issue for issue in issues if issue.severity == "error"]
    assert words in f"{error.problem} {error.action}"
    assert "9" in error.entry or "a.png" in error.entry or "tasks[1]" in error.entry


def test_another_size_is_refused(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    records, issues = opened(tmp_path, task(1, "a.png", region("rectanglelabels", x=0, y=0, width=50, height=50)))
    assert not records
    assert "says that the image has 40×20 pixels, it has 30×20" in issues[0].problem


def test_a_file_that_is_no_list(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "export.json").write_text('{"annotations": [], "data": 1, "was_cancelled": 0}')
    with refuses("data.not-annotations"):
        open_place(NamedSplit(name="data", img_folder=str(tmp_path)))


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_brush_strokes_come_back(mask_HW):
    assert np.array_equal(decode_brush(encode_brush(mask_HW), *mask_HW.shape), mask_HW)


def test_a_large_brush_stroke_comes_back():
    mask_HW = np.zeros((300, 400), bool)
    mask_HW[1:, :] = True
    mask_HW[150, 7] = False
    assert np.array_equal(decode_brush(encode_brush(mask_HW), 300, 400), mask_HW)


def test_blocks_of_single_values_are_read():
    """As Label Studio's own encoder writes values that differ: one block with each of them."""
    header = f"{8:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    alphas = "".join(f"{value:08b}" for value in (9, 9, 9, 127, 9, 9, 9, 128))
    bits = header + "0" + "00" + f"{7:03b}" + alphas
    data = [int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8)]
    assert decode_brush(data, 1, 2).tolist() == [[False, True]]
