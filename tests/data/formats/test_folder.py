"""Stills with mask files: which mask belongs to which image, and what is wrong told by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import load_config
from src.data.formats.reader import Location, OpenOptions
from src.data.formats.registry import recognise
from src.data.writers import write_palette_png
from src.train.init_config import write_suggestion
from tests.errors import refuses
from tests.sources import location, open_folder

HEIGHT, WIDTH = 6, 8
IDS = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
IDS[1:3, 1:4], IDS[4:, 5:7] = 1, 2


def image(path: Path, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(path, exif=exif)


@pytest.mark.parametrize(
    ("pictures", "masks", "img_folder", "ann_folder"),
    [
        ("images/{}.jpg", "masks/{}.png", "images", "masks"),
        ("images/{}.jpg", "masks/{}.png", "images", None),
        ("images/{}.jpg", "masks/{}.png", "", None),
        ("images/{}.jpg", "masks/{}_mask.png", "images", "masks"),
        ("images/{}.jpg", "masks/{}_segmentation.png", "images", "masks"),
        ("images/{}.jpg", "masks/{}_any_lesion.png", "images", "masks"),
        ("img/{}.tif", "labels/{}.tif", "img", None),
        ("x/{}.png", "y/{}.png", "x", "y"),
        ("x/deep/{}.png", "y/deep/{}.png", "x", "y"),
        ("all/{}.jpg", "all/{}_mask.png", "all", None),
        ("all/{}.png", "all/{}_mask.png", "all", None),
        ("all/{}.png", "all/{}-mask.png", "all", "all"),
        ("all/{}.jpg", "all/{}.png", "all", None),
    ],
)
def test_an_image_and_its_mask_are_a_video_of_one_frame(tmp_path, pictures, masks, img_folder, ann_folder):
    for name in ("cell2", "cell10"):
        image(tmp_path / pictures.format(name))
        write_palette_png(tmp_path / masks.format(name), IDS)
    source = open_folder(tmp_path / img_folder, None if ann_folder is None else tmp_path / ann_folder)
    assert [Path(entry.name).name for entry in source.images] == ["cell2", "cell10"]
    for index in range(2):
        record, issues = source.read(index)
        assert issues == []
        assert (record.height, record.width, len(record)) == (HEIGHT, WIDTH, 1)
        assert record.frames[0].read()[0, 0].argmax() == 0, "the image, not the mask"
        assert {i: m.sum() for i, m in record.masks(0).items()} == {1: 6, 2: 4}
        assert record.annotated is None


def test_wanted_images_and_images_without_a_mask(tmp_path):
    for name in "abc":
        image(tmp_path / "images" / f"{name}.jpg")
    for name in "ac":
        write_palette_png(tmp_path / "masks" / f"{name}.png", IDS)
    source = open_folder(tmp_path, videos=["b", "c"])
    record, (issue,) = source.read(0)
    assert record is None
    assert (issue.severity, issue.problem) == ("repaired", "images without a mask")
    assert source.read(1)[0].video_id == "c"
    with refuses("data.no-such-video", "'d'"):
        open_folder(tmp_path, videos=["d"])


def test_masks_without_an_image_are_told(tmp_path):
    image(tmp_path / "images/a.jpg")
    for name in ("a", "b", "deep/c_mask"):
        write_palette_png(tmp_path / "masks" / f"{name}.png", IDS)
    source = open_folder(tmp_path)
    assert [(f.severity, f.file, f.entry, f.problem) for f in source.issues] == [
        ("repaired", str(tmp_path / "masks"), entry, "masks without a frame") for entry in ("deep/c_mask.png", "b.png")
    ]
    assert source.read(0)[1] == []
    assert open_folder(tmp_path, videos=["a"]).issues == []


@pytest.mark.parametrize(
    ("taken", "others"),
    [
        ("masks/a_mask.png", ["masks/a.png"]),
        ("masks/a.png", ["masks/a.tif"]),
        ("masks/a_mask.png", ["masks/a_mask.tif", "masks/a_label.png"]),
        ("images/a_mask.png", ["images/a.png"]),
        ("images/a_mask.png", ["images/a_label.png"]),
        ("images/a_mask.png", ["images/a_mask.tif"]),
    ],
)
def test_of_two_masks_of_an_image_one_is_read_and_the_others_told(tmp_path, taken, others):
    image(tmp_path / "images/a.jpg")
    write_palette_png(tmp_path / taken, IDS)
    for other in others:
        image(tmp_path / other)
    source = open_folder(tmp_path if taken.startswith("masks") else tmp_path / "images")
    assert [entry.name for entry in source.images] == ["a"]
    record, issues = source.read(0)
    assert [o.object_id for o in record.objects] == [1, 2]
    assert [(f.severity, f.entry, f.problem) for f in issues] == [
        ("repaired", Path(other).name, "masks of an image that has another") for other in others
    ]


def test_images_that_differ_in_their_extension_only_keep_it(tmp_path):
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/a.png")
    write_palette_png(tmp_path / "masks/a.png", IDS)
    assert {entry.name for entry in open_folder(tmp_path).images} == {"a.jpg", "a.png"}


def test_void_and_binary_masks(tmp_path):
    for name, ids in (("void", np.where(IDS == 2, 255, IDS)), ("binary", np.where(IDS > 0, 255, 0))):
        image(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "images" / f"{name}_mask.png")
    binary, void = (open_folder(tmp_path / "images").read(index)[0] for index in range(2))
    assert {i: m.sum() for i, m in binary.masks(0).items()} == {1: 10}
    assert {i: m.sum() for i, m in void.masks(0).items()} == {1: 6}
    assert void.void[0].area() == 4


def test_an_image_is_turned_as_its_mask_was_drawn(tmp_path):
    image(tmp_path / "images/a.jpg", orientation=6)
    write_palette_png(tmp_path / "masks/a.png", IDS.T)
    record, _ = open_folder(tmp_path).read(0)
    assert (record.height, record.width) == (WIDTH, HEIGHT) == record.frames[0].read().shape[:2]


@pytest.mark.parametrize(
    ("ids", "severity", "message"),
    [
        (np.ones((3, 4), np.uint8), "error", "a.png: the mask is 4×3 pixels, the image is 8×6"),
        (IDS * 0, "repaired", "images whose mask shows no object"),
        (None, "error", "a.png: not an image"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, ids, severity, message):
    image(tmp_path / "images/a.jpg")
    if ids is None:
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks/a.png").write_bytes(b"text")
    else:
        write_palette_png(tmp_path / "masks/a.png", ids)
    record, (issue,) = open_folder(tmp_path).read(0)
    assert record is None
    assert issue.severity == severity
    assert message in str(issue)


def test_a_damaged_image_is_told(tmp_path):
    image(tmp_path / "images/a.jpg")
    write_palette_png(tmp_path / "masks/a.png", IDS)
    (tmp_path / "images/a.jpg").write_bytes(b"")
    record, (issue,) = open_folder(tmp_path).read(0)
    assert record is None
    assert "a.jpg: the file is empty" in str(issue)


def test_nothing_to_read_is_told(tmp_path):
    image(tmp_path / "images/a.jpg")
    with refuses("folder.no-masks"):
        open_folder(tmp_path / "images")
    with refuses("data.missing-folder"):
        open_folder(tmp_path / "none")
    with refuses("data.missing-annotations"):
        open_folder(tmp_path / "images", tmp_path / "none")


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [("{0}/images/{0}.png", "{0}/masks/{1}.png"), ("images/{0}.png", "masks/{0}_{1}.png")],
    ids=["Kaggle's", "numbered"],
)
def test_a_mask_file_an_object(tmp_path, pictures, masks):
    for name in ("cell2", "cell10"):
        image(tmp_path / pictures.format(name))
        for number in (1, 2):
            path = tmp_path / masks.format(name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((number == IDS) * np.uint8(255)).save(path)
    reader, found = recognise(location(tmp_path))
    source = reader.open(found, OpenOptions())
    records = [source.read(index) for index in range(len(source))]
    assert [record.video_id for record, _ in records] == ["cell2", "cell10"]
    for record, issues in records:
        assert issues == []
        assert {i: m.sum() for i, m in record.masks(0).items()} == {1: 6, 2: 4}


@pytest.mark.parametrize("kind", ["jpeg", "soft edges"])
def test_binary_masks_of_any_kind_are_read_at_the_threshold_that_the_refusal_names(tmp_path, kind):
    grey = np.zeros((40, 40), np.uint8)
    grey[8:32, 8:24] = 255
    grey[8:32, 24] = np.arange(24) * 10
    image_path, suffix = tmp_path / "images" / "a.jpg", "jpg" if kind == "jpeg" else "png"
    image_path.parent.mkdir()
    Image.new("RGB", (40, 40)).save(image_path)
    (tmp_path / "masks").mkdir()
    Image.fromarray(grey).save(tmp_path / "masks" / f"a.{suffix}", quality=60)
    record, (issue,) = open_folder(tmp_path / "images").read(0)
    assert record is None and issue.severity == "error"
    assert "dataset.mask_threshold=0.5" in str(issue)
    record, (issue,) = open_folder(tmp_path / "images", mask_threshold=0.5).read(0)
    assert (issue.severity, issue.problem) == ("repaired", "masks read as black and white")
    assert record.masks(0)[1].sum() == pytest.approx(24 * 16.5, rel=0.03)


@pytest.mark.parametrize(("case", "objects_each"), [("isic", 1), ("dsb2018", 3)])
def test_mask_names_that_people_brought(shared_data, case, objects_each):
    reader, found = recognise(location(shared_data("../cases") / "07_mask_names" / case))
    source = reader.open(found, OpenOptions())
    read = [source.read(index) for index in range(len(source))]
    assert [(len(record.objects), issues) for record, issues in read] == [(objects_each, [])] * 6


def test_jpeg_masks_that_people_brought(shared_data):
    folder = shared_data("../cases") / "06_jpeg_masks"
    refused = open_folder(folder / "images", folder / "masks")
    assert all("dataset.mask_threshold" in str(refused.read(index)[1][0]) for index in range(len(refused)))
    read = open_folder(folder / "images", folder / "masks", mask_threshold=0.5)
    assert all(read.read(index)[0] is not None for index in range(len(read)))


STILLS_AND_VIDEOS = [
    # pictures, masks, folder, what they are
    ("images/{}.jpg", "annotations/trimaps/{}.png", ["cat_1", "cat_2"], "folder"),
    ("images/{}.jpg", "masks/cell/{}.png", ["0001", "b"], "folder"),
    ("JPEGImages/{}.jpg", "Annotations/{}.png", ["cat", "dog"], "folder"),
    ("JPEGImages/{}.jpg", "Annotations/{}.png", ["00000", "00001"], "davis"),
    ("images/{}.jpg", "annotations/000/{}.png", ["frame_000000", "frame_000001"], "davis"),
    ("images/{}.jpg", "masks/1/{}.png", ["0", "1"], "davis"),
]


@pytest.mark.parametrize(("pictures", "masks", "names", "kind"), STILLS_AND_VIDEOS)
def test_pictures_are_stills_unless_something_says_video(tmp_path, pictures, masks, names, kind):
    for name in names:
        image(tmp_path / pictures.format(name))
        write_palette_png(tmp_path / masks.format(name), IDS)
    reader, location = recognise(Location(tmp_path))
    source = reader.open(location, OpenOptions())
    assert reader.name == kind
    assert [len(source.read(index)[0]) for index in range(len(source))] == ([1, 1] if kind == "folder" else [2])


def test_numbered_pictures_of_several_sizes_are_stills(tmp_path):
    for number, side in enumerate((20, 30)):
        path = tmp_path / "images" / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (side, side)).save(path)
        write_palette_png(tmp_path / "annotations" / "all" / path.name, np.eye(side, dtype=np.uint8))
    reader, location = recognise(Location(tmp_path))
    source = reader.open(location, OpenOptions())
    assert [source.read(index)[0].width for index in range(2)] == [20, 30]


def test_frames_in_a_folder_below_the_root_are_a_video(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / "JPEGImages" / "bear" / f"{name}.jpg")
        write_palette_png(tmp_path / "Annotations" / "bear" / f"{name}.png", IDS)
    reader, location = recognise(Location(tmp_path / "JPEGImages" / "bear"))
    assert reader.name == "davis" and len(reader.open(location, OpenOptions()).read(0)[0]) == 2


def test_several_folders_of_masks_for_the_same_stills_are_asked_about(tmp_path):
    for name in ("cat", "dog"):
        image(tmp_path / "images" / f"{name}.jpg")
        for kind in ("classes", "instances"):
            write_palette_png(tmp_path / "masks" / kind / f"{name}.png", IDS)
    reader, location = recognise(Location(tmp_path))
    with refuses("folder.several-masks", "classes, instances", "format: davis"):
        reader.open(location, OpenOptions())
    named = open_folder(tmp_path / "images", tmp_path / "masks" / "classes")
    assert len(named.read(0)[0].objects) == 2


def test_the_stills_of_a_case_are_no_video(shared_case):
    reader, location = recognise(Location(shared_case("13_stills_not_a_video")))
    source = reader.open(location, OpenOptions())
    assert [len(source.read(index)[0]) for index in range(len(source))] == [1] * 6


def test_init_takes_the_threshold_that_its_refusal_names(tmp_path):
    (tmp_path / "data" / "masks").mkdir(parents=True)
    for name in "abc":
        image(tmp_path / "data" / "images" / f"{name}.png")
        Image.fromarray((IDS > 0) * np.uint8(255)).resize((WIDTH * 4, HEIGHT * 4)).resize((WIDTH, HEIGHT)).save(
            tmp_path / "data" / "masks" / f"{name}.jpg"
        )
    with refuses("data.nothing-usable", "init --mask-threshold 0.5"):
        write_suggestion(tmp_path / "data", tmp_path / "mine.yaml")
    write_suggestion(tmp_path / "data", tmp_path / "mine.yaml", mask_threshold=0.5)
    assert load_config(tmp_path / "mine.yaml").dataset.domains[0].mask_threshold == 0.5
