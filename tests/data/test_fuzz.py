"""Damage of any kind, made up or met with: a data set is read rightly, or what is wrong with it is told in one line.

The short forms run with the other tests, the long ones with ``-m slow``.
"""

from __future__ import annotations

import ast
import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from src.core.errors import UserError
from src.data.checks.report import Report, data_set
from src.data.checks.validate import check
from src.data.decode.images import read_image
from tests.sources import open_coco

ROOT = Path(__file__).parents[2]
SIZE = 24
SHORT = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LONG = settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))

RUNS = [100, 30, SIZE * SIZE - 130]
BASE: dict[str, Any] = {
    "info": None,
    "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE, "width": SIZE} for n in range(3)],
    "annotations": [
        {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 9, 9], "area": 9,
         "segmentation": [[1, 1, 9, 1, 9, 9], [10, 10, 12.5, 10, 12, 14]]},
        {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 9, 9],
         "segmentation": {"size": [SIZE, SIZE], "counts": RUNS}},
        {"id": 3, "image_id": 2, "category_id": 2, "iscrowd": 1, "bbox": [1, 1, 9, 9],
         "segmentation": {"size": [SIZE, SIZE], "counts": "T3n0n="}},
        {"id": 4, "image_id": 2, "category_id": 2, "iscrowd": 0, "bbox": [1, 1, 9, 9],
         "segmentation": [[0, 0, SIZE, 0, SIZE, SIZE, 0, SIZE]]},
    ],
    "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "flake"}],
}  # fmt: skip


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, SIZE + 2), st.floats(width=32), st.text(max_size=5),
    st.sampled_from([
        float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 10**400, -(10**400), 10**18, 2**31, 2**32, 2**63, 0.5,
        "", "0", "1", "nan", "\0", "\ud800", "a\nb", "DEEP50", "DEEP900", "../0.png", "/etc/passwd", "C:\\x.png",
        "0.png/", ".", "x" * 5000,
    ]),
)  # fmt: skip
values = st.one_of(
    scalars,
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_leaves=12,
    ),
    st.lists(st.one_of(st.floats(-2 * SIZE, 3 * SIZE), scalars), min_size=5, max_size=9).map(lambda part: [part]),
    st.fixed_dictionaries(
        {"size": st.builds(lambda: [SIZE, SIZE]), "counts": st.one_of(st.text(max_size=8), st.lists(scalars))}
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> dict:
    """The base with one to four places changed, anywhere and to anything."""
    content = copy.deepcopy(BASE)
    for _ in range(draw(st.integers(1, 4))):
        holder: Any = content
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 4)):
                holder = holder[key]
                continue
            match draw(st.sampled_from(["drop", "replace", "replace", "repeat"])):
                case "drop":
                    del holder[key]
                case "replace":
                    holder[key] = draw(values)
                case "repeat" if isinstance(holder, list):
                    holder.insert(key, copy.copy(holder[key]))
            break
    return content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them changed, cut out or put in, or the end cut off."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(raw)))
        match draw(st.sampled_from(["set", "cut", "insert", "end"])):
            case "set":
                raw[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del raw[place : place + draw(st.integers(1, 20))]
            case "insert":
                raw[place:place] = draw(st.binary(min_size=1, max_size=20))
            case "end":
                del raw[place:]
    return bytes(raw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    for number in range(3):
        Image.new("RGB", (SIZE, SIZE), "red").save(path / f"{number}.png")
    return path


def assert_read_or_told(folder: Path, content: bytes) -> None:
    """Writes an annotation file, and checks and reads the set."""
    path = folder / "annotations.json"
    path.write_bytes(content)
    try:
        source = open_coco(folder, path)
        report = check(source, workers=0)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return
    for issue in report.issues:
        assert str(issue).isprintable()
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.errors or report.counts["repaired"] or report.counts["note"] or len(report.keep) == len(source)
    if report.keep:
        for video in data_set(source, report, skip_bad=True).videos:
            assert video.objects
            assert video.frames[0].read().shape == (video.height, video.width, 3)
            for mask in video.masks(0).values():
                assert mask.shape == (video.height, video.width)
                assert mask.any()


def as_json(content: dict) -> bytes:
    """The file; in place of ``"DEEP50"`` a list nested so deep."""
    text = json.dumps(content).encode()
    return re.sub(rb'"DEEP(\d+)"', lambda found: b"[" * int(found[1]) + b"]" * int(found[1]), text)


class TestAnnotations:
    def test_the_base_is_sound(self, folder):
        (folder / "annotations.json").write_bytes(as_json(BASE))
        report = check(open_coco(folder, folder / "annotations.json"), workers=0)
        assert report.errors == []
        assert report.objects == 3

    @given(content=mutated())
    @SHORT
    def test_values(self, folder, content):
        assert_read_or_told(folder, as_json(content))

    @given(content=damaged(as_json(BASE)))
    @SHORT
    def test_bytes(self, folder, content):
        assert_read_or_told(folder, content)

    @pytest.mark.slow
    @given(content=st.one_of(mutated().map(as_json), mutated().flatmap(lambda content: damaged(as_json(content)))))
    @LONG
    def test_at_length(self, folder, content):
        assert_read_or_told(folder, content)


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    options = {"tiff": {"compression": "tiff_lzw"}, "webp": {"lossless": True}}.get(kind, {})
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


images = st.sampled_from(["png", "jpeg", "tiff", "gif", "webp", "bmp", "ppm"]).flatmap(lambda k: damaged(encoded(k)))


def assert_image_read_or_told(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        pixels = read_image(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


class TestImages:
    @given(content=images)
    @SHORT
    def test_bytes(self, tmp_path_factory, content):
        assert_image_read_or_told(tmp_path_factory.getbasetemp() / "fuzz.img", content)

    @pytest.mark.slow
    @given(content=images)
    @LONG
    def test_at_length(self, tmp_path_factory, content):
        assert_image_read_or_told(tmp_path_factory.getbasetemp() / "fuzz.img", content)


READ_ALL = """
import resource, sys
from pathlib import Path
from tests.sources import open_coco
from src.data.decode.images import read_image
from src.data.checks.validate import check
from src.data.checks.report import Report, data_set
from src.core.errors import UserError

def read_set(path):
    source = open_coco(path.parent, path)
    for video in data_set(source, check(source, workers=0)).videos:
        assert all(mask.shape == (video.height, video.width) for mask in video.masks(0).values())

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)
for path in sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file()):
    for read in (read_image, read_set):
        told = "read"
        try:
            read(path)
        except UserError as error:
            told = str(error)
        print(repr((path.name, read.__name__, told)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_odd_files_that_were_met(shared_data):
    """Every file, as an image and as an annotation file, in a process that may take 2 GB: read, or refused by name."""
    folder = shared_data("odd_inputs")
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(found) == 2 * sum(path.is_file() for path in folder.rglob("*"))
    for _, _, told in found:
        first, *more = told.splitlines()
        assert first == "read" or str(folder) in first or first.startswith("coco: "), told
        assert not more or first.startswith("coco: "), "several errors are told in a line each"
    read = {(name, reader) for name, reader, told in found if told == "read"}
    assert {("hopper.png", "read_image"), ("png_named.jpg", "read_image")} <= read
    assert not any(reader == "read_set" for _, reader in read), (
        "there, no image lies beside the JSON that has its masks"
    )
