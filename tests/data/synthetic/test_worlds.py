"""Synthetic videos are exact and repeatable, and go to COCO files and back without losing a pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import label

from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.synthetic import (
    CELLS,
    FLAKES,
    HELD_OUT_SEED,
    SHIFTS,
    SOURCE,
    THERMAL,
    TISSUE,
    Domain,
    make_video,
    make_videos,
    mixed,
    shifted,
)
from src.data.synthetic.render import TEXTURE, Fill, outline, texture
from src.data.writers import write_coco

DOMAINS = pytest.mark.parametrize("domain", [SOURCE, CELLS, TISSUE, THERMAL, FLAKES], ids=lambda domain: domain.name)


def pixels(video: VideoRecord) -> np.ndarray:
    return np.stack([frame.read() for frame in video.frames])


@DOMAINS
def test_a_seed_is_a_video(domain):
    one, two = make_video(domain, 5, 3, 48), make_video(domain, 5, 3, 48)
    assert np.array_equal(pixels(one), pixels(two))
    assert [o.segmentations for o in one.objects] == [o.segmentations for o in two.objects]


@DOMAINS
def test_seeds_differ_and_held_out_ones_too(domain):
    seeds = [0, 1, HELD_OUT_SEED, HELD_OUT_SEED + 1]
    drawn = [pixels(make_video(domain, seed, 1, 48)) for seed in seeds]
    assert not any(np.array_equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))


def test_domains_differ_for_the_same_seed():
    drawn = [pixels(make_video(domain, 0, 1, 48)) for domain in (SOURCE, CELLS, TISSUE, THERMAL, FLAKES)]
    assert not any(np.array_equal(drawn[i], drawn[j]) for i in range(5) for j in range(i))


@DOMAINS
@pytest.mark.parametrize("kind", SHIFTS)
def test_a_shift_changes_the_look_and_not_the_things(domain, kind):
    as_is, seen = make_video(domain, 3, 2, 48), make_video(shifted(domain, kind), 3, 2, 48)
    assert [o.segmentations for o in seen.objects] == [o.segmentations for o in as_is.objects]
    already_so = kind == "grey" and domain in (CELLS, THERMAL)
    assert np.array_equal(pixels(seen), pixels(as_is)) == already_so
    assert np.array_equal(pixels(seen), pixels(make_video(shifted(domain, kind), 3, 2, 48)))


def test_shifts_are_what_they_are_called():
    def shift(kind, domain=SOURCE):
        return np.stack([pixels(make_video(shifted(domain, kind), seed, 1, 48)) for seed in range(4)]).astype(float)

    as_is = np.stack([pixels(make_video(SOURCE, seed, 1, 48)) for seed in range(4)]).astype(float)
    assert shift("dark").mean() < 0.7 * as_is.mean() < as_is.mean() * 1.1 < shift("bright").mean()

    def roughness(images):
        return np.abs(np.diff(images, axis=3)).mean()

    assert shift("blur").max() > 100
    assert roughness(shift("blur")) < roughness(as_is) < roughness(shift("noise"))
    assert np.ptp(shift("grey"), axis=-1).mean() < 0.3 * np.ptp(as_is, axis=-1).mean(), (
        "only the camera's noise has colour"
    )
    both = shift("grey", shifted(SOURCE, "dark"))
    assert both.mean() < 0.7 * as_is.mean()
    assert np.ptp(both, axis=-1).mean() < 0.3 * np.ptp(as_is, axis=-1).mean()
    with pytest.raises(ValueError, match="unknown shift 'old'"):
        shifted(SOURCE, "old")


def test_mixed_is_one_domains_things_before_anothers_ground():
    video = make_video(mixed(SOURCE, CELLS), 3, 1, 96)
    image, things = video.frames[0].read().astype(float), np.any([*video.masks(0).values()], axis=0)
    colour = np.ptp(image, axis=-1)
    assert np.median(colour) < 30 < colour[things].mean()


@DOMAINS
@pytest.mark.parametrize("seed", range(4))
def test_a_video_is_a_sound_record(domain, seed):
    video = make_videos(domain, 1, seed, 4, 48).videos[0]
    assert (len(video), video.height, video.width) == (4, 48, 48)
    assert pixels(video).shape == (4, 48, 48, 3)
    assert pixels(video).dtype == np.uint8
    assert len({o.object_id for o in video.objects}) == len(video.objects) > 0
    assert domain.objects[1] >= len(video.objects)
    for obj in video.objects:
        assert len(obj.segmentations) == 4
        assert obj.segmentations[0] is not None
    for t in range(4):
        masks = list(video.masks(t).values())
        assert all(mask.shape == (48, 48) and mask.any() for mask in masks)
        assert np.max(sum(masks, np.zeros((48, 48), int))) <= 1, "objects share no pixel"


@DOMAINS
def test_things_move(domain):
    video = make_video(domain, 1, 8, 48)
    first, last = video.masks(0), video.masks(7)
    assert any(i not in last or not np.array_equal(first[i], last[i]) for i in first)
    assert not np.array_equal(pixels(video)[0], pixels(video)[7])


def test_masks_are_what_is_seen():
    """Flat red things on black: the pixels that are more red than black are the objects'."""
    world = Domain(
        name="red", objects=(2, 4), distractors=(0, 0), radius=(0.1, 0.25), speed=0.2, camera=0.05, noise=(0.0, 0.0),
        fill=lambda rng: Fill(np.tile(np.array([1.0, 0.0, 0.0]), (TEXTURE, TEXTURE, 1))),
        background=lambda rng: np.zeros((8, 8, 3)), light=(0.0, 0.0),
    )  # fmt: skip
    for seed in range(4):
        video = make_video(world, seed, 4, 64)
        for t in range(4):
            red = video.frames[t].read()[..., 0] / 255
            seen = np.any([*video.masks(t).values()], axis=0)
            flicker = red.max()
            assert (red[seen] > 0.45 * flicker).all()
            # below, up to 4 pixels a hidden object are let go, and soft edges of two things may add up
            assert (~seen & (red > 0.9 * flicker)).sum() <= 16


def test_a_thing_in_front_takes_the_pixels():
    world = Domain(
        name="crowd", objects=(6, 6), distractors=(4, 4), radius=(0.3, 0.4), speed=0.0, camera=0.0, noise=(0.0, 0.0),
        fill=SOURCE.fill, background=SOURCE.background, light=(0.0, 0.0),
    )  # fmt: skip
    areas = [sum(m.sum() for m in make_video(world, seed, 1, 48).masks(0).values()) for seed in range(5)]
    assert max(areas) < 48 * 48, "distractors hide a part of the objects"


def test_every_video_of_a_set_has_an_object():
    data = make_videos(SOURCE, 6, 40, 1, 32)
    assert len(data) == 6
    assert all(video.objects for video in data.videos)
    assert len({video.video_id for video in data.videos}) == 6


@pytest.mark.parametrize("kind", ["ellipse", "blob", "rectangle", "polygon", "star"])
def test_outlines_reach_1_and_are_never_empty(kind):
    for seed in range(5):
        radius_A = outline(np.random.default_rng(seed), kind)
        assert radius_A.max() == pytest.approx(1)
        assert radius_A.min() > 0


def test_an_unknown_outline_is_our_own_mistake():
    with pytest.raises(ValueError, match="unknown outline 'heart'"):
        outline(np.random.default_rng(0), "heart")


@pytest.mark.parametrize("kind", ["flat", "noise", "stripes", "checks", "dots", "cloud", "gradient"])
def test_textures_blend_their_two_colours(kind):
    colours = np.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    tile = texture(np.random.default_rng(0), colours, kind)
    assert tile.shape == (TEXTURE, TEXTURE, 3)
    assert tile.min() >= -1e-9
    assert tile.max() <= 1 + 1e-9
    assert tile[..., 1] == pytest.approx(np.full((TEXTURE, TEXTURE), 0.5))


class TestCoco:
    @pytest.fixture
    def there_and_back(self, load_coco):
        def write_and_read(data: DataSet, folder) -> DataSet:
            write_coco(folder, data)
            return load_coco(folder, folder / "_annotations.coco.json")

        return write_and_read

    @staticmethod
    def assert_same_masks(data: DataSet, again: DataSet) -> None:
        assert again.notes == {}
        assert len(again) == len(data)
        for video, read in zip(data.videos, again.videos, strict=True):
            true, found = list(video.masks(0).values()), list(read.masks(0).values())
            assert len(true) == len(found)
            for mask, other in zip(true, found, strict=True):
                assert np.array_equal(mask, other)

    @DOMAINS
    def test_masks_come_back_to_the_pixel(self, there_and_back, domain, tmp_path):
        data = make_videos(domain, 6, 0, frames=1, side=96)
        again = there_and_back(data, tmp_path)
        self.assert_same_masks(data, again)
        assert [v.video_id for v in again.videos] == [v.video_id for v in data.videos]

    def test_pixels_come_back_but_for_jpeg(self, there_and_back, tmp_path):
        data = make_videos(CELLS, 1, 0, frames=1, side=96)
        again = there_and_back(data, tmp_path)
        difference = pixels(data.videos[0]).astype(int) - pixels(again.videos[0])
        assert np.abs(difference).mean() < 12

    @staticmethod
    def of_masks(*masks: np.ndarray) -> DataSet:
        side = masks[0].shape[0]
        objects = [ObjectTrack(i, [RLE.encode(mask)], "x") for i, mask in enumerate(masks, 1)]
        frame = ArrayFrame(np.zeros((side, side, 3), np.uint8))
        return DataSet("things", [VideoRecord("a", side, side, [frame], objects)])

    def test_a_hole_is_kept_by_run_lengths(self, there_and_back, tmp_path):
        mask = np.zeros((20, 20), bool)
        mask[4:14, 5:15] = True
        mask[8:10, 9:12] = False
        data = self.of_masks(mask)
        self.assert_same_masks(data, there_and_back(data, tmp_path))
        content = json.loads((tmp_path / "_annotations.coco.json").read_text())
        (annotation,) = content["annotations"]
        assert annotation["segmentation"]["size"] == [20, 20]
        assert sum(annotation["segmentation"]["counts"]) == 400
        assert annotation["area"] == mask.sum() == 94
        assert annotation["bbox"] == [5, 4, 10, 10]

    def test_a_hole_in_the_first_pixel_column_too(self, there_and_back, tmp_path):
        mask = np.ones((8, 8), bool)
        mask[3, 3] = False
        data = self.of_masks(mask)
        self.assert_same_masks(data, there_and_back(data, tmp_path))

    def test_parts_become_polygons(self, there_and_back, tmp_path):
        mask = np.zeros((20, 20), bool)
        mask[2:6, 2:6] = mask[10:18, 8:12] = True
        data = self.of_masks(mask)
        self.assert_same_masks(data, there_and_back(data, tmp_path))
        (annotation,) = json.loads((tmp_path / "_annotations.coco.json").read_text())["annotations"]
        assert len(annotation["segmentation"]) == 2

    @pytest.mark.parametrize("seed", range(8))
    def test_any_mask_comes_back_to_the_pixel(self, there_and_back, seed, tmp_path):
        """Speckle: single pixels, lines, corners that touch, and the border of the picture."""
        rng = np.random.default_rng(seed)
        masks = [rng.random((12, 12)) < share for share in (0.1, 0.3, 0.5, 0.8)]
        data = self.of_masks(*masks)
        self.assert_same_masks(data, there_and_back(data, tmp_path))

    def test_the_tiny_set_of_the_tests_has_what_they_need(self, load_coco, tiny_data):
        train = load_coco(tiny_data / "train", tiny_data / "train/_annotations.coco.json")
        valid = load_coco(tiny_data / "valid", tiny_data / "valid/_annotations.coco.json")
        assert (len(train), len(valid)) == (5, 2)
        assert all(label(mask)[1] >= 1 for video in train.videos for mask in video.masks(0).values())
