"""The plain records."""

from __future__ import annotations

import numpy as np

from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord


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
