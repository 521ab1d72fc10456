"""Prompts from the command line and from JSON: what they mean, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.prompts import Prompt, check_prompts, parse_prompts
from src.data.records import RLE
from tests.errors import refuses


def save_mask(path: Path, numbers: np.ndarray, palette: bool) -> Path:
    image = Image.fromarray(numbers.astype(np.uint8))
    if palette:
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)
    return path


@pytest.fixture
def numbers() -> np.ndarray:
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:3, 1:3], mask[4:, 5:] = 1, 2
    return mask


class TestCommandLine:
    @pytest.mark.parametrize(
        ("text", "frame", "object_id"), [("1,2,3,4", 0, 1), ("7:1,2,3,4", 0, 7), ("7@12:1,2,3,4", 12, 7)]
    )
    def test_the_prefix_names_object_and_frame(self, text, frame, object_id):
        assert parse_prompts(boxes=[text]) == {frame: [Prompt(object_id, box=(1, 2, 3, 4))]}

    def test_clicks_and_a_box_for_one_object_are_one_prompt(self):
        prompts = parse_prompts(boxes=["1,2,3,4", "2@5:0,0,9,9"], points=["3,4", "1@0:5,6,0", "2@5:1.5,1"])
        assert prompts == {
            0: [Prompt(1, ((3, 4), (5, 6)), (1, 0), (1, 2, 3, 4))],
            5: [Prompt(2, ((1.5, 1),), (1,), (0, 0, 9, 9))],
        }

    def test_a_palette_image_holds_several_objects(self, tmp_path, numbers):
        path = save_mask(tmp_path / "m.png", numbers, palette=True)
        (first, second) = parse_prompts(masks=[str(path)])[0]
        assert (first.object_id, second.object_id) == (1, 2)
        assert np.array_equal(first.mask, numbers == 1)
        assert np.array_equal(second.mask, numbers == 2)
        (only,) = parse_prompts(masks=[f"2@3:{path}"])[3]
        assert only.object_id == 2
        assert np.array_equal(only.mask, numbers == 2)

    def test_a_grey_image_of_labels_holds_several_objects_as_in_training(self, tmp_path, numbers):
        labels = numbers * 2
        labels[0, 0] = 255
        prompts = parse_prompts(masks=[str(save_mask(tmp_path / "m.png", labels, palette=False))])[0]
        assert [prompt.object_id for prompt in prompts] == [2, 4]
        assert all(np.array_equal(prompt.mask, labels == prompt.object_id) for prompt in prompts)

    @pytest.mark.parametrize("object_id", [1, 4])
    def test_a_single_object_is_the_one_that_the_prefix_names(self, tmp_path, numbers, object_id):
        path = save_mask(tmp_path / "m.png", (numbers > 0) * np.uint8(255), palette=False)
        (prompt,) = parse_prompts(masks=[f"{object_id}:{path}"])[0]
        assert prompt.object_id == object_id
        assert np.array_equal(prompt.mask, numbers > 0)

    def test_a_mask_file_is_refused_and_read_as_in_data_sets(self, tmp_path, numbers):
        noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
        photo, jpeg = tmp_path / "photo.png", tmp_path / "m.jpg"
        Image.fromarray(noise).save(photo)
        Image.fromarray(np.kron(numbers > 0, np.ones((8, 8))).astype(np.uint8) * 255).save(jpeg)
        with refuses("mask.too-many-values", "photo.png"):
            parse_prompts(masks=[str(photo)])
        with refuses("mask.jpeg", "m.jpg", "dataset.mask_threshold"):
            parse_prompts(masks=[str(jpeg)])
        (prompt,) = parse_prompts(masks=[str(jpeg)], mask_threshold=0.5)[0]
        assert np.array_equal(prompt.mask, np.kron(numbers > 0, np.ones((8, 8), bool)))

    @pytest.mark.parametrize(
        ("options", "code", "fact"),
        [
            ({}, "prompt.none", "--box"),
            ({"boxes": ["1,2,3"]}, "prompt.form", "--box 1,2,3"),
            ({"boxes": ["a,b,c,d"]}, "prompt.form", "--box a,b,c,d"),
            ({"points": ["1"]}, "prompt.form", "--point 1"),
            ({"points": ["nan,2"]}, "prompt.form", "--point nan,2"),
            ({"points": ["1,2,5"]}, "prompt.label", "5"),
            ({"points": ["0:1,2"]}, "prompt.object-number", "1 to 255"),
            ({"points": ["256:1,2"]}, "prompt.object-number", "1 to 255"),
            ({"boxes": ["1,2,3,4", "1:5,6,7,8"]}, "prompt.combination", "object 1 on frame 0"),
            ({"masks": ["none.png"]}, "file.missing", "none.png"),
            ({"file": "none.json"}, "file.missing", "none.json"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, options, code, fact):
        with refuses(code, fact):
            parse_prompts(**options)

    def test_masks_that_are_none_are_refused(self, tmp_path, numbers):
        (tmp_path / "text.png").write_bytes(b"text")
        with refuses("image.unknown-type", "text.png"):
            parse_prompts(masks=[str(tmp_path / "text.png")])
        whole = save_mask(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 2, (90, 90)), False).read_bytes()
        (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
        with refuses("image.damaged", "cut.png"):
            parse_prompts(masks=[str(tmp_path / "cut.png")])
        empty = save_mask(tmp_path / "empty.png", numbers * 0, palette=True)
        with refuses("prompt.empty-mask", "empty.png"):
            parse_prompts(masks=[str(empty)])
        two = save_mask(tmp_path / "two.png", numbers, palette=True)
        with refuses("prompt.no-such-object", "object 3", "1,2"):
            parse_prompts(masks=[f"3:{two}"])


class TestJson:
    def write(self, tmp_path: Path, entries: object) -> Path:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps(entries))
        return path

    def test_every_kind_of_entry(self, tmp_path, numbers):
        save_mask(tmp_path / "m.png", numbers, palette=True)
        rle = RLE.encode(numbers == 2).rle
        path = self.write(
            tmp_path,
            [
                {"box": [1, 2, 3, 4], "points": [[5, 6]]},
                {"object": 2, "frame": 30, "points": [[1, 2], [3, 4]], "labels": [1, 0]},
                {"object": 2, "mask": "m.png"},
                {"object": 3, "mask": {"size": rle["size"], "counts": rle["counts"].decode()}},
            ],
        )
        prompts = parse_prompts(file=path)
        assert list(prompts) == [0, 30]
        assert prompts[30] == [Prompt(2, ((1, 2), (3, 4)), (1, 0))]
        first, second, third = prompts[0]
        assert first == Prompt(1, ((5, 6),), (1,), (1, 2, 3, 4))
        assert second.object_id == 2 and np.array_equal(second.mask, numbers == 2)
        assert third.object_id == 3 and np.array_equal(third.mask, numbers == 2)

    @pytest.mark.parametrize(
        ("entries", "code", "fact"),
        [
            ({}, "prompt.json", "list"),
            ([{"object": 0, "box": [1, 2, 3, 4]}], "prompt.json", "entry 0.object"),
            ([{"boks": [1, 2, 3, 4]}], "prompt.json", "entry 0.boks"),
            ([{"object": 1}], "prompt.combination", "entry 0: object 1: a prompt needs"),
            ([{"points": [[1, 2]], "labels": [1, 0]}], "prompt.combination", "1 points, but 2 labels"),
            ([{"points": [[1, 2]], "labels": [2]}], "prompt.label", "entry 0"),
            ([{"mask": "m.png", "box": [1, 2, 3, 4]}], "prompt.combination", "entry 0"),
            ([{"mask": {"size": [6, 8], "counts": "x"}}], "prompt.rle", "entry 0"),
            ([{"mask": {"size": "6"}}], "prompt.rle", "entry 0"),
        ],
    )
    def test_mistakes_name_their_entry(self, tmp_path, entries, code, fact):
        with refuses(code, fact):
            parse_prompts(file=self.write(tmp_path, entries))

    def test_other_files_are_refused(self, tmp_path):
        (tmp_path / "x.json").write_text("{")
        with refuses("prompt.json", "x.json"):
            parse_prompts(file=tmp_path / "x.json")


class TestCheck:
    @pytest.mark.parametrize(
        ("prompt", "code", "fact"),
        [
            (
                Prompt(1, ((8.5, 2),), (1,)),
                "prompt.outside",
                "object 1 on frame 3: the point 8.5,2 is outside the frame",
            ),
            (Prompt(1, ((2, -1),), (1,)), "prompt.outside", "8×6"),
            (Prompt(1, box=(0, 0, 3, 7)), "prompt.outside", "0,0,3,7"),
            (Prompt(1, box=(3, 3, 3, 5)), "prompt.empty-box", "3,3,3,5"),
            (Prompt(1, box=(5, 3, 3, 5)), "prompt.empty-box", "5,3,3,5"),
            (Prompt(1, mask=np.ones((8, 6), bool)), "prompt.mask-size", "6×8"),
            (Prompt(1, mask=np.zeros((6, 8), bool)), "prompt.empty-mask", "object 1"),
        ],
    )
    def test_prompts_must_fit_the_frames(self, prompt, code, fact):
        with refuses(code, fact):
            check_prompts({3: [prompt]}, 6, 8)

    def test_the_whole_frame_may_be_pointed_at(self):
        check_prompts({0: [Prompt(1, ((0, 0), (8, 6)), (1, 0), (0, 0, 8, 6))]}, 6, 8)


@pytest.mark.parametrize("arguments", [{}, {"points": ((1, 2),)}, {"mask": np.ones((2, 2), bool), "box": (0, 0, 1, 1)}])
def test_a_prompt_without_sense_cannot_be_made(arguments):
    with pytest.raises(ValueError, match="object 1: "):
        Prompt(1, **arguments)
