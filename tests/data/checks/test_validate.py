"""What is told of a data set before anything is trained on it, and what is done about it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import NamedSplit
from src.data.checks.report import EXAMPLES, Report, data_set
from src.data.checks.validate import check
from src.data.decode.images import ImageFile
from src.data.formats.coco import CocoSource
from src.data.loading import load_data
from src.data.options import LoadOptions
from src.data.records import RLE, ArrayFrame, Issue, ObjectTrack, VideoRecord
from tests.errors import refuses
from tests.sources import open_coco

SIZE = 32


def coco(folder: Path, count: int = 4) -> NamedSplit:
    """A sound set of ``count`` images of noise, ``0.png`` and on, with an object each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "height": SIZE, "width": SIZE} for n in range(count)]
    square = [[4, 4, 12, 4, 12, 12, 4, 12]]
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": square, "bbox": [4, 4, 8, 8]} for n in range(count)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return NamedSplit(name="things", img_folder=str(folder), ann_file=str(folder / "a.json"))


def change(place: NamedSplit, change: Callable[[dict], object]) -> None:
    path = Path(str(place.ann_file))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def report_of(place: NamedSplit, **options) -> Report:
    return check(open_coco(place.img_folder, str(place.ann_file), name=place.name), **options)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.fixture
def place(tmp_path) -> NamedSplit:
    return coco(tmp_path / "data")


@pytest.fixture
def options(tmp_path) -> LoadOptions:
    return LoadOptions(tmp_path / "run")


class TestCheck:
    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_a_sound_set(self, place, workers):
        report = report_of(place, workers=workers)
        assert (report.listed, report.keep, report.frames, report.objects) == (4, [0, 1, 2, 3], 4, 4)
        assert report.issues == []
        assert report.median_side == pytest.approx(8 / SIZE)

    def test_more_images_than_a_process_is_given_at_a_time(self, tmp_path):
        assert report_of(coco(tmp_path, 50), workers=2).keep == list(range(50))

    def test_a_file_that_breaks_off_is_found_by_decoding(self, place):
        truncate(Path(place.img_folder) / "2.png")
        assert report_of(place, workers=0, decode=False).errors == []
        report = report_of(place, workers=0)
        (error,) = report.errors
        assert error.file.endswith("2.png")
        assert report.keep == [0, 1, 3]
        assert report.objects == 3

    def test_an_image_of_another_type_than_its_name_says(self, place):
        path = Path(place.img_folder) / "0.png"
        path.rename(path.with_suffix(".jpg"))
        change(place, lambda content: content["images"][0].update(file_name="0.jpg"))
        report = report_of(place, workers=0)
        assert report.notes == {"images of another type than their name says, read by their content": 1}
        assert len(report.keep) == 4

    @pytest.mark.parametrize("kind", ["tif", "gif"])
    def test_pages_after_the_first_are_noted(self, place, kind):
        first = Image.open(Path(place.img_folder) / "0.png").convert("RGB")
        path = Path(place.img_folder) / f"0.{kind}"
        first.save(path, save_all=True, append_images=[Image.new("RGB", first.size, "red")])
        change(place, lambda content: content["images"][0].update(file_name=path.name))
        report = report_of(place, workers=0)
        assert report.notes == {"images of several pages or frames, the first is read": 1}
        assert len(report.keep) == 4

    def test_a_frame_that_is_not_of_the_size_of_its_labels(self):
        mask = RLE.encode(np.ones((8, 8), bool))
        frames = [
            ArrayFrame(np.zeros((8, 8, 3), np.uint8), "first"),
            ArrayFrame(np.zeros((8, 9, 3), np.uint8), "second"),
        ]
        source = Listed([VideoRecord("v", 8, 8, frames, [ObjectTrack(1, [mask, mask])])])
        (error,) = check(source, workers=0).errors
        assert str(error).startswith("second: the frame is 9×8 pixels, its labels are for 8×8")

    @pytest.mark.parametrize("objects", [[], [ObjectTrack(1, [None])]], ids=["none", "never seen"])
    def test_a_video_without_objects_is_left_out_and_counted(self, objects):
        frame = ArrayFrame(np.zeros((8, 8, 3), np.uint8))
        seen = [ObjectTrack(1, [RLE.encode(np.ones((8, 8), bool))])]
        source = Listed([VideoRecord("v", 8, 8, [frame], objects), VideoRecord("w", 8, 8, [frame], seen)])
        report = check(source, workers=0)
        assert report.keep == [1]
        assert report.notes == {"images and videos without objects, left out": 1}
        assert [video.video_id for video in data_set(source, report).videos] == ["w"]

    def test_repairs_are_counted_all_and_told_by_examples(self, place):
        def add_empty(content):
            content["annotations"] += [{"id": 10 + n, "image_id": 0, "segmentation": []} for n in range(EXAMPLES + 20)]

        change(place, add_empty)
        report = report_of(place, workers=0)
        assert report.counts["repaired"] == {"annotations without a segmentation": EXAMPLES + 20}
        assert len(report.issues) == EXAMPLES
        ((count, first),) = report.examples("repaired")
        assert (count, first.entry) == (EXAMPLES + 20, "annotation 10 (0.png)")


@dataclass
class Listed:
    """A source of records that are already there."""

    records: list[VideoRecord]
    name: str = "listed"
    files: list[Path] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        return self.records[index], []


class Deadly(ImageFile):
    """An image on which the library that reads it crashes."""

    def read(self) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Slow(ImageFile):
    """An image that takes an hour, and says that it has begun."""

    def read(self) -> np.ndarray:
        Path(self.path).touch()
        time.sleep(3600)
        raise AssertionError


class TestACrash:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_of_a_process_is_told_by_the_file_it_was_reading(self, place, workers):
        source = open_coco(place.img_folder, str(place.ann_file))
        records = [record for i in range(40) if (record := source.read(i % 4)[0])]
        for index in (5, 30):
            frame = Deadly(f"{index}.png")
            records[index] = VideoRecord("deadly", SIZE, SIZE, [frame], records[index].objects)
        report = check(Listed(records, files=source.files), workers)
        assert [error.file for error in report.errors] == ["5.png", "30.png"]
        assert "ended the process" in report.errors[0].problem
        assert report.keep == [i for i in range(40) if i not in (5, 30)]

    def test_while_parsing_names_the_entry(self, place):
        class DeadlySource(Listed):
            def read(self, index):
                return os.kill(os.getpid(), signal.SIGKILL) or (None, [])

        (error,) = check(DeadlySource([None], files=[Path(str(place.ann_file))])).errors  # type: ignore[list-item]
        assert error.file == place.ann_file
        assert "entry 0" in error.problem

    def test_of_the_process_that_waits_ends_those_that_read(self, place, tmp_path):
        source = open_coco(place.img_folder, str(place.ann_file))
        record = source.read(0)[0]
        records = [VideoRecord("slow", SIZE, SIZE, [Slow(tmp_path / "being_read")], record.objects)]
        waits = os.fork()
        if not waits:
            os.setsid()  # by which its own processes are found when it is gone
            check(Listed(records, files=source.files))
        while not (tmp_path / "being_read").exists():
            time.sleep(0.05)
        os.kill(waits, signal.SIGKILL)
        os.waitpid(waits, 0)
        patience = time.monotonic() + 60
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < patience:
                os.killpg(waits, 0)
                time.sleep(0.1)


class TestTheCache:
    @pytest.fixture
    def looked(self, place, tmp_path, monkeypatch) -> Callable[..., int]:
        """Checks the set with a cache, and tells how many videos were looked at for it."""
        cache = tmp_path / "cache.json"

        def run(**options) -> int:
            looks: list[int] = []
            source = open_coco(place.img_folder, str(place.ann_file), name=place.name)
            read = source.read
            monkeypatch.setattr(type(source), "read", lambda self, index: looks.append(index) or read(index))
            report = check(source, workers=0, cache=cache, **options)
            monkeypatch.undo()
            assert report == check(source, workers=0, decode=report.decoded), "from the cache or not, the report is one"
            return len(looks)

        return run

    def test_saves_the_second_look(self, looked):
        assert looked() == 4
        assert looked() == 0
        assert looked(decode=False) == 0

    def test_of_headers_does_not_do_for_pixels(self, looked):
        assert looked(decode=False) == 4
        assert looked() == 4

    @pytest.mark.parametrize(
        "change_file",
        [
            lambda folder: truncate(folder / "1.png"),
            lambda folder: (folder / "1.png").unlink(),
            lambda folder: os.utime(folder / "1.png", ns=(0, 0)),
            lambda folder: (folder / "a.json").write_text((folder / "a.json").read_text() + " "),
        ],
        ids=["truncated", "deleted", "touched", "annotations"],
    )
    def test_is_stale_when_a_file_changes(self, looked, place, change_file):
        looked()
        change_file(Path(place.img_folder))
        assert looked() == 4
        assert looked() == 0

    def test_is_stale_when_a_missing_file_appears(self, looked, place):
        path = Path(place.img_folder) / "1.png"
        content = path.read_bytes()
        path.unlink()
        looked()
        path.write_bytes(content)
        assert looked() == 4

    @pytest.mark.parametrize("what", ["CHECK_VERSION", "PIL.__version__", "av.__version__"])
    def test_is_stale_when_what_decides_of_its_content_changes(self, looked, what):
        looked()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"src.data.checks.cache.{what}", "another")
            assert looked() == 4
            assert looked() == 0
        assert looked() == 4

    def test_is_stale_when_another_reader_opens_the_same_files(self, place, tmp_path):
        class OtherReader(Listed):
            pass

        files, cache = [Path(str(place.ann_file))], tmp_path / "cache.json"
        assert check(Listed([], files=files), workers=0, cache=cache).notes == {}
        issue = Issue("note", "a", "", "a problem", "an action")
        other = OtherReader([], files=files, issues=[issue])
        assert check(other, workers=0, cache=cache).notes == {"a problem, an action": 1}

    def test_a_damaged_one_is_made_anew(self, looked, tmp_path):
        (tmp_path / "cache.json").write_text("{")
        assert looked() == 4
        assert looked() == 0


class TestLoading:
    def test_videos_are_parsed_when_they_are_asked_for(self, place, options):
        data = load_data(place, options)
        assert len(data) == len(list(data.videos)) == 4
        few = data.videos[1:3]
        assert [video.video_id for video in few] == ["1", "2"]
        assert [video.video_id for video in few[::-1]] == ["2", "1"]
        assert data.videos[-1].masks(0)[1].sum() == 64
        assert data.median_object_side(64) == 16

    def test_the_size_of_objects_is_known_from_the_check(self, place, options, monkeypatch):
        data = load_data(place, options)
        monkeypatch.setattr(CocoSource, "read", lambda *_: pytest.fail("parsed once more"))
        assert data.median_object_side(64) == 16

    def test_damage_is_refused_in_one_line(self, place, options):
        truncate(Path(place.img_folder) / "2.png")
        for _ in range(2):  # the second time from the cache
            with refuses("data.damaged", "2.png", "--skip-bad") as caught:
                load_data(place, options)
            assert str(caught.value).isprintable()

    def test_damage_is_left_out_and_listed(self, place, options, tmp_path):
        truncate(Path(place.img_folder) / "2.png")
        other = coco(tmp_path / "other")
        change(other, lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3]]))
        skipping = replace(options, skip_bad=True)
        assert [video.video_id for video in load_data(place, skipping).videos] == ["0", "1", "3"]
        assert len(load_data(other, skipping)) == 3
        path = options.output_dir / "skipped.json"
        listed = json.loads(path.read_text())
        assert [len(issues) for issues in listed.values()] == [1, 1]
        assert [issue["file"] for issues in listed.values() for issue in issues] == [
            str(Path(place.img_folder) / "2.png"),
            other.ann_file,
        ]
        coco(Path(place.img_folder))  # mended
        assert len(load_data(place, skipping)) == 4
        assert list(json.loads(path.read_text())) == [f"things: {other.ann_file}"]

    @pytest.fixture
    def videos(self, tmp_path):
        """Two videos of three frames; object 1 is on all of them, object 2 on the second, void on the last."""
        frames, masks = tmp_path / "set" / "JPEGImages", tmp_path / "set" / "Annotations"
        rng = np.random.default_rng(0)
        for video in ("good", "bad"):
            for folder in (frames / video, masks / video):
                folder.mkdir(parents=True)
            for t in range(3):
                noise = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(noise).save(frames / video / f"{t}.png")
                labels = np.eye(SIZE, dtype=np.uint8)
                labels[0, 1] = (0, 2, 255)[t]
                Image.fromarray(labels).save(masks / video / f"{t}.png")
        return NamedSplit(name="videos", img_folder=str(frames))

    def test_a_damaged_frame_costs_itself_alone(self, options, videos):
        frames = Path(videos.img_folder)
        truncate(frames / "bad" / "1.png")
        (frames.parent / "Annotations" / "good" / "2.png").write_bytes(b"no mask")
        for _ in range(2):  # the second time from the cache
            data = load_data(videos, replace(options, skip_bad=True))
            bad, good = data.videos
            assert (good.video_id, len(good), good.annotated) == ("good", 3, {0, 1})
            assert [Path(frame.name).name for frame in bad.frames] == ["0.png", "2.png"]
            assert [(o.object_id, len(o.segmentations)) for o in bad.objects] == [(1, 2)]
            assert list(bad.void) == [1]
            assert (data.contents.frames, data.contents.objects) == (5, 3)
            assert len(data.videos[:1][0]) == 2
        (listed,) = json.loads((options.output_dir / "skipped.json").read_text()).values()
        assert {Path(one["file"]).relative_to(frames.parent).as_posix() for one in listed} == {
            "JPEGImages/bad/1.png",
            "Annotations/good/2.png",
        }

    def test_a_video_that_has_no_object_without_its_damaged_frames_is_listed_as_left_out(self, options, videos):
        frames = Path(videos.img_folder)
        for t in range(2):
            Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(frames.parent / "Annotations" / "bad" / f"{t}.png")
        truncate(frames / "bad" / "2.png")
        assert [video.video_id for video in load_data(videos, replace(options, skip_bad=True)).videos] == ["good"]
        (listed,) = json.loads((options.output_dir / "skipped.json").read_text()).values()
        assert [one["entry"] for one in listed if one["action"] == "the video is left out whole"] == ["video bad"]

    def test_nothing_usable_is_refused_whatever_is_left_out(self, place, options):
        for image in Path(place.img_folder).glob("*.png"):
            image.unlink()
        with refuses("data.nothing-usable", "a.json", "4 damaged", "0.png"):
            load_data(place, replace(options, skip_bad=True))

    def test_a_file_that_goes_after_the_check_is_told(self, place, options):
        data = load_data(place, options)
        (Path(place.img_folder) / "3.png").unlink()
        with refuses("data.changed", "things", "3.png"):
            data.videos[3]

    def test_another_setting_is_another_check(self, place, options):
        load_data(place, options)
        chosen = place.model_copy(update={"videos": ["1"]})
        assert [video.video_id for video in load_data(chosen, options).videos] == ["1"]
        assert len(load_data(place, options)) == 4


def test_a_report_of_damage_needs_leave_to_skip_it(place):
    truncate(Path(place.img_folder) / "0.png")
    source = open_coco(place.img_folder, str(place.ann_file))
    report = check(source, workers=0)
    assert len(data_set(source, report, skip_bad=True)) == 3
    with refuses("data.damaged", "--skip-bad"):
        data_set(source, report)
