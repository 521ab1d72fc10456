"""COCO files as they are met: sound, sloppy (mended and counted) and damaged (refused, each entry by name)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from src.core.errors import UserError
from src.data.checks.report import data_set
from src.data.checks.validate import check
from src.data.decode.segmentation import check_segmentation, is_empty, parse_segmentation
from src.data.records import RLE, DataSet, Issue
from tests.errors import refuses
from tests.sources import open_coco

HEIGHT, WIDTH = 6, 8
SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]  # columns 1 to 3, rows 1 and 2
BLOCK = [5, 4, 7, 4, 7, 6, 5, 6]  # columns 5 and 6, rows 4 and 5


def scan_coco(*arguments: Any, **options: Any) -> tuple[DataSet, list[Issue]]:
    """What is sound of a COCO set, and its errors."""
    source = open_coco(*arguments, **options)
    report = check(source, workers=0)
    return data_set(source, report, skip_bad=True), report.errors


def load_coco(*arguments: Any, **options: Any) -> DataSet:
    """A COCO set; a UserError where it is damaged."""
    source = open_coco(*arguments, **options)
    return data_set(source, check(source, workers=0))


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


SQUARE_MASK = box_mask(1, 1, 4, 3)
BLOCK_MASK = box_mask(5, 4, 7, 6)


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO counts, column by column, zeros first."""
    runs, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            runs.append(0)
            value = bool(pixel)
        runs[-1] += 1
    return runs


def compressed(mask: np.ndarray) -> str:
    return RLE.encode(mask).rle["counts"].decode()


def annotation(number: Any = 1, image: Any = 1, segmentation: Any = (SQUARE,), **more: Any) -> dict[str, Any]:
    if isinstance(segmentation, tuple):
        segmentation = list(segmentation)
    entry = {"id": number, "image_id": image, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
    return {**entry, "bbox": [0, 0, 1, 1], **more}


def image_entry(number: Any = 1, file_name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": HEIGHT, "width": WIDTH, **more}


class Folder:
    """A folder with images and the COCO file beside them."""

    def __init__(self, path: Path):
        self.path = path
        self.ann_file = path / "_annotations.coco.json"
        self.save_image("a.png")

    def save_image(self, file_name: str, height: int = HEIGHT, width: int = WIDTH, orientation: int = 1) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        (self.path / file_name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), "red").save(self.path / file_name, exif=exif)

    def load(self, annotations: list[Any], images: list[Any] | None = None, categories: Any = None, **options: Any):
        self.write(annotations, images, categories)
        return load_coco(self.path, self.ann_file, **options)

    def write(self, annotations: list[Any], images: list[Any] | None = None, categories: Any = None) -> None:
        content = {
            "images": [image_entry()] if images is None else images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "cell"}] if categories is None else categories,
        }
        self.ann_file.write_text(json.dumps(content))

    def refusal(self, annotations: list[Any], images: list[Any] | None = None, code: str = "data.damaged") -> str:
        with refuses(code) as caught:
            self.load(annotations, images)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


# What is read


def test_an_image_becomes_a_video_of_one_frame(folder):
    dataset = folder.load([annotation(10), annotation(20, segmentation=(BLOCK,))], name="cells")
    assert dataset.name == "cells"
    assert dataset.notes == {}
    (video,) = dataset.videos
    assert (video.video_id, video.height, video.width, len(video)) == ("a", HEIGHT, WIDTH, 1)
    assert [track.object_id for track in video.objects] == [1, 2]
    assert [track.category for track in video.objects] == ["cell", "cell"]
    masks = video.masks(0)
    np.testing.assert_array_equal(masks[1], SQUARE_MASK)
    np.testing.assert_array_equal(masks[2], BLOCK_MASK)
    assert masks[1].dtype == bool
    assert video.frames[0].read().shape == (HEIGHT, WIDTH, 3)


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([SQUARE], SQUARE_MASK),
        ([SQUARE, BLOCK], SQUARE_MASK | BLOCK_MASK),
        ([SQUARE, [2, 1, 4, 1, 4, 3, 2, 3]], SQUARE_MASK),
        ([[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]], SQUARE_MASK),
        ([[-3, -2, 2, -2, 2, 1, -3, 1]], box_mask(0, 0, 2, 1)),
        (rle(compressed(SQUARE_MASK)), SQUARE_MASK),
        (rle(compressed(SQUARE_MASK).encode()), SQUARE_MASK),
        (rle(runs_of(SQUARE_MASK)), SQUARE_MASK),
        (rle([float(run) for run in runs_of(BLOCK_MASK)]), BLOCK_MASK),
        (rle(runs_of(box_mask(0, 0, 8, 6)), size=[6.0, 8.0]), box_mask(0, 0, 8, 6)),
    ],
    ids=[
        "polygon",
        "two parts",
        "overlapping parts",
        "floats",
        "clipped",
        "compressed str",
        "compressed bytes",
        "uncompressed",
        "uncompressed floats",
        "float size",
    ],
)
def test_sound_segmentations(segmentation, expected):
    assert check_segmentation(segmentation, HEIGHT, WIDTH) is None
    np.testing.assert_array_equal(parse_segmentation(segmentation, HEIGHT, WIDTH).decode(), expected)


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[], []], {}, ""])
def test_empty_segmentations(segmentation):
    assert is_empty(segmentation)
    assert check_segmentation(segmentation, HEIGHT, WIDTH) == "the segmentation is empty"


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 4, 1, 4, 3, 1]], "odd number of coordinates (7)"),
        ([[1, 1, 4, 1]], "polygon 1 has fewer than 3 points (2)"),
        ([SQUARE, [1, 1]], "polygon 2 has fewer than 3 points (1)"),
        ([SQUARE, []], "polygon 2 has fewer than 3 points (0)"),
        ([[1, 1, float("nan"), 1, 4, 3]], "coordinate nan"),
        ([[1, 1, float("inf"), 1, 4, 3]], "coordinate inf"),
        ([[1, 1, 1e9, 1, 4, 3]], "coordinate 1000000000.0, on an image of 8×6"),
        ([[1, 1, 10**400, 1, 4, 3]], "coordinate 1000"),
        ([[1, 1, "4", 1, 4, 3]], "not a number: '4'"),
        ([[1, 1, None, 1, 4, 3]], "not a number: None"),
        ([[1, 1, True, 1, 4, 3]], "not a number: True"),
        ([[[1, 1], [4, 1], [4, 3]]], "not a number: [1, 1]"),
        (SQUARE, "in a list: [["),
        ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.5]], "normalised"),
        ("polygon", "of type str"),
        (3, "of type int"),
        ({"size": [HEIGHT, WIDTH]}, "'size' and 'counts'"),
        ({"counts": compressed(SQUARE_MASK)}, "'size' and 'counts'"),
        (rle(compressed(SQUARE_MASK), (WIDTH, HEIGHT)), "height comes first"),
        (rle(compressed(SQUARE_MASK), (60, 80)), "size is [60, 80], the image's is [6, 8]"),
        (rle(compressed(SQUARE_MASK), ("6", None)), "size is"),
        (rle([10, 5]), "cover 15 pixels, the image has 48"),
        (rle([10, 500]), "cover 510 pixels"),
        (rle([]), "cover 0 pixels"),
        (rle([50, -2]), "negative"),
        (rle([47.5, 0.5]), "not a whole number"),
        (rle([float("nan"), 48]), "not a whole number"),
        (rle(["48"]), "not a whole number"),
        (rle([10**30, 48]), "cover over 1000"),
        (rle([9 * 10**4299] * 9), "cover over 1000"),
        (rle(48), "of type int"),
        (rle(""), "not a run-length string"),
        (rle("no run-lengths!"), "not a run-length string"),
        (rle("Größe"), "not a run-length string"),
        (rle("\x00\x01"), "not a run-length string"),
        (rle("P"), "not a run-length string"),
        (rle("PPPPPPPPPPPPPPPPPP0"), "not a run-length string"),
        (rle("hello"), "RLE"),
        (rle("12"), "cover 3 pixels"),
        (rle("O`1"), "negative"),
        (rle(compressed(SQUARE_MASK)[:-2]), "RLE"),
    ],
)
def test_damaged_segmentations(segmentation, reason):
    found = check_segmentation(segmentation, HEIGHT, WIDTH)
    assert found is not None
    assert reason in found
    assert "\n" not in found
    assert len(found) < 150


def test_tiny_images_may_have_tiny_polygons():
    assert check_segmentation([[0, 0, 1, 0, 1, 1, 0, 1]], 3, 3) is None


def test_run_lengths_agree_with_pycocotools():
    """Large and small masks, whose compressed strings have numbers of one to five characters and either sign."""
    random = np.random.default_rng(0)
    for _ in range(50):
        height, width = random.integers(1, 400, size=2)
        mask = random.random((height, width)) < random.choice([0.0, 0.001, 0.5, 1.0])
        encoded = RLE.encode(mask).rle
        segmentation = {"size": [int(height), int(width)], "counts": encoded["counts"].decode()}
        assert check_segmentation(segmentation, height, width) is None
        assert "cover" in (check_segmentation({**segmentation, "size": [height + 1, width]}, height + 1, width) or "")
        uncompressed = {**segmentation, "counts": runs_of(mask)}
        np.testing.assert_array_equal(parse_segmentation(uncompressed, height, width).decode(), mask)


def test_whatever_passes_the_check_decodes():
    random = np.random.default_rng(0)
    sound = compressed(random.random((HEIGHT, WIDTH)) < 0.3)
    passed = 0
    for _ in range(3000):
        text = list(sound)
        for place in random.integers(0, len(text), size=random.integers(1, 4)):
            text[place] = chr(random.integers(48, 112))
        segmentation = rle("".join(text))
        if check_segmentation(segmentation, HEIGHT, WIDTH) is None:
            passed += 1
            mask = parse_segmentation(segmentation, HEIGHT, WIDTH)
            assert mask.decode().sum() == coco_mask.area(mask.rle) <= HEIGHT * WIDTH
    assert passed


# Files and folders


def test_images_elsewhere_subfolders_and_backslashes(folder):
    folder.save_image("images/left/b.png")
    content = {
        "images": [image_entry(1, "left\\b.png"), image_entry(2, "left/../left/b.png")],
        "annotations": [annotation(1, 1), annotation(2, 2)],
        "categories": [{"id": 1, "name": "cell"}],
    }
    ann_file = folder.path / "elsewhere.json"
    ann_file.write_text(json.dumps(content))
    dataset = load_coco(folder.path / "images", ann_file)
    assert [video.video_id for video in dataset.videos] == ["b", "b_2"]
    assert dataset.notes == {"file names with a Windows separator, read with a slash": 1}
    assert dataset.videos[0].frames[0].read().shape == (HEIGHT, WIDTH, 3)


def test_video_ids_are_unique(folder):
    names = ["x/b.png", "y/b.png", "b_2.png", "b.jpg"]
    for name in names:
        folder.save_image(name)
    dataset = folder.load(
        [annotation(number, number) for number in range(4)],
        [image_entry(number, name) for number, name in enumerate(names)],
    )
    assert [video.video_id for video in dataset.videos] == ["b", "b_2", "b_2_2", "b_3"]


@pytest.mark.parametrize(
    "file_name", ["../other.png", "x/../../other.png", "..\\other.png", "/other.png", "C:\\other.png", "c:/other.png"]
)
def test_file_names_that_leave_the_folder(folder, file_name):
    assert "leaves the image folder" in folder.refusal([annotation()], [image_entry(1, file_name)])


def test_byte_order_mark(folder):
    folder.write([annotation()])
    folder.ann_file.write_bytes(b"\xef\xbb\xbf" + folder.ann_file.read_bytes())
    dataset = load_coco(folder.path, folder.ann_file)
    assert len(dataset) == 1
    assert dataset.notes == {"a byte order mark before the JSON, skipped": 1}


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        (b"", "file.empty", ""),
        (b"version https://git-lfs.github.com/spec/v1\n", "file.lfs-pointer", "git lfs pull"),
        (b'{"images": [', "data.not-json", ""),
        (b"\xff\xfe{", "data.not-json", ""),
        (b"[" * 100_000, "data.not-json", ""),
        (b"[]", "data.not-annotations", "list"),
        (b"{}", "coco.not-coco", "'images' and 'annotations' (its keys: none)"),
        (b'{"shapes": [], "version": 1}', "coco.not-coco", "'shapes', 'version'"),
        (b'{"images": [], "info": 1}', "coco.not-coco", "'images', 'info'"),
        (b'{"images": {}, "annotations": []}', "coco.not-coco", "'images'"),
        (b'{"images": [], "annotations": []}', "data.nothing-usable", ""),
    ],
)
def test_files_that_are_not_coco(folder, text, code, fact):
    folder.ann_file.write_bytes(text)
    with refuses(code, fact) as caught:
        load_coco(folder.path, folder.ann_file)
    assert str(caught.value).startswith(f"{folder.ann_file}: ")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(folder):
    with refuses("data.missing-annotations"):
        load_coco(folder.path, folder.path / "absent.json")
    with refuses("data.missing-annotations"):
        load_coco(folder.path, folder.path)
    folder.write([annotation()])
    with refuses("data.missing-folder"):
        load_coco(folder.path / "absent", folder.ann_file)


# A choice of images


def test_only_the_images_that_are_named(folder):
    for name in ("x/b.png", "y/c.png"):
        folder.save_image(name)
    folder.write(
        [annotation(n, n) for n in range(3)],
        [image_entry(n, name) for n, name in enumerate(["a.png", "x/b.png", "y/c.png"])],
    )
    chosen = load_coco(folder.path, folder.ann_file, videos=["c", "a.png"])
    assert [video.video_id for video in chosen.videos] == ["a", "c"]
    with refuses("data.no-such-video", "x/bb.png", "x/b.png"):
        load_coco(folder.path, folder.ann_file, videos=["x/bb.png"])


# Ids and categories


@pytest.mark.parametrize(("in_images", "in_annotations"), [("7", 7), (7, "7"), (7.0, 7), ("img_a", "img_a"), (0, 0)])
def test_ids_of_different_types(folder, in_images, in_annotations):
    dataset = folder.load(
        [annotation(1, in_annotations, category_id=str(3))],
        [image_entry(in_images)],
        [{"id": 0, "name": "objects"}, {"id": 3, "name": "cell"}],
    )
    assert dataset.videos[0].objects[0].category == "cell"
    text = any(isinstance(number, str) for number in (in_images, in_annotations))
    assert dataset.notes == ({"ids that are text, compared as numbers where they are some": 1} if text else {})


def test_image_id_as_the_key_of_images(folder):
    entry = image_entry()
    entry["image_id"] = entry.pop("id")
    assert len(folder.load([annotation()], [entry])) == 1


def test_duplicate_annotation_ids_are_renumbered(folder):
    dataset = folder.load([annotation(5), annotation(5, segmentation=(BLOCK,))])
    assert [track.object_id for track in dataset.videos[0].objects] == [1, 2]
    assert [track.original_id for track in dataset.videos[0].objects] == [5, 5]
    assert dataset.notes == {"annotations that share an id, objects are numbered from 1 in every image": 1}


def test_duplicate_image_ids(folder):
    assert folder.load([annotation()], [image_entry(), image_entry()]).notes == {
        "images listed more than once, read once": 1
    }
    folder.save_image("b.png")
    images = [image_entry(1), image_entry(1, "b.png"), image_entry(2)]
    assert "image 1: two files have this id: a.png and b.png" in folder.refusal(
        [annotation(), annotation(2, 2)], images
    )
    dataset, issues = scan_coco(folder.path, folder.ann_file)
    assert len(issues) == 1
    assert [video.video_id for video in dataset.videos] == ["a"], "whose annotations the others are cannot be known"


@pytest.mark.parametrize("categories", [[], None, {}, [{"id": 1}], [None, {"name": "x"}], [{"id": 2, "name": "x"}]])
def test_unknown_categories(folder, categories):
    dataset = folder.load([annotation()], categories=categories if categories is not None else "none")
    assert dataset.videos[0].objects[0].category is None
    assert dataset.notes == {"annotations of an unknown category, kept without one": 1}


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([{"file_name": "a.png"}], "images[0]: has no id"),
        ([{"id": None, "file_name": "a.png"}], "images[0]: has no id"),
        ([{"id": 1}], "image 1: has no file_name"),
        ([{"id": 1, "file_name": 5}], "image 1: has no file_name"),
        (["a.png"], "images[0]: is not an object"),
    ],
)
def test_broken_image_entries(folder, images, reason):
    assert reason in folder.refusal([annotation()], images)


# What is left out and counted


def test_crowds_are_left_out(folder):
    crowd = annotation(2, segmentation=rle(runs_of(BLOCK_MASK)), iscrowd=1)
    dataset = folder.load([annotation(1), crowd])
    assert len(dataset.videos[0].objects) == 1
    assert dataset.notes == {"crowd annotations, void: neither trained on nor scored": 1}


def test_a_file_of_nothing_but_crowds_is_used(folder):
    crowds = [
        annotation(n, segmentation=rle(runs_of(mask)), iscrowd=1) for n, mask in enumerate([SQUARE_MASK, BLOCK_MASK])
    ]
    dataset = folder.load([*crowds, annotation(9, segmentation=[])])
    assert len(dataset.videos[0].objects) == 2
    assert dataset.notes["crowd annotations, used as objects, as there are no others"] == 2


@pytest.mark.parametrize(
    ("entry", "note"),
    [
        (annotation(2, segmentation=[]), "annotations without a segmentation, left out"),
        (annotation(2, segmentation=None), "annotations without a segmentation, left out"),
        ({"id": 2, "image_id": 1, "bbox": [1, 1, 2, 2]}, "annotations without a segmentation, left out"),
        (annotation(2, image=99), "annotations of unknown images, left out"),
        (annotation(2, image=None), "annotations of unknown images, left out"),
        (annotation(2, segmentation=([-3, -3, -2, -3, -2, -2],)), "annotations that cover no pixel, left out"),
        (annotation(2, segmentation=rle([48])), "annotations that cover no pixel, left out"),
    ],
)
def test_harmless_annotations_are_left_out_and_counted(folder, entry, note):
    dataset = folder.load([annotation(1), entry])
    assert len(dataset.videos[0].objects) == 1
    assert dataset.notes[note] == 1


def test_harmless_annotations_are_kept_and_counted(folder):
    without_box = annotation(1)
    del without_box["bbox"]
    dataset = folder.load([without_box, annotation(2, segmentation=([-3, -2, 2, -2, 2, 1, -3, 1],))])
    assert len(dataset.videos[0].objects) == 2
    assert dataset.notes == {
        "annotations without a box, none is needed": 1,
        "polygons that reach out of the image, clipped": 1,
    }


def test_images_without_annotations_are_left_out(folder):
    dataset = folder.load([annotation()], [image_entry(1), image_entry(2, "not even there.png")])
    assert len(dataset) == 1
    assert dataset.notes == {"images without usable annotations, left out": 1}


def test_nothing_left_says_why(folder):
    message = folder.refusal([annotation(1, segmentation=[]), annotation(2, image=9)], code="data.nothing-usable")
    assert "1 annotations without a segmentation, left out" in message
    assert "1 annotations of unknown images, left out" in message
    assert "1 images without usable annotations, left out" in message


def test_the_largest_by_mask_area_are_kept_in_order(folder):
    small = annotation(1, segmentation=([0, 0, 1, 0, 1, 2, 0, 2],), area=1000)
    square = annotation(2, segmentation=rle(compressed(SQUARE_MASK)), area=1)  # 6 pixels
    block = annotation(3, segmentation=(BLOCK,), area=2)  # 4 pixels
    whole = annotation(4, segmentation=([0, 0, 8, 0, 8, 6, 0, 6],), area=0)
    dataset = folder.load([small, square, block, whole], max_objects=3)
    tracks = dataset.videos[0].objects
    assert [track.object_id for track in tracks] == [1, 2, 3]
    assert [int(track.segmentations[0].decode().sum()) for track in tracks] == [6, 4, 48]
    assert dataset.notes == {"annotations beyond the 3 largest of their image, left out": 1}


# Damage


def test_length_ends_in_one_short_line(folder):
    """Ids and names of thousands of characters, and text that is no text."""
    damaged = [annotation("7" * 5000, segmentation=(SQUARE[:7],)), annotation("a\nb\ud800", segmentation={"size": "x"})]
    images = [image_entry(), image_entry(2, "n" * 5000), image_entry(3, "a\n\ud800.png")]
    folder.write([annotation(1), *damaged, annotation(5, 2), annotation(6, 3)], images)
    dataset, issues = scan_coco(folder.path, folder.ann_file)
    assert len(dataset.videos[0].objects) == 1
    assert len(issues) == 4
    assert all(str(issue).isprintable() for issue in issues)
    assert [len(str(issue)) < 300 for issue in issues].count(False) == 1, "a path is told as it is"


@pytest.mark.parametrize("depth", [100, 600, 700, 800, 850, 900, 930, 960, 990, 2000])
def test_depth(folder, depth):
    """Whether or not JSON is read to this depth, copying and quoting it does not fail."""
    folder.write([annotation(1), annotation(2, segmentation="DEEP")])
    folder.ann_file.write_text(folder.ann_file.read_text().replace('"DEEP"', "[" * depth + "]" * depth))
    try:
        dataset, issues = scan_coco(folder.path, folder.ann_file)
    except UserError as error:
        assert "not valid JSON" in str(error)
    else:
        assert len(dataset.videos[0].objects) == 1
        assert "holds something that is not a number" in str(issues[0])


def test_a_polygon_that_would_fill_the_memory(folder):
    there_and_back = [0, 0, 8000, 8000] * 1000
    assert "pixels long" in (check_segmentation([there_and_back], 8000, 8000) or "")
    assert "pixels long" in (check_segmentation([there_and_back[:200]] * 20, 8000, 8000) or "")
    assert check_segmentation([[0, 0, 8000, 0, 8000, 8000] * 10], 8000, 8000) is None


def test_one_damaged_annotation_is_named(folder):
    message = folder.refusal([annotation(1), annotation(17, segmentation=([1, 1, 4, 1, 4, 3, 1],))])
    assert message == (
        f"{folder.ann_file}: annotation 17 (a.png): polygon 1 has an odd number of coordinates (7); "
        "fix or delete it, or leave it out with --skip-bad"
    )


def test_several_damaged_annotations_are_named_together(folder):
    damaged = [annotation(number, segmentation=([1, 1, 4, 1],)) for number in range(12)]
    lines = folder.refusal([*damaged, "not an object"]).splitlines()
    assert lines[0] == "coco: 13 errors in the data, the first 5:"
    assert lines[1] == f"  {folder.ann_file}: annotations[12]: is not an object; fix or delete it"
    assert lines[2].startswith(f"  {folder.ann_file}: annotation 0 (a.png): polygon 1 has fewer than 3 points (2);")
    assert "validate-data --config YAML" in lines[6]
    assert len(lines) == 7
    assert "2 errors in the data:\n" in folder.refusal(damaged[:2])


def test_scan_goes_on_past_damage(folder):
    folder.write([annotation(1), annotation(2, segmentation=([1, 1, float("nan"), 1, 2, 2],))])
    dataset, issues = scan_coco(folder.path, folder.ann_file, name="cells")
    assert [str(issue) for issue in issues] == [
        f"{folder.ann_file}: annotation 2 (a.png): polygon 1 has the coordinate nan, on an image of 8×6 pixels; "
        "fix or delete it"
    ]
    assert len(dataset.videos[0].objects) == 1


def test_missing_and_broken_image_files(folder):
    message = folder.refusal([annotation(1), annotation(2)], [image_entry(1, "b.png")])
    assert message.startswith(f"{folder.path / 'b.png'}: no such file; ")
    (folder.path / "b.png").write_bytes(b"text")
    assert "b.png: not an image" in folder.refusal([annotation()], [image_entry(1, "b.png")])
    assert "cannot be read" in folder.refusal([annotation()], [image_entry(1, "nul\0.png")])


def test_image_size_that_is_not_the_jsons(folder):
    message = folder.refusal([annotation()], [image_entry(height=60, width=80)])
    assert "a.png: the image is 8×6 pixels, the JSON says 80×60" in message


@pytest.mark.parametrize("size", [{"height": None}, {"width": 0}, {"height": "?"}])
def test_size_that_the_json_lacks(folder, size):
    video = folder.load([annotation()], [image_entry(**size)]).videos[0]
    assert (video.height, video.width) == (HEIGHT, WIDTH)


def test_size_given_as_text_or_float(folder):
    assert len(folder.load([annotation()], [image_entry(height="6", width=8.0)])) == 1


# EXIF orientation: the JSON's size tells which pixels were annotated


@pytest.mark.parametrize(
    ("size", "expected", "notes"),
    [
        ({"height": 6, "width": 8}, (6, 8), 0),
        ({"height": 8, "width": 6}, (8, 6), 1),
        ({"height": None, "width": None}, (6, 8), 0),
    ],
    ids=["drawn upright", "drawn on stored pixels", "size unknown"],
)
def test_exif_orientation(folder, size, expected, notes):
    folder.save_image("turned.jpg", height=8, width=6, orientation=6)
    dataset = folder.load([annotation()], [image_entry(1, "turned.jpg", **size)])
    (video,) = dataset.videos
    assert (video.height, video.width) == expected
    assert video.frames[0].read().shape == (*expected, 3)
    assert video.masks(0)[1].shape == expected
    assert sum(dataset.notes.values()) == notes


def test_square_images_are_read_upright(folder):
    folder.save_image("square.jpg", height=8, width=8, orientation=6)
    dataset = folder.load([annotation()], [image_entry(1, "square.jpg", height=8, width=8)])
    assert dataset.videos[0].frames[0].orient
    assert dataset.notes == {}


# Real data


def test_flakes_as_roboflow_exports_them(shared_data):
    flakes = shared_data("coco_flakes_microscopy")
    valid, test = (
        load_coco(folder, folder / "_annotations.coco.json") for folder in (flakes / "valid", flakes / "test")
    )
    assert (len(valid), sum(len(video.objects) for video in valid.videos)) == (21, 277)
    assert valid.notes == {"polygons that reach out of the image, clipped": 2}
    assert (len(test), sum(len(video.objects) for video in test.videos)) == (10, 87)
    assert test.notes["annotations without a segmentation, left out"] == 1
    categories = {track.category for video in valid.videos for track in video.objects}
    assert len(categories) == 3
    assert "flakes" not in categories
    video = valid.videos[0]
    assert video.frames[0].read().shape == (video.height, video.width, 3) == (768, 1024, 3)
    assert all(mask.any() for mask in video.masks(0).values())


def test_cells_equal_their_source_masks(shared_data):
    folder = shared_data("coco_cells_rle")
    dataset = load_coco(folder / "train", folder / "instances_train.json")
    assert (len(dataset), sum(len(video.objects) for video in dataset.videos)) == (15, 969)
    assert dataset.notes == {}
    published = json.loads((folder / "instances_train.json").read_text())
    first = [entry for entry in published["annotations"] if entry["image_id"] == published["images"][0]["id"]]
    masks = dataset.videos[0].masks(0)
    assert len(masks) == len(first)
    for entry, mask in zip(first, masks.values(), strict=True):
        assert mask.sum() == entry["area"]
        np.testing.assert_array_equal(mask, coco_mask.decode(entry["segmentation"]).astype(bool))


def test_coco_with_a_category_gap_and_a_crowd(shared_data):
    folder = shared_data("odd_inputs") / "datumaro/coco_dataset/coco_instances"
    dataset = load_coco(folder / "images/val", folder / "annotations/instances_val.json")
    (track,) = dataset.videos[0].objects
    assert track.category == "a"
    assert dataset.notes == {"crowd annotations, void: neither trained on nor scored": 1}
    expected = np.zeros((10, 5), dtype=bool)
    expected[:2, :1] = True
    np.testing.assert_array_equal(track.segmentations[0].decode(), expected)


def test_a_polygon_inside_another_is_filled_and_noted(tmp_path):
    outer, inner, beside = [2, 2, 12, 2, 12, 12, 2, 12], [4, 4, 8, 4, 8, 8, 4, 8], [14, 2, 18, 2, 18, 6, 14, 6]
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "segmentation": parts, "bbox": [2, 2, 10, 10]}
        for number, parts in enumerate([[outer, inner], [outer, beside]], 1)
    ]
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps({**content, "annotations": annotations}))
    record, issues = open_coco(tmp_path).read(0)
    assert [obj.segmentations[0].area() for obj in record.objects] == [100, 116]
    assert [(issue.severity, issue.problem) for issue in issues] == [("note", "polygons inside polygons")]


def test_polygons_inside_polygons_that_people_brought(shared_data):
    source = open_coco(shared_data("../cases") / "09_polygon_in_polygon")
    met = [issue for index in range(len(source)) for issue in source.read(index)[1]]
    assert sum(issue.problem == "polygons inside polygons" for issue in met) == 18


@pytest.mark.parametrize("flat", [[1, 1], [1, 1, 2, 2], []], ids=["a point", "a line", "nothing"])
def test_a_part_that_encloses_nothing_is_left_out(folder, flat):
    dataset = folder.load([annotation(1), annotation(2, segmentation=[flat, *annotation()["segmentation"]])])
    first, second = dataset.videos[0].objects
    np.testing.assert_array_equal(first.segmentations[0].decode(), second.segmentations[0].decode())
    assert dataset.notes == {"parts of polygons with fewer than 3 points, left out": 1}


def test_the_parts_of_a_case_cost_no_object(shared_case):
    for split in ("train", "valid"):
        dataset = load_coco(shared_case("02_degenerate_part") / split)
        assert sum(len(video.objects) for video in dataset.videos) == 18
        assert any("fewer than 3 points" in note for note in dataset.notes)
