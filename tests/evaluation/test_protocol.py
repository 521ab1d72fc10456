"""Which frames of an object each protocol scores."""

from __future__ import annotations

import numpy as np
import pytest

from src.data.records import RLE, ArrayFrame, ObjectTrack, VideoRecord
from src.evaluation.protocol import first_frame, one_object_per_pixel, scored_frames

MASK, NOTHING = RLE.encode(np.ones((4, 4), bool)), RLE.encode(np.zeros((4, 4), bool))
FRAME = ArrayFrame(np.zeros((4, 4, 3), np.uint8))


def track(object_id: int, seen: str) -> ObjectTrack:
    """``--xx-``: seen on frames 2 and 3 of 5."""
    return ObjectTrack(object_id, [MASK if mark == "x" else None for mark in seen])


def video(*objects: ObjectTrack, annotated: set[int] | None = None) -> VideoRecord:
    frames = [FRAME] * len(objects[0].segmentations)
    return VideoRecord("v", 4, 4, frames, list(objects), None if annotated is None else frozenset(annotated))


def frames(protocol: str, of: VideoRecord, place: int = 0, predicted: str = "") -> list[int]:
    masks = [MASK if mark == "x" else NOTHING for mark in predicted] or [NOTHING] * len(of)
    return scored_frames(protocol, of, of.objects[place], masks)


@pytest.mark.parametrize(
    ("seen", "after_prompt", "davis", "sav"),
    [
        ("xxxxx", [1, 2, 3, 4], [1, 2, 3], [1, 2, 3]),
        ("x---x", [1, 2, 3, 4], [1, 2, 3], []),
        ("x-x--", [1, 2, 3, 4], [1, 2, 3], [2, 3]),
        ("--xx-", [3, 4], [1, 2, 3], [2, 3]),
        ("----x", [], [1, 2, 3], []),
    ],
)
def test_frames_by_protocol(seen, after_prompt, davis, sav):
    of = video(track(1, seen), track(2, "xxxxx"))  # DAVIS counts objects up to the largest number on the first frame
    assert frames("after_prompt", of) == after_prompt
    assert frames("davis", of) == davis
    assert frames("sav", of) == sav


def test_davis_does_not_know_objects_numbered_above_those_on_the_first_frame():
    assert frames("davis", video(track(3, "-xxxx"), track(2, "xxxxx"))) == []
    assert frames("davis", video(track(1, "-xxxx"), track(2, "-xxxx"))) == []


def test_sav_counts_from_where_an_object_is_predicted():
    of = video(track(1, "x---xx"))
    assert frames("sav", of) == [4]
    assert frames("sav", of, predicted="x-x---") == [2, 3, 4]


def test_only_annotated_frames_are_scored():
    of = video(track(1, "x---x---x"), annotated={0, 2, 4, 6, 8})
    assert frames("after_prompt", of) == [2, 4, 6, 8]
    assert frames("davis", of) == [2, 4, 6]
    assert frames("sav", of, predicted="xxxxxxxxx") == [2, 4, 6]


@pytest.mark.parametrize("protocol", ["after_prompt", "davis", "sav"])
@pytest.mark.parametrize("annotated", [{0}, {0, 1}])
def test_videos_with_next_to_nothing_annotated(protocol, annotated):
    expected = [1] if (protocol, annotated) == ("after_prompt", {0, 1}) else []
    assert frames(protocol, video(track(1, "xx---"), annotated=annotated)) == expected


def test_objects_are_prompted_where_they_are_first_seen():
    of = video(track(1, "--xx-"), track(7, "xx---"))
    assert (first_frame(of, 1), first_frame(of, 7)) == (2, 0)


def test_only_davis_gives_a_pixel_to_one_object():
    assert [one_object_per_pixel(name) for name in ("after_prompt", "davis", "sav")] == [False, True, False]
