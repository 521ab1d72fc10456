"""Simulated motion: pixels and masks move together, from an unmoved first frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.config import MotionConfig
from src.data.transforms import resize, simulate_motion

NOTHING = MotionConfig(
    degrees=0, translate=0, scale=0, shear=0, brightness=0, contrast=0, elastic=0, occlusion=0, flip=0
)
EVERYTHING = MotionConfig(occlusion=1, flip=0)


def motion(**changes: float) -> MotionConfig:
    return NOTHING.model_copy(update=changes)


def scene(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A white block on black, and its mask as the only object."""
    mask = np.zeros((1, height, width), bool)
    mask[0, 24:36, 30:50] = True
    return np.repeat(mask[0, :, :, None] * np.uint8(255), 3, axis=2), mask


def noise(height: int = 60, width: int = 80, objects: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.random((objects, height, width)) < 0.5


def simulate(image, masks, config, seed=0, frames=4, height=None, width=None):
    height, width = height or image.shape[0], width or image.shape[1]
    return simulate_motion(image, masks, frames, height, width, config, np.random.default_rng(seed))


def centroid(weight_HW: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: weight_HW.shape[0], : weight_HW.shape[1]]
    return np.array([(weight_HW * y).sum(), (weight_HW * x).sum()]) / weight_HW.sum()


def test_layout_and_types():
    image, masks = noise()
    frames_THWC, masks_TOHW = simulate(image, masks, EVERYTHING, frames=5, height=32, width=48)
    assert (frames_THWC.shape, frames_THWC.dtype) == ((5, 32, 48, 3), np.uint8)
    assert (masks_TOHW.shape, masks_TOHW.dtype) == ((5, 2, 32, 48), bool)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_frame_is_the_image_itself(seed):
    image, masks = noise()
    frames_THWC, masks_TOHW = simulate(image, masks, EVERYTHING, seed)
    assert np.array_equal(frames_THWC[0], image)
    assert np.array_equal(masks_TOHW[0], masks)
    assert not np.array_equal(frames_THWC[1], image)


def test_without_motion_every_frame_is_the_image():
    image, masks = noise()
    frames_THWC, masks_TOHW = simulate(image, masks, NOTHING)
    assert all(np.array_equal(frame, image) for frame in frames_THWC)
    assert all(np.array_equal(frame, masks) for frame in masks_TOHW)


def test_one_frame_is_the_image():
    image, masks = noise()
    frames_THWC, masks_TOHW = simulate(image, masks, EVERYTHING, frames=1)
    assert np.array_equal(frames_THWC[0], image)
    assert np.array_equal(masks_TOHW[0], masks)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "config",
    [
        motion(translate=0.2), motion(degrees=60.0), motion(scale=0.4), motion(shear=20.0), motion(elastic=0.05),
        motion(translate=0.1, degrees=20.0, scale=0.2, shear=10.0, elastic=0.02),
    ],
    ids=["translate", "degrees", "scale", "shear", "elastic", "all"],
)  # fmt: skip
def test_masks_move_with_the_pixels(config, seed):
    image, masks = scene()
    frames_THWC, masks_TOHW = simulate(image, masks, config, seed)
    for frame, mask in zip(frames_THWC, masks_TOHW[:, 0], strict=True):
        # a pixel that is more white than black is the object's
        assert np.array_equal(frame[..., 0] > 127.5, mask)
    assert not np.array_equal(masks_TOHW[-1], masks_TOHW[0])


@pytest.mark.parametrize("seed", range(4))
def test_a_translation_moves_both_centroids_alike_and_evenly(seed):
    image, masks = scene()
    frames_THWC, masks_TOHW = simulate(image, masks, motion(translate=0.2), seed, frames=5)
    of_pixels = np.stack([centroid(frame[..., 0].astype(float)) for frame in frames_THWC])
    of_mask = np.stack([centroid(mask[0].astype(float)) for mask in masks_TOHW])
    assert of_mask == pytest.approx(of_pixels, abs=0.51)  # half a pixel is lost by the threshold
    steps = np.diff(of_pixels, axis=0)
    assert steps == pytest.approx(np.repeat(steps[:1], 4, axis=0), abs=0.05)
    assert np.abs(steps.sum(0)).max() > 0.5
    assert (np.abs(of_pixels[-1] - of_pixels[0]) <= np.array([0.2 * 60, 0.2 * 80]) + 0.05).all()


def test_rotation_keeps_shapes_in_pictures_that_are_not_square():
    image, masks = scene(60, 120)
    _, masks_TOHW = simulate(image, masks, motion(degrees=180.0), seed=3, frames=6)
    areas = masks_TOHW[:, 0].sum(axis=(1, 2))
    assert areas == pytest.approx(np.full(6, areas[0]), rel=0.06)


def test_what_comes_into_view_is_no_object():
    image, masks = noise(objects=1)
    _, masks_TOHW = simulate(image, np.ones_like(masks), motion(translate=0.5), seed=1)
    assert masks_TOHW[0].all()
    assert not masks_TOHW[-1].all()


def test_light_changes_pixels_and_not_masks():
    image, masks = noise()
    frames_THWC, masks_TOHW = simulate(image, masks, motion(brightness=0.5, contrast=0.5))
    assert not np.array_equal(frames_THWC[-1], image)
    assert all(np.array_equal(frame, masks) for frame in masks_TOHW)


@pytest.mark.parametrize("seed", range(4))
def test_an_occluder_hides_pixels_and_masks_alike(seed):
    image, masks = noise(objects=2)
    masks[1] = True
    frames_THWC, masks_TOHW = simulate(image, masks, motion(occlusion=1.0), seed, frames=6)
    hidden_THW = ~masks_TOHW[:, 1]
    assert not hidden_THW[0].any()
    assert hidden_THW[1:].any()
    assert not hidden_THW.all(axis=(1, 2)).any()
    changed_THW = (frames_THWC != image).any(axis=-1)
    assert not (changed_THW & ~hidden_THW).any()
    assert (changed_THW[hidden_THW]).mean() > 0.9  # another piece of the picture may have the same colour
    assert np.array_equal(masks_TOHW[:, 0], masks[0] & ~hidden_THW)
    assert not np.array_equal(hidden_THW[1], hidden_THW[-1])


def test_occlusion_is_a_chance():
    image, masks = noise(objects=1)
    masks[:] = True
    hidden = [not simulate(image, masks, motion(occlusion=0.5), seed)[1].all() for seed in range(40)]
    assert 8 < sum(hidden) < 32


def test_a_flip_mirrors_the_whole_clip():
    image, masks = noise()
    frames_THWC, masks_TOHW = simulate(image, masks, motion(flip=1.0))
    assert all(np.array_equal(frame, image[:, ::-1]) for frame in frames_THWC)
    assert all(np.array_equal(frame, masks[:, :, ::-1]) for frame in masks_TOHW)


def test_the_same_generator_gives_the_same_clip():
    image, masks = noise()
    first, again, other = (simulate(image, masks, EVERYTHING, seed) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_the_input_is_not_changed():
    image, masks = noise()
    before = image.copy(), masks.copy()
    simulate(image, masks, EVERYTHING)
    assert np.array_equal(image, before[0])
    assert np.array_equal(masks, before[1])


def test_resize_averages_and_leaves_the_same_size_alone():
    image = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 8.0]]])
    assert resize(image, 2, 4) is image
    assert resize(image, 1, 2).shape == (1, 1, 2)
    assert resize(torch.full((3, 9, 7), 5.0), 4, 4) == pytest.approx(torch.full((3, 4, 4), 5.0))
