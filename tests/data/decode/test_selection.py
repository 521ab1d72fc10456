"""Some frames of a video: which, how large, and what prompts for them mean."""

from __future__ import annotations

import numpy as np
import pytest

from src.data.decode.selection import Selection, parse_range
from src.data.decode.video import FrameFiles
from src.data.prompts import Prompt
from tests.errors import refuses


@pytest.fixture
def footage(tmp_path):
    from PIL import Image

    for t in range(10):
        Image.fromarray(np.full((20, 40, 3), 20 * t, np.uint8)).save(tmp_path / f"{t}.png")
    return FrameFiles("clip", [tmp_path / f"{t}.png" for t in range(10)])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [((0, None, 1), range(10)), ((2, 8, 3), [2, 5]), ((7, 99, 2), [7, 9]), ((0, 1, 5), [0])],
)
def test_frames_and_their_names(footage, chosen, expected):
    taken = Selection(footage, *chosen)
    assert [int(frame[0, 0, 0]) // 20 for frame in taken] == list(expected)
    assert taken.count == len(expected)
    assert [taken.frame_file(i) for i in range(taken.count)] == [f"{t}.png" for t in expected]
    assert taken.rate == footage.rate / chosen[2]


def test_frames_that_are_not_there(footage):
    with refuses("frames.none", "10 frames"):
        list(Selection(footage, 12))


@pytest.mark.parametrize("text", ["", "3", "5:5", "9:2", "-1:4", "a:b", "1:2:3"])
def test_ranges_that_are_none(text):
    with pytest.raises(ValueError):
        parse_range(text)
    assert [parse_range(each) for each in ("100:400", "100:", ":400")] == [(100, 400), (100, None), (0, 400)]


def test_prompts_keep_the_videos_numbers_and_pixels(footage):
    mask = np.zeros((20, 40), bool)
    mask[:10] = True
    prompts = {
        0: [Prompt(1, box=(4, 2, 20, 10))],
        5: [Prompt(2, points=((40, 20),), labels=(1,)), Prompt(3, mask=mask)],
    }
    found = Selection(footage, 2, 8, 3, max_side=20).select_prompts(prompts)
    assert found[0][0].box == (2, 1, 10, 5)
    assert found[1][0].points == ((20, 10),)
    assert found[1][1].mask.shape == (10, 20) and found[1][1].mask.sum() == 100
    assert next(iter(Selection(footage, 2, 8, 3, max_side=20))).shape == (10, 20, 3)
    assert next(iter(Selection(footage, max_side=99))).shape == (20, 40, 3), "never larger"


@pytest.mark.parametrize("number", [1, 3, 8])
def test_a_prompt_on_a_frame_that_is_left_out(footage, number):
    with refuses("prompts.no-such-frame", str(number)):
        Selection(footage, 2, 8, 3).select_prompts({number: [Prompt(1, box=(0, 0, 9, 9))]})
