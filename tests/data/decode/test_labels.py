"""What mask files hold, and what their values mean for a video as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from src.data.decode.labels import davis_palette, label_tracks, read_label_image
from tests.errors import refuses

IDS = np.array([[0, 1, 1, 2], [0, 0, 2, 2]], dtype=np.uint8)


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(davis_palette().tobytes())
    image.save(path)
    return path


def tracks_of(*paths: Path | None):
    tracks, void = label_tracks([None if path is None else read_label_image(path) for path in paths])
    masks = {key: [None if s is None else s.decode() for s in areas] for key, areas in tracks.items()}
    return masks, {t: s.decode() for t, s in void.items()}


@pytest.mark.parametrize(
    "values",
    [IDS, IDS.astype(np.uint16), IDS.astype(np.int32), IDS.astype(np.float32), davis_palette()[IDS]],
    ids=["grey", "16 bit", "32 bit", "float", "colours"],
)
def test_numbers_are_objects_however_they_are_stored(tmp_path, values):
    name = "m.tif" if values.dtype.itemsize == 4 else "m.png"
    masks, void = tracks_of(save(tmp_path / name, values), None)
    assert list(masks) == [1, 2]
    assert all(np.array_equal(masks[i][0], i == IDS) and masks[i][1] is None for i in masks)
    assert not void


def test_palettes_count_by_index_whatever_their_colours(tmp_path):
    image = Image.fromarray(IDS)
    image.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 0])
    image.save(tmp_path / "m.png")
    assert list(tracks_of(tmp_path / "m.png")[0]) == [1, 2]


@pytest.mark.parametrize("mode", [None, "P"])
def test_255_is_void_beside_other_numbers_in_any_frame(tmp_path, mode):
    with_void = np.where(IDS == 2, 255, 0).astype(np.uint8)
    paths = save(tmp_path / "0.png", with_void, mode), save(tmp_path / "1.png", IDS, mode)
    masks, void = tracks_of(*paths)
    assert list(masks) == [1, 2]
    assert masks[2][0] is None
    assert void.keys() == {0}
    assert np.array_equal(void[0], IDS == 2)


@pytest.mark.parametrize("mode", [None, "P"])
def test_255_alone_is_the_object_of_a_binary_mask(tmp_path, mode):
    white = np.where(IDS == 2, 255, 0).astype(np.uint8)
    masks, void = tracks_of(save(tmp_path / "0.png", white, mode), save(tmp_path / "1.png", white * 0, mode))
    assert list(masks) == [1]
    assert np.array_equal(masks[1][0], IDS == 2)
    assert masks[1][1] is None
    assert not void


def test_a_binary_mask_may_be_stored_in_one_bit_or_as_grey_colours(tmp_path):
    Image.fromarray(IDS > 0).save(tmp_path / "bit.png")
    save(tmp_path / "rgb.png", np.repeat(np.where(IDS > 0, 255, 0).astype(np.uint8)[..., None], 3, axis=2))
    for name in ("bit.png", "rgb.png"):
        masks, void = tracks_of(tmp_path / name)
        assert np.array_equal(masks[1][0], IDS > 0)
        assert (list(masks), void) == ([1], {})


def test_deeper_numbers_know_no_void(tmp_path):
    masks, void = tracks_of(save(tmp_path / "m.png", IDS.astype(np.uint16) * 255))
    assert (list(masks), void) == ([255, 510], {})


def test_davis_colours_have_void_too(tmp_path):
    ids = np.where(IDS == 2, 255, IDS)
    masks, void = tracks_of(save(tmp_path / "m.png", davis_palette()[ids]))
    assert list(masks) == [1]
    assert np.array_equal(void[0], ids == 255)


def test_other_colours_are_objects_by_their_names(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0]], dtype=np.uint8)
    masks, _ = tracks_of(save(tmp_path / "m.png", colours[IDS]))
    assert list(masks) == ["#008000", "#ff0000"]
    assert np.array_equal(masks["#ff0000"][0], IDS == 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_background(tmp_path, mode):
    colour = np.full((*IDS.shape, len(mode)), 255, dtype=np.uint8)
    colour[..., -1] = np.where(IDS == 1, 255, 0)
    Image.fromarray(colour, mode=mode).save(tmp_path / "m.png")
    masks, _ = tracks_of(tmp_path / "m.png")
    assert np.array_equal(masks[1][0], IDS == 1)


def test_an_empty_mask_has_no_objects_but_a_foreground_of_its_size(tmp_path):
    image = read_label_image(save(tmp_path / "m.png", IDS * 0))
    assert image.areas == {}
    assert image.foreground().decode().shape == IDS.shape
    both = read_label_image(save(tmp_path / "n.png", IDS))
    assert np.array_equal(both.foreground().decode(), IDS > 0)


class TestRefusals:
    def test_a_jpeg_by_its_content(self, tmp_path):
        Image.fromarray(IDS).save(tmp_path / "m.png", format="JPEG")
        with refuses("mask.jpeg", "m.png"):
            read_label_image(tmp_path / "m.png")

    def test_a_mask_with_soft_edges(self, tmp_path):
        disc = Image.fromarray((np.hypot(*np.mgrid[-32:32, -32:32]) < 20).astype(np.uint8) * 255)
        disc.filter(ImageFilter.GaussianBlur(2)).save(tmp_path / "m.png")
        with refuses("mask.blurred", "m.png"):
            read_label_image(tmp_path / "m.png")

    def test_a_photograph(self, tmp_path):
        save(tmp_path / "m.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
        with refuses("mask.too-many-values", "m.png"):
            read_label_image(tmp_path / "m.png")

    def test_a_depth_map(self, tmp_path):
        save(tmp_path / "m.png", np.arange(1600, dtype=np.uint16).reshape(40, 40))
        with refuses("mask.too-many-values", "m.png", "1599"):
            read_label_image(tmp_path / "m.png")
        save(tmp_path / "m.tif", np.linspace(0, 1, 40, dtype=np.float32)[None])
        with refuses("mask.numbers"):
            read_label_image(tmp_path / "m.tif")

    def test_damaged_files_and_odd_modes(self, tmp_path):
        (tmp_path / "m.png").write_bytes(b"no image")
        with refuses("image.unknown-type", "m.png"):
            read_label_image(tmp_path / "m.png")
        Image.new("CMYK", (4, 2)).save(tmp_path / "m.tif")
        with refuses("mask.mode", "CMYK"):
            read_label_image(tmp_path / "m.tif")
