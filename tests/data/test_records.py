"""The plain records."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from src.data import records
from src.data.records import RLE, ArrayFrame, DataSet, Issue, ObjectTrack, SourceVideos, VideoRecord


def square(side: int, size: int = 40) -> RLE:
    mask = np.zeros((size, size), bool)
    mask[:side, :side] = True
    return RLE.encode(mask)


def test_a_mask_comes_back_and_knows_its_area() -> None:
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    encoded = RLE.encode(mask)
    assert np.array_equal(encoded.decode(), mask)
    assert encoded.area() == mask.sum()


def test_masks_of_a_frame_leave_out_absent_objects() -> None:
    frame = ArrayFrame(np.zeros((40, 40, 3), np.uint8))
    objects = [ObjectTrack(1, [square(4), None]), ObjectTrack(2, [None, square(5)])]
    video = VideoRecord("v", 40, 40, [frame, frame], objects)
    assert list(video.masks(0)) == [1]
    assert list(video.masks(1)) == [2]
    assert video.masks(1)[2].sum() == 25


def test_median_object_side_is_in_pixels_of_the_model() -> None:
    frame = ArrayFrame(np.zeros((40, 40, 3), np.uint8))
    videos = [VideoRecord("v", 40, 40, [frame], [ObjectTrack(1, [square(side)])]) for side in (2, 4, 20)]
    assert DataSet("d", videos).median_object_side(80) == 8


@dataclass
class Counting:
    """A source of videos with one mask each, which notes what is parsed."""

    count: int
    name: str = "counting"
    files: list[Path] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    parsed: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[VideoRecord, list[Issue]]:
        self.parsed.append(index)
        frame = ArrayFrame(np.zeros((40, 40, 3), np.uint8))
        return VideoRecord(str(index), 40, 40, [frame], [ObjectTrack(1, [square(8)])]), []

    def videos(self) -> SourceVideos:
        return SourceVideos(self, np.arange(self.count))


class TestParsedVideos:
    def test_are_kept_while_they_are_small(self) -> None:
        source = Counting(100)
        videos = source.videos()
        assert [video.video_id for video in [*videos, *videos]] == [*map(str, range(100))] * 2
        assert source.parsed == list(range(100))

    def test_that_take_too_much_make_room_from_the_one_used_longest_ago(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "LRU_MAX_BYTES", 40 * 1100)  # two items and some runs each
        source = Counting(100)
        videos = source.videos()
        for i in (*range(40), 0, 40, 41, 42, 43):
            _ = videos[i]
        source.parsed.clear()
        _ = videos[0], videos[43], videos[1]
        assert source.parsed == [1]

    def test_are_kept_in_a_small_number_whatever_they_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(records, "LRU_MAX_BYTES", 0)
        source = Counting(records.LRU_MIN_ITEMS + 1)
        videos = source.videos()
        for i in range(len(videos)):
            _ = videos[i]
        source.parsed.clear()
        _ = [videos[i] for i in range(1, len(videos))]
        assert source.parsed == []
        _ = videos[0]
        assert source.parsed == [0]

    def test_stay_in_their_process(self) -> None:
        videos = Counting(50).videos()
        empty = len(pickle.dumps(videos))
        for i in range(50):
            _ = videos[i]
        videos.source.parsed.clear()  # type: ignore[attr-defined]
        assert len(pickle.dumps(videos)) == empty
