"""The data format that CONTRIBUTING.md writes down works as it stands: one file, and nothing else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import NamedSplit
from src.data import formats
from src.data.checks.report import data_set
from src.data.checks.validate import check
from tests.errors import refuses
from tests.sources import open_place, recognised

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of that format; its reader is a file of the package for as long as the test runs."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    package = tmp_path / "package"
    package.mkdir()
    (package / "boxes.py").write_text(blocks[0], encoding="utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(package)])
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(data / name)
    (data / "boxes.csv").write_text("a.png,1,2,5,8\na.png,10,0,12,20\nb.png,0,0,3,3\n")
    yield data
    sys.modules.pop("src.data.formats.boxes", None)


@pytest.mark.parametrize("name", ["auto", "boxes"])
def test_the_format_is_recognised_checked_and_read(boxes, name):
    where = NamedSplit(name="x", img_folder=str(boxes), format=name)
    assert recognised(where) == ("boxes", boxes / "boxes.csv")
    source = open_place(where)
    videos = data_set(source, check(source, workers=0)).videos
    assert [video.video_id for video in videos] == ["a.png", "b.png"]
    first, second = videos[0].masks(0).values()
    assert (first.sum(), second.sum()) == (4 * 6, 2 * 20)
    assert first[2:8, 1:5].all()


def test_an_image_without_boxes_that_are_seen_is_left_out_and_counted(boxes):
    with (boxes / "boxes.csv").open("a") as file:
        file.write("c.png,5,5,5,5\n")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(boxes / "c.png")
    source = open_place(NamedSplit(name="x", img_folder=str(boxes)))
    data = data_set(source, check(source, workers=0))
    assert [video.video_id for video in data.videos] == ["a.png", "b.png"]
    assert data.notes["images without boxes, left out"] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reader_that_fails_is_named_with_its_line(boxes, workers):
    with (boxes / "boxes.csv").open("a") as file:
        file.write("b.png,3,3\n")
    source = open_place(NamedSplit(name="x", img_folder=str(boxes)))
    with refuses("data.reader-failed", "format boxes", "entry 1", "boxes.csv", "ValueError", "boxes.py, line "):
        check(source, workers=workers)


def test_a_reader_that_fails_on_the_whole_file_is_named_too(boxes):
    with (boxes / "boxes.csv").open("a") as file:
        file.write("b.png,x,0,3,3\n")
    with refuses("data.reader-failed", "format boxes", "boxes.csv", "ValueError", "boxes.py, line "):
        open_place(NamedSplit(name="x", img_folder=str(boxes)))


def test_only_the_images_that_are_named_are_read(boxes):
    source = open_place(NamedSplit(name="x", img_folder=str(boxes), videos=["b.png"]))
    assert [source.read(i)[0].video_id for i in range(len(source))] == ["b.png"]
