"""YOLO, LabelMe, COCO panoptic, and video files with masks: read with their class names, refused by place."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import NamedSplit
from src.core.errors import UserError
from src.data.decode.segmentation import FLAT_PARTS
from src.data.decode.video_writer import VideoWriter
from src.data.formats.reader import Location
from src.data.formats.registry import recognise
from src.data.summary import find_splits, summarize
from src.data.writers import write_palette_png
from tests.errors import refuses
from tests.sources import open_place

HEIGHT, WIDTH = 20, 40
SQUARE = [[10, 5], [20, 5], [20, 15], [10, 15]]


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path)
    return path


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def shares(points: list[list[float]]) -> str:
    return " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in points)


def opened(folder: Path, annotations: Path | None = None):
    """The data set as ``format: auto`` opens it, and its records and issues."""
    place = NamedSplit(name="data", img_folder=str(folder), ann_file=None if annotations is None else str(annotations))
    source = open_place(place)
    read = [source.read(index) for index in range(len(source))]
    return source, [record for record, _ in read if record], [*source.issues, *(i for _, found in read for i in found)]


def objects(record) -> list[tuple[str | None, int]]:
    return [(o.category, o.segmentations[0].area()) for o in record.objects]


YOLO_LAYOUTS = {
    "roboflow": ("train/images/{}.jpg", "train/labels/{}.txt", "train"),
    "ultralytics": ("images/train/{}.jpg", "labels/train/{}.txt", "images/train"),
    "beside": ("all/{}.jpg", "all/{}.txt", "all"),
    "whole": ("images/{}.jpg", "labels/{}.txt", ""),
}


@pytest.mark.parametrize(("pictures", "labels", "folder"), YOLO_LAYOUTS.values(), ids=YOLO_LAYOUTS)
@pytest.mark.parametrize("names", ["[cell, rust]", "{0: cell, 1: rust}"])
def test_yolos_polygons_are_objects_with_their_class_names(tmp_path, pictures, labels, folder, names):
    image(tmp_path / pictures.format("a"))
    text(tmp_path / labels.format("a"), f"1 {shares(SQUARE)}\n\n0 {shares([[0, 0], [4, 0], [4, 4]])}\n")
    text(tmp_path / "data.yaml", f"names: {names}\n")
    reader, _ = recognise(Location(tmp_path / folder))
    _, (record,), issues = opened(tmp_path / folder)
    assert (reader.name, record.video_id, issues) == ("yolo", "a", [])
    assert [name for name, _ in objects(record)] == ["rust", "cell"]
    assert objects(record)[0][1] == 100


@pytest.mark.parametrize(
    ("line", "severity", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", "error", "line 2: is a box, which has no mask"),
        ("0 10 10 20 10 20 20", "error", "line 2: holds coordinates outside 0–1"),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", "error", "line 2: holds coordinates outside 0–1"),
        ("0 0.1 0.1 0.2 0.1 x 0.2", "error", "line 2: is not a class and numbers"),
        ("0 0.1 0.1 0.2 0.1 0.2", "error", "line 2: polygon 1 has an odd number of coordinates"),
        ("7 0.1 0.1 0.9 0.1 0.9 0.9", "repaired", "line 2: annotations of an unknown category"),
    ],
)
def test_a_line_that_is_no_polygon_is_named(tmp_path, line, severity, said):
    image(tmp_path / "a.jpg")
    text(tmp_path / "a.txt", f"0 {shares(SQUARE)}\n{line}\n")
    text(tmp_path / "data.yaml", "names: [cell]\n")
    _, (record,), (issue,) = opened(tmp_path)
    assert (issue.severity, len(record.objects)) == (severity, 2 if severity == "repaired" else 1)
    assert f"{tmp_path / 'a.txt'}: {said}" in str(issue)


def test_yolos_images_without_labels_and_labels_without_an_image_are_counted(tmp_path):
    for name in "ab":
        image(tmp_path / "images" / f"{name}.jpg")
    for name in "ac":
        text(tmp_path / "labels" / f"{name}.txt", f"0 {shares(SQUARE)}\n")
    _, records, issues = opened(tmp_path / "images")
    assert [record.video_id for record in records] == ["a"]
    assert {issue.problem for issue in issues} >= {"images without a label file", "label files without an image"}
    assert any("classes' names" in issue.problem for issue in issues)


@pytest.mark.parametrize("place", ["labels/a.txt", "labels/b.txt", "data.yaml"])
def test_a_pipe_among_yolos_files_is_refused_and_not_waited_for(tmp_path, place):
    for name in "ab":
        image(tmp_path / "images" / f"{name}.jpg")
        text(tmp_path / "labels" / f"{name}.txt", f"0 {shares([[2, 2], [20, 2], [20, 12]])}")
    text(tmp_path / "data.yaml", "names: [cell]")
    (tmp_path / place).unlink()
    os.mkfifo(tmp_path / place)
    try:
        _, _, issues = opened(tmp_path)
    except UserError as error:
        issues = [error]
    assert [str(issue) for issue in issues if "not a file but a pipe" in str(issue)], issues


def test_a_yaml_without_names_is_refused(tmp_path):
    image(tmp_path / "a.jpg")
    text(tmp_path / "a.txt", f"0 {shares(SQUARE)}\n")
    text(tmp_path / "data.yaml", "nc: 1\n")
    with refuses("yolo.names", "data.yaml", "names"):
        opened(tmp_path)


def test_yolos_own_split_is_taken_by_init(tmp_path):
    for split in ("train", "val"):
        image(tmp_path / "images" / split / "a.jpg")
        text(tmp_path / "labels" / split / "a.txt", f"0 {shares(SQUARE)}\n")
    found = find_splits(tmp_path)
    assert set(found) == {"train", "valid"}
    assert summarize(found["valid"]).kind == "yolo"


def labelme(path: Path, shapes: list, **more) -> None:
    content = {"shapes": shapes, "imagePath": f"{path.stem}.jpg", "imageData": None}
    text(path, json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}))


def shape(kind: str, points: list, label: str = "cell", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def test_labelmes_areas_are_objects_and_groups_are_one(tmp_path):
    image(tmp_path / "a.jpg")
    patch = io.BytesIO()
    Image.fromarray(np.full((3, 4), 255, np.uint8)).save(patch, "PNG")
    shapes = [
        shape("polygon", SQUARE),
        shape("rectangle", [[2, 12], [0, 10]], "rust"),
        shape("circle", [[30, 10], [33, 10]]),
        shape("mask", [[5, 6], [8, 8]], mask=base64.b64encode(patch.getvalue()).decode()),
        shape("polygon", [[0, 0], [4, 0], [4, 4], [0, 4]], "torn", group_id=3),
        shape("rotation", [[36, 0], [40, 0], [40, 4], [36, 4]], "torn", group_id=3, direction=0.0),
        shape("point", [[1, 1]]),
    ]
    labelme(tmp_path / "a.json", shapes)
    _, (record,), (issue,) = opened(tmp_path)
    areas = objects(record)
    assert [name for name, _ in areas] == ["cell", "rust", "cell", "cell", "torn"]
    assert [area for _, area in areas[:2] + areas[3:]] == [100, 4, 12, 32]
    assert areas[2][1] == pytest.approx(np.pi * 9, rel=0.2)
    assert issue.problem == "points and lines, which enclose nothing"
    assert recognise(Location(tmp_path))[0].name == "labelme"


def test_labelmes_paths_of_another_machine_lead_to_the_image_of_that_name(tmp_path):
    image(tmp_path / "pictures" / "a.jpg")
    labelme(tmp_path / "json" / "a.json", [shape("polygon", SQUARE)], imagePath=r"C:\work\pictures\a.jpg")
    _, (record,), issues = opened(tmp_path / "pictures", tmp_path / "json")
    assert (record.video_id, issues) == ("a", [])


@pytest.mark.parametrize(
    ("shapes", "more", "said"),
    [
        ([shape("star", SQUARE[:2])], {}, "shapes[0]: is a star of 2 points"),
        ([shape("polygon", [[1, 2], [3]])], {}, "shapes[0]: its points are not pairs of numbers"),
        ([shape("mask", [[39, 19], [40, 20]], mask="????")], {}, "shapes[0]: its mask is not a picture"),
        ([shape("polygon", SQUARE)], {"imageHeight": 99}, "says that the image has 40×99 pixels, it has 40×20"),
        (None, {}, "has no list 'shapes'"),
        ([shape("polygon", SQUARE)], {"imagePath": "b.jpg"}, "there is no image 'b.jpg', nor one called c"),
    ],
)
def test_damage_in_a_labelme_file_is_named(tmp_path, shapes, more, said):
    name = "c" if "imagePath" in more else "a"
    image(tmp_path / "a.jpg")
    labelme(tmp_path / f"{name}.json", shapes, **more)
    _, records, issues = opened(tmp_path)
    assert records == []
    assert any(issue.severity == "error" and said in str(issue) for issue in issues), issues


def test_areas_that_enclose_nothing_are_left_out_and_the_rest_of_their_objects_kept(tmp_path):
    image(tmp_path / "json" / "a.jpg")
    parts = [shape("polygon", SQUARE, group_id=1), shape("polygon", SQUARE[:2], group_id=1), shape("circle", [[1, 1]])]
    labelme(tmp_path / "json" / "a.json", parts)
    image(tmp_path / "yolo" / "a.jpg")
    text(tmp_path / "yolo" / "a.txt", f"0 {shares(SQUARE)}\n0 0.1 0.1\n")
    for folder, expected in (("json", ["shapes[1]", "shapes[2]"]), ("yolo", ["line 2"])):
        _, (record,), issues = opened(tmp_path / folder)
        assert [area for _, area in objects(record)] == [100]
        flat = [issue for issue in issues if issue.problem == FLAT_PARTS]
        assert [issue.entry for issue in flat] == expected
        assert all(issue.severity == "repaired" for issue in flat)


def panoptic(folder: Path, segments: list[dict], numbers_HW: np.ndarray) -> None:
    image(folder / "images" / "a.jpg")
    masks = folder / "annotations" / "panoptic_images"
    masks.mkdir(parents=True)
    colours = np.stack([numbers_HW >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    Image.fromarray(colours).save(masks / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cell", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    text(folder / "annotations" / "panoptic_images.json", json.dumps(content))


def test_panoptic_segments_are_objects_and_crowds_and_gaps_are_void(tmp_path):
    numbers_HW = np.full((HEIGHT, WIDTH), 5, np.int64)
    numbers_HW[:4, :10], numbers_HW[4:8, :10], numbers_HW[8:10, :10] = 70000, 9, 0
    segments = [{"id": 70000, "category_id": 1}, {"id": 5, "category_id": 2}, {"id": 9, "category_id": 1, "iscrowd": 1}]
    panoptic(tmp_path, segments, numbers_HW)
    _, (record,), issues = opened(tmp_path / "images")
    assert objects(record) == [("cell", 40), ("sky", HEIGHT * WIDTH - 100)]
    assert record.void[0].area() == 60
    assert [issue.problem for issue in issues] == ["crowd segments"]
    assert recognise(Location(tmp_path / "images"))[0].name == "panoptic"


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([{"id": 5, "category_id": 1}, {"id": 6, "category_id": 1}], "segment 6: is not drawn in a.png"),
        ([], "a.png holds number 5, which no segment has"),
        ([{"id": "x"}], "a segment has no positive id"),
    ],
)
def test_a_panoptic_file_that_does_not_fit_its_mask_is_named(tmp_path, segments, said):
    panoptic(tmp_path, segments, np.full((HEIGHT, WIDTH), 5, np.int64))
    _, _, issues = opened(tmp_path / "images")
    assert any(issue.severity == "error" and said in str(issue) for issue in issues), issues


def video(folder: Path, frames: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / "clip.mp4") as writer:
        for _ in range(frames):
            writer.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))


@pytest.mark.parametrize(
    ("videos", "masks", "folder"),
    [("videos", "masks/clip", ""), ("videos", "masks/clip", "videos"), ("", "masks", ""), ("", "Annotations/clip", "")],
)
@pytest.mark.parametrize("first", [0, 1])
def test_a_video_file_goes_with_the_folder_of_masks_of_its_name(tmp_path, videos, masks, folder, first):
    video(tmp_path / videos)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:6, 3:9] = 7
    (tmp_path / masks).mkdir(parents=True)
    for frame in (0, 1, 3):
        write_palette_png(tmp_path / masks / f"{frame + first:05d}.png", labels)
    _, (record,), issues = opened(tmp_path / folder)
    assert (record.video_id, len(record), record.annotated) == ("clip", 4, frozenset({0, 1, 3}))
    assert [(o.object_id, o.segmentations[3].area()) for o in record.objects] == [(7, 24)]
    assert [issue.problem for issue in issues] == ["masks counted from 1"] * first


def test_masks_that_do_not_fit_their_video_are_named(tmp_path):
    video(tmp_path / "videos")
    labels = np.ones((HEIGHT, WIDTH), np.uint8)
    for name, values in (("00000", labels), ("00009", labels), ("cover", labels), ("00002", labels[:5])):
        (tmp_path / "masks" / "clip").mkdir(parents=True, exist_ok=True)
        write_palette_png(tmp_path / "masks" / "clip" / f"{name}.png", values)
    _, (record,), issues = opened(tmp_path)
    assert record.annotated == frozenset({0})
    said = {issue.entry: issue.problem for issue in issues if issue.severity == "error"}
    assert said["00009.png"] == "the video has 4 frames"
    assert said["cover.png"] == "its name does not end in a frame's number"
    assert said["00002.png"].startswith("the mask is 40×5 pixels")


@pytest.mark.parametrize(
    ("case", "kind", "count", "objects_each"),
    [
        ("08_other_formats/yolo", "yolo", 6, 2),
        ("08_other_formats/labelme", "labelme", 6, 2),
        ("10_video_with_mask_folder", "video_masks", 1, None),
    ],
)
def test_what_people_brought_is_read(shared_data, case, kind, count, objects_each):
    summary = summarize(find_splits(shared_data("../cases") / case)["train"])
    assert (summary.kind, summary.count, summary.errors) == (kind, count, [])
    assert objects_each is None or set(summary.objects_N) == {objects_each}
