"""Simulated motion and augmentation: pixels and masks move together, and colours change as often as they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision_colour

from src.config import AugmentationConfig, MotionConfig
from src.data.clips import transforms
from src.data.clips.augment import MEAN_COLOUR, apply_view, augment_colours, sample_view
from src.data.clips.motion import simulate_motion
from src.data.clips.transforms import resize, resize_mask, resize_picture, to_pixels

NOTHING = MotionConfig(degrees=0, translate=0, scale=0, shear=0, brightness=0, contrast=0, elastic=0, occlusion=0)
EVERYTHING = MotionConfig(occlusion=1)
NO_AUGMENTATION = AugmentationConfig(**dict.fromkeys(AugmentationConfig.model_fields, 0))


def as_floats(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float()


def augmentation(**changes: float) -> AugmentationConfig:
    return NO_AUGMENTATION.model_copy(update=changes)


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
    size = height or image.shape[0], width or image.shape[1]
    picture, soft = resize(as_floats(image), *size), resize(torch.from_numpy(masks).float(), *size)
    aspect = image.shape[1] / image.shape[0]
    frames_T3HW, masks_TOHW = simulate_motion(picture, soft, frames, aspect, config, np.random.default_rng(seed))
    return to_pixels(frames_T3HW), masks_TOHW.numpy()


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


@pytest.mark.parametrize(
    "config",
    [
        motion(translate=0.2), motion(degrees=60.0), motion(scale=0.4), motion(shear=20.0), motion(elastic=0.05),
        motion(translate=0.1, degrees=20.0, scale=0.2, shear=10.0, elastic=0.02),
    ],
    ids=["translate", "degrees", "scale", "shear", "elastic", "all"],
)  # fmt: skip
def test_masks_move_with_the_pixels(config):
    image, masks = scene()
    moved = []
    for seed in range(4):
        frames_THWC, masks_TOHW = simulate(image, masks, config, seed)
        for frame, mask in zip(frames_THWC, masks_TOHW[:, 0], strict=True):
            # a pixel that is more white than black is the object's
            assert np.array_equal(frame[..., 0] > 127.5, mask)
        moved.append(not np.array_equal(masks_TOHW[-1], masks_TOHW[0]))
    assert sum(moved) >= 3, "a draw may be too small to move a pixel"


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


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("side", [256, 387, 512])
def test_clips_are_the_same_with_any_number_of_threads(side):
    """Drawn to the end in floats, where a difference shows that pixels show in few clips only."""
    image, masks = noise(400, 500)

    def draw(threads: int, seed: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        rng = np.random.default_rng(seed)
        picture, soft = resize(as_floats(image), side, side), resize(torch.from_numpy(masks).float(), side, side)
        view = sample_view(soft, 1.25, AugmentationConfig(degrees=20), rng)
        frames, soft_TOHW = apply_view(picture[None], soft[None], view)
        moved, moved_masks = simulate_motion(frames[0], soft_TOHW[0], 3, 1.25, EVERYTHING, rng)
        return [moved, moved_masks, augment_colours(moved, AugmentationConfig(), rng)]

    for seed in range(4):
        for one, four in zip(draw(1, seed), draw(4, seed), strict=True):
            assert torch.equal(one, four)


def test_contrast_is_that_of_torchvision():
    frames = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (3, 3, 8, 8)).astype(np.float32))
    changed = augment_colours(frames, augmentation(contrast=0.9), np.random.default_rng(0))
    draws, limits = np.random.default_rng(0), (0, 0.9, 0)
    factors = {i: draws.uniform(1 - limits[i], 1 + limits[i]) for i in draws.permutation(3)}
    assert torch.allclose(changed, 255 * torchvision_colour.adjust_contrast(frames / 255, factors[1]), atol=1e-3)


class TestLargePictures:
    @pytest.mark.parametrize("shape", [(2048, 300), (90, 70), (40, 30)])
    def test_others_are_resized_in_one_go(self, shape):
        picture, masks = noise(*shape, objects=1)
        assert torch.equal(resize_picture(picture, 40, 30), resize(as_floats(picture), 40, 30))
        assert torch.equal(resize_mask(masks[0], 40, 30), resize(torch.from_numpy(masks).float(), 40, 30)[0])

    def test_are_shortened_before_they_become_floats(self, monkeypatch):
        picture, masks = noise(300, 2500, objects=1)
        small, soft = resize(as_floats(picture), 40, 30), resize(torch.from_numpy(masks).float(), 40, 30)[0]
        shapes, resized = [], resize
        monkeypatch.setattr(transforms, "resize", lambda x, *size: shapes.append(tuple(x.shape)) or resized(x, *size))
        assert resize_picture(picture, 40, 30).numpy() == pytest.approx(small.numpy(), abs=1)
        assert resize_mask(masks[0], 40, 30).numpy() == pytest.approx(soft.numpy(), abs=0.01)
        assert shapes == [(3, 300, 2048), (1, 300, 2048)]


class TestView:
    """A picture whose brightness is its mask goes through the view: what is white afterwards is the mask."""

    @staticmethod
    def seen(config: AugmentationConfig, seed: int = 0, mask: np.ndarray | None = None, aspect: float = 1.0):
        if mask is None:
            mask = np.zeros((40, 50), bool)
            mask[15:25, 18:34] = True
        soft = torch.from_numpy(mask).float()[None]
        view = sample_view(soft, aspect, config, np.random.default_rng(seed))
        picture = 255 * soft.expand(3, -1, -1)
        frames, masks = apply_view(torch.stack([picture, 255 - picture]), soft.expand(2, 1, -1, -1), view)
        return view, frames, masks > 0.5, torch.from_numpy(mask)

    @pytest.mark.parametrize(
        "config",
        [
            augmentation(degrees=25.0), augmentation(shear=20.0), augmentation(scale=0.3), augmentation(translate=0.2),
            AugmentationConfig(scale=0.2, translate=0.1),
        ],
        ids=["degrees", "shear", "scale", "translate", "all"],
    )  # fmt: skip
    def test_masks_move_with_the_pixels(self, config):
        moved = []
        for seed in range(5):
            view, frames, masks, before = self.seen(config, seed)
            _, inside = apply_view(frames[:1], torch.ones(1, 1, 40, 50), view)
            sure = inside[0, 0] > 0.999
            assert torch.equal((frames[0, 0] > 127.5)[sure], masks[0, 0][sure])
            assert torch.equal((frames[1, 0] < 127.5)[sure], masks[1, 0][sure])
            assert torch.equal(masks[0], masks[1]), "all frames are seen alike"
            moved.append(not torch.equal(masks[0, 0], before))
        assert sum(moved) >= 3, "a draw may be too small to move a pixel"

    def test_beyond_the_picture_there_is_one_colour_and_no_object(self):
        everywhere = np.ones((40, 50), bool)
        _, frames, masks, _ = self.seen(augmentation(degrees=45.0), 1, everywhere)
        outside = ~masks[0, 0]
        assert outside.float().mean() > 0.05
        clear = apply_view(frames[:1], torch.ones(1, 1, 40, 50), torch.eye(2, 3))[0][0].permute(1, 2, 0)
        plain = (clear - torch.tensor(MEAN_COLOUR)).abs().amax(-1) < 0.01
        assert plain[outside].float().mean() > 0.8, "but for a seam of half-covered pixels"

    def test_a_flip_mirrors_and_nothing_else(self):
        _, frames, masks, before = self.seen(augmentation(flip=1.0))
        assert torch.equal(masks[0, 0], before.flip(-1))
        assert np.array_equal(to_pixels(frames)[0, ..., 0] == 255, before.flip(-1).numpy())

    def test_flips_come_as_often_as_they_should(self):
        views = [self.seen(augmentation(flip=0.3), seed)[0] for seed in range(100)]
        assert 15 < sum(bool(view[0, 0] < 0) for view in views) < 45

    def test_without_magnitudes_nothing_moves(self):
        view, frames, masks, before = self.seen(NO_AUGMENTATION)
        assert torch.equal(view, torch.eye(2, 3))
        assert torch.equal(masks[0, 0], before)
        assert np.array_equal(to_pixels(frames)[0, ..., 0], 255 * before.numpy())

    def test_angles_are_those_of_the_picture_before_it_was_made_square(self):
        """A circle of a picture twice as wide as high is half as wide in the square, and stays so when turned."""
        y, x = np.mgrid[:64, :64] - 31.5
        squeezed = (x * 2) ** 2 + y**2 < 24**2
        for seed in range(4):
            _, _, masks, before = self.seen(augmentation(degrees=90.0), seed, squeezed, aspect=2.0)
            assert (masks[0, 0] ^ before).float().sum() < 0.06 * before.sum()
            _, _, masks, before = self.seen(augmentation(degrees=90.0), seed, squeezed, aspect=1.0)
            assert (masks[0, 0] ^ before).float().sum() > 0.1 * before.sum()

    def test_every_object_stays_in_sight(self):
        """Blocks in opposite corners are lost in most views: these are drawn again, and at last not at all."""
        corners = torch.zeros(2, 48, 48)
        corners[0, :2, :2] = corners[1, -2:, -2:] = 1
        config = augmentation(degrees=180.0, translate=0.3, flip=0.5)
        plain = 0
        for seed in range(40):
            view = sample_view(corners, 1.0, config, np.random.default_rng(seed))
            _, masks = apply_view(torch.zeros(1, 3, 48, 48), corners[None], view)
            assert (masks > 0.5).any(-1).any(-1).all()
            plain += int(torch.equal(view.abs(), torch.eye(2, 3)))
        assert plain > 0

    def test_the_same_generator_gives_the_same_view(self):
        config = AugmentationConfig()
        assert torch.equal(self.seen(config, 3)[0], self.seen(config, 3)[0])
        assert not torch.equal(self.seen(config, 3)[0], self.seen(config, 4)[0])


class TestColours:
    FRAMES = torch.from_numpy(np.random.default_rng(0).uniform(60, 190, (1, 3, 8, 8)).astype(np.float32)).expand(
        4, -1, -1, -1
    )

    def changed(self, seed: int = 0, **limits: float) -> torch.Tensor:
        return augment_colours(self.FRAMES, augmentation(**limits), np.random.default_rng(seed))

    def test_without_magnitudes_nothing_changes(self):
        assert torch.allclose(self.changed(), self.FRAMES, atol=1e-3)

    @pytest.mark.parametrize("limit", ["brightness", "contrast", "saturation"])
    def test_of_the_clip_it_is_the_same_for_all_frames(self, limit):
        frames = self.changed(**{limit: 0.5})
        assert (frames - self.FRAMES).abs().max() > 1
        assert all(torch.equal(frame, frames[0]) for frame in frames)

    @pytest.mark.parametrize("limit", ["frame_brightness", "frame_contrast", "frame_saturation"])
    def test_of_frames_it_differs(self, limit):
        frames = self.changed(**{limit: 0.5})
        assert not any(torch.allclose(frames[i], frames[j], atol=0.1) for i in range(4) for j in range(i))

    def test_a_factor_stays_within_its_limit(self):
        factors = [float((self.changed(seed, brightness=0.2) / self.FRAMES).mean()) for seed in range(30)]
        assert 0.8 <= min(factors) < 0.85
        assert 1.15 < max(factors) <= 1.2

    def test_grey_is_grey_and_a_chance(self):
        assert torch.equal(self.changed(grey=1.0)[:, 0], self.changed(grey=1.0)[:, 2])
        grey = [torch.equal(f[:, 0], f[:, 2]) for f in (self.changed(seed, grey=0.5) for seed in range(40))]
        assert 8 < sum(grey) < 32
