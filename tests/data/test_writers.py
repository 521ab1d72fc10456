"""What is written is read back: masks with their numbers, and whole data sets, the same in every format."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from src.config import MotionConfig, NamedSplit
from src.data.checks.report import data_set
from src.data.checks.validate import check
from src.data.decode.labels import davis_palette
from src.data.records import DataSet, VideoRecord
from src.data.synthetic import CELLS, SOURCE, make_videos
from src.data.writers import write_coco, write_davis, write_palette_png
from src.evaluation.domains import Domain
from tests.errors import refuses
from tests.sources import open_place, recognised
from tests.writers import write_folder, write_sav, write_tracked_coco, write_ytvis

FRAMES, SIDE = 6, 32


class TestPalettePng:
    def test_numbers_are_palette_indices_in_the_colours_of_davis(self, tmp_path):
        ids = np.array([[0, 1, 2], [3, 20, 255]])
        write_palette_png(tmp_path / "deep" / "m.png", ids)
        with Image.open(tmp_path / "deep" / "m.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.array(image), ids)
            colours = np.array(image.convert("RGB"))
        # as published with the benchmark
        assert colours[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
        assert colours[1].tolist() == [[128, 128, 0], [0, 64, 128], [224, 224, 192]]

    def test_no_two_numbers_share_a_colour(self):
        assert len({tuple(colour) for colour in davis_palette().tolist()}) == 256

    def test_numbers_beyond_the_palette_become_16_bit(self, tmp_path):
        ids = np.array([[0, 1, 3002]], dtype=np.int64)
        write_palette_png(tmp_path / "m.png", ids)
        with Image.open(tmp_path / "m.png") as image:
            assert image.mode.startswith("I")
            assert np.array_equal(np.array(image), ids)

    @pytest.mark.parametrize("wrong", [-1, 65_536])
    def test_other_numbers_are_refused(self, tmp_path, wrong):
        with refuses("writers.object-number", "m.png", str(wrong)):
            write_palette_png(tmp_path / "m.png", np.array([[0, wrong]]))
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def originals() -> DataSet:
    """Ten videos of two worlds, with objects numbered without gaps; each object is away on one frame, not the first."""
    data = [*make_videos(SOURCE, 5, 0, FRAMES, SIDE).videos, *make_videos(CELLS, 5, 0, FRAMES, SIDE).videos]
    videos = []
    for index, video in enumerate(data):
        objects = []
        for number, obj in enumerate(video.objects, start=1):
            away = 1 + number % (FRAMES - 1)
            seen = [None if t == away else s for t, s in enumerate(obj.segmentations)]
            objects.append(replace(obj, object_id=number, segmentations=seen))
        videos.append(replace(video, video_id=f"video{index}", objects=objects))
    return DataSet("ten", videos)


def load(folder, ann_file=None, **place) -> DataSet:
    source = open_place(NamedSplit(name="ten", img_folder=str(folder), ann_file=ann_file, **place))
    return data_set(source, check(source, workers=0))


def assert_same_labels(video: VideoRecord, expected: VideoRecord, frames: range) -> None:
    assert (video.video_id, len(video)) == (expected.video_id, len(expected))
    assert (video.height, video.width) == (expected.height, expected.width)
    assert [t for t in range(len(video)) if video.is_annotated(t)] == list(frames)
    for t in frames:
        found, true = video.masks(t), expected.masks(t)
        assert found.keys() == true.keys()
        assert all(np.array_equal(found[i], true[i]) for i in true)


def write_per_object(folder, data):
    write_davis(folder, data, per_object=True)


@pytest.mark.parametrize(
    ("write", "kind"),
    [(write_davis, "davis"), (write_per_object, "davis"), (write_ytvis, "ytvis"), (write_tracked_coco, "ytvis")],
)
def test_videos_are_the_same_in_every_format(write, kind, originals, tmp_path):
    write(tmp_path, originals)
    assert recognised(NamedSplit(name="x", img_folder=str(tmp_path)))[0] == kind
    data = pickle.loads(pickle.dumps(load(tmp_path)))
    assert data.notes == {}
    for video, expected in zip(data.videos, originals.videos, strict=True):
        assert_same_labels(video, expected, range(FRAMES))
        assert video.annotated is None
        assert [o.object_id for o in video.objects] == [o.object_id for o in expected.objects]
        for frame, true in zip(video.frames, expected.frames, strict=True):
            assert np.array_equal(frame.read(), true.read())
    if kind == "ytvis":
        assert [o.category for v in data.videos for o in v.objects] == [
            o.category for v in originals.videos for o in v.objects
        ]


def test_sav_is_the_same_on_annotated_frames(originals, tmp_path):
    write_sav(tmp_path, originals)
    data = pickle.loads(pickle.dumps(load(tmp_path)))
    assert data.notes == {}
    for video, expected in zip(data.videos, originals.videos, strict=True):
        assert_same_labels(video, expected, range(0, FRAMES, 4))
        true = np.stack([frame.read() for frame in expected.frames]).astype(int)
        for t, frame in enumerate(video.frames):
            difference = np.abs(true - frame.read()).mean(axis=(1, 2, 3))
            assert difference.argmin() == t
            assert difference[t] < 25, "little but what the compression takes from the colours"


@pytest.mark.parametrize("quality", [None, 95])
def test_stills_are_the_same_in_coco_and_in_folders(quality, originals, tmp_path):
    stills = DataSet("stills", [replace(v, frames=v.frames[:1]) for v in originals.videos])
    write_coco(tmp_path / "coco", originals, quality)
    write_folder(tmp_path / "folder", originals)
    for data in (load(tmp_path / "coco"), load(tmp_path / "folder"), load(tmp_path / "folder" / "images")):
        for video, expected in zip(data.videos, stills.videos, strict=True):
            assert_same_labels(video, expected, range(1))
    for video, expected in zip(load(tmp_path / "folder").videos, stills.videos, strict=True):
        assert np.array_equal(video.frames[0].read(), expected.frames[0].read())


def test_evaluation_sees_the_same_in_every_format(originals, tmp_path):
    def of_evaluation(data: DataSet) -> list:
        domain = Domain("x", data, FRAMES, 5, 1024, MotionConfig())
        return [
            [(t, i, mask.tobytes()) for t in range(len(video)) for i, mask in video.masks(t).items()]
            for video in domain.videos()
        ]

    write_davis(tmp_path / "davis", originals)
    write_ytvis(tmp_path / "ytvis", originals)
    assert (
        of_evaluation(load(tmp_path / "davis")) == of_evaluation(load(tmp_path / "ytvis")) == of_evaluation(originals)
    )


def test_void_sparse_labels_and_lists_of_videos_come_back(originals, tmp_path):
    first, second = originals.videos[0], originals.videos[-1]
    void = {t: s for t, s in enumerate(second.objects[0].segmentations) if s is not None}
    sparse = replace(first, annotated=frozenset({0, 3}))
    write_davis(
        tmp_path, DataSet("two", [sparse, replace(second, objects=second.objects[1:], void=void)]), list_as="val"
    )
    assert (tmp_path / "ImageSets" / "val.txt").read_text() == "video0\nvideo9\n"
    only = load(tmp_path, videos=str(tmp_path / "ImageSets" / "val.txt")).videos
    assert_same_labels(only[0], first, [0, 3])
    assert only[0].annotated == {0, 3}
    assert only[1].void.keys() == void.keys()
    assert all(np.array_equal(only[1].void[t].decode(), void[t].decode()) for t in void)
