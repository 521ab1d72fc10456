"""Images of every mode and every kind of damage: read as RGB, uint8, or refused in one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.core.errors import UserError
from src.data.decode.images import MAX_PIXELS, ImageFile, image_size, read_image, stretch_to_8_bit
from tests.errors import refuses

ODD_INPUTS = Path(__file__).parents[3] / "../shared/data/odd_inputs"
CELLS = Path(__file__).parents[3] / "../shared/data/coco_cells_rle"

GREY_HW = np.array([[0, 40, 80], [120, 200, 255]], dtype=np.uint8)
COLOUR_HWC = np.stack([GREY_HW, GREY_HW[::-1], GREY_HW[:, ::-1]], axis=-1)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def grey_as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def refusal(path: Path) -> UserError:
    """The error that reading the image ends in: one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return caught.value


# Modes


def test_rgb_and_grey(tmp_path):
    np.testing.assert_array_equal(read_image(save(Image.fromarray(COLOUR_HWC), tmp_path / "a.png")), COLOUR_HWC)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(GREY_HW), tmp_path / "b.png")), grey_as_rgb(GREY_HW))


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    path = save(Image.fromarray(bits), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), grey_as_rgb(bits.astype(np.uint8) * 255))


def test_alpha_is_dropped(tmp_path):
    alpha = np.array([[0, 128, 255], [0, 0, 0]], dtype=np.uint8)
    rgba = save(Image.fromarray(np.dstack([COLOUR_HWC, alpha])), tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(rgba), COLOUR_HWC)
    la = save(Image.fromarray(np.dstack([GREY_HW, alpha]), mode="LA"), tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(la), grey_as_rgb(GREY_HW))


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palette_gives_its_colours(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    path = save(image, tmp_path / "a.png", **options)
    np.testing.assert_array_equal(read_image(path), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])


def test_cmyk(tmp_path):
    ink = np.zeros((2, 2, 4), dtype=np.uint8)
    ink[0, 0, 0] = 255  # cyan takes the red away
    path = save(Image.fromarray(ink, mode="CMYK"), tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(path), [[[0, 255, 255], [255] * 3], [[255] * 3, [255] * 3]])


def test_lab(tmp_path):
    lab = np.array([[[0, 0, 0], [255, 0, 0]]], dtype=np.uint8)  # black and white; a and b are signed
    image = Image.frombytes("LAB", (2, 1), lab.tobytes())
    np.testing.assert_allclose(read_image(save(image, tmp_path / "a.tif")), [[[0] * 3, [255] * 3]], atol=1)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_stretched_over_the_range_in_use(tmp_path, suffix):
    # 12 bits of 16 in use: the file's range would leave nothing but black.
    values = np.linspace(100, 4095, 100).round().astype(np.uint16).reshape(10, 10)
    result = read_image(save(Image.fromarray(values), tmp_path / f"a.{suffix}"))
    assert result.dtype == np.uint8
    assert result.shape == (10, 10, 3)
    assert result[0, 0, 0] == 0
    assert result[-1, -1, 0] == 255
    assert abs(int(result[5, 0, 0]) - 255 * 50 / 99) < 1
    np.testing.assert_array_equal(result[..., 0], stretch_to_8_bit(values))


def test_32_bit_integers_and_floats(tmp_path):
    for values in (GREY_HW.astype(np.int32) * 100_000, GREY_HW.astype(np.float32) / 1000):
        path = save(Image.fromarray(values), tmp_path / "a.tif")
        assert np.abs(read_image(path)[..., 0].astype(int) - GREY_HW).max() <= 1


def test_stretch_ignores_hot_pixels():
    values = np.tile(np.arange(100, dtype=np.uint16), (100, 1))
    values[50, 50] = 65535
    result = stretch_to_8_bit(values)
    assert result[50, 50] == 255
    np.testing.assert_array_equal(result[0], np.round(np.arange(100) * 255 / 99))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[7, 7]], [[0, 0]]),
        ([[0.0, np.nan, 1.0, np.inf, -np.inf]], [[0, 0, 255, 255, 0]]),
        ([[np.nan, np.inf]], [[0, 0]]),
    ],
    ids=["constant", "not finite", "nothing finite"],
)
def test_stretch_of_odd_values(values, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(stretch_to_8_bit(np.array(values)), expected)


def test_stretch_of_a_few_bright_pixels_on_black():
    values = np.zeros((100, 100), dtype=np.uint16)
    values[3, 4] = 500
    assert stretch_to_8_bit(values)[3, 4] == 255


def test_first_frame_of_several(tmp_path):
    second = Image.fromarray(255 - GREY_HW)
    path = save(Image.fromarray(GREY_HW), tmp_path / "a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(path), grey_as_rgb(GREY_HW))


# Orientation

UPRIGHT = {  # by hand, of the stored rows 0 40 80 / 120 200 255
    1: [[0, 40, 80], [120, 200, 255]],
    2: [[80, 40, 0], [255, 200, 120]],
    3: [[255, 200, 120], [80, 40, 0]],
    4: [[120, 200, 255], [0, 40, 80]],
    5: [[0, 120], [40, 200], [80, 255]],
    6: [[120, 0], [200, 40], [255, 80]],
    7: [[255, 80], [200, 40], [120, 0]],
    8: [[80, 255], [40, 200], [0, 120]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["png", "webp", "tif", "packed tif"])
def test_orientation(tmp_path, orientation, kind):
    path = tmp_path / f"a.{kind[-4:].strip()}"
    if kind == "packed tif":  # read by libtiff, by another way through Pillow
        Image.fromarray(GREY_HW).save(path, tiffinfo={274: orientation}, compression="tiff_lzw")
    elif kind == "tif":
        Image.fromarray(GREY_HW).save(path, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(GREY_HW).save(path, exif=exif, lossless=True)
    upright = np.array(UPRIGHT[orientation])
    np.testing.assert_array_equal(read_image(path)[..., 0], upright)
    np.testing.assert_array_equal(read_image(path, orient=False)[..., 0], GREY_HW)
    assert image_size(path) == ((2, 3), upright.shape)


def test_16_bit_tiff_is_turned_too(tmp_path):
    path = save(Image.fromarray(GREY_HW.astype(np.uint16) * 200), tmp_path / "a.tif", tiffinfo={274: 6})
    assert np.abs(read_image(path)[..., 0].astype(int) - UPRIGHT[6]).max() <= 1


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 20])
def test_a_damaged_exif_block_does_not_matter(tmp_path, exif):
    path = save(Image.fromarray(COLOUR_HWC), tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (2, 3, 3)
        assert image_size(path) == ((2, 3), (2, 3))


def test_an_orientation_that_does_not_exist_is_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 99
    assert image_size(save(Image.fromarray(COLOUR_HWC), tmp_path / "a.jpg", exif=exif)) == ((2, 3), (2, 3))


def test_image_size_does_not_decode(tmp_path):
    path = save(Image.effect_noise((64, 32), 50), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == ((32, 64), (32, 64))
    assert refusal(path).code == "image.damaged"


# Refusals


def test_missing_file_and_folder(tmp_path):
    assert refusal(tmp_path / "absent.jpg").code == "file.missing"
    assert refusal(tmp_path).code == "image.damaged"


@pytest.mark.parametrize(
    ("contents", "code"),
    [
        (b"", "file.empty"),
        (b"hello, this is text", "image.unknown-type"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "file.lfs-pointer"),
        (b"\x89PNG\r\n\x1a\n", "image.unknown-type"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "image.damaged"),
    ],
    ids=["empty", "text", "git lfs", "png signature only", "jpeg start only"],
)
def test_what_is_no_image(tmp_path, contents, code):
    path = tmp_path / "a.jpg"
    path.write_bytes(contents)
    assert refusal(path).code == code
    with refuses(code, str(path)):
        image_size(path)


def test_truncated_jpeg(tmp_path):
    path = save(Image.effect_noise((64, 64), 50), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-300])
    error = refusal(path)
    assert error.code == "image.damaged" and "truncated" in str(error), "which is Pillow's word"


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    # A bitmap's header alone, of 20000×20000 pixels; were it decoded, the error would be another.
    size = 20000
    header = b"BM" + (62).to_bytes(4, "little") + bytes(4) + (62).to_bytes(4, "little")
    info = (40).to_bytes(4, "little") + size.to_bytes(4, "little") * 2 + b"\1\0\1\0" + bytes(24) + bytes(8)
    path = tmp_path / "a.bmp"
    path.write_bytes(header + info)
    error = refusal(path)
    assert error.code == "image.too-large" and str(MAX_PIXELS) in str(error)


def test_the_limit_holds_where_pillows_own_is_off(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("src.data.decode.images.MAX_PIXELS", 5)
    error = refusal(save(Image.fromarray(GREY_HW), tmp_path / "a.png"))
    assert error.code == "image.too-large" and " 5 " in str(error)


def test_extension_does_not_matter(tmp_path):
    path = save(Image.fromarray(COLOUR_HWC), tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(path), COLOUR_HWC)


def test_image_file_is_a_frame_source(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = save(Image.fromarray(COLOUR_HWC), tmp_path / "a.png", exif=exif)
    assert ImageFile(path).name == str(path)
    assert ImageFile(path).read().shape == (3, 2, 3)
    np.testing.assert_array_equal(ImageFile(str(path), orient=False).read(), COLOUR_HWC)


# Real images

BROKEN = {
    "broken.png",
    "broken_data_stream.png",
    "cross_scan_line_truncated.tga",
    "decompression_bomb.gif",
    "decompression_bomb.ico",
    "seek_too_large.tif",
    "bomb_20000x20000_1bit.png",
    "text_named.jpg",
    "truncated_60pct.jpg",
    "truncated_header_200B.jpg",
    "zero_byte.jpg",
    "1103312.tiff",
    "11590354.tiff",
    "11593374.tiff",
}
TURNED = {"exif6_on_coco_image.jpg", "orientation_rectangle.jpg"}  # the list below gives their size as stored
SLOW = {"huge_12000x9000_gray.jpg"}


@pytest.mark.skipif(not ODD_INPUTS.is_dir(), reason="the collection of odd images is not here")
def test_odd_images_are_read_or_refused():
    listed = [line.split("  ") for line in (ODD_INPUTS / "PIL_RESULTS.txt").read_text().splitlines()]
    paths = {ODD_INPUTS / line[0]: line for line in listed}
    present = {path: line for path, line in paths.items() if path.is_file() and path.name not in SLOW}
    assert len(present) > 50
    for path, line in present.items():
        if path.name in BROKEN:
            refusal(path)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = read_image(path)
            _, oriented = image_size(path)
        width, height = map(int, line[2].split("(")[1].split(")")[0].split(","))
        assert pixels.shape == ((width, height, 3) if path.name in TURNED else (height, width, 3)), path
        assert pixels.shape[:2] == oriented
        assert pixels.dtype == np.uint8
        assert pixels.std() > 1 or pixels.size < 1000, path


@pytest.mark.skipif(not ODD_INPUTS.is_dir(), reason="the collection of odd images is not here")
def test_one_picture_in_many_files():
    folder = ODD_INPUTS / "images_pillow"
    reference = read_image(folder / "hopper.png").astype(float)
    names = ["hopper.tif", "hopper.Lab.tif", "hopper.webp", "hopper.gif"]
    names += [f"hopper_orientation_{number}.jpg" for number in range(2, 9)]
    for name in names:
        assert np.abs(read_image(folder / name) - reference).mean() < 8, name


@pytest.mark.skipif(not CELLS.is_dir(), reason="the cells are not here")
def test_16_bit_microscopy_equals_its_published_8_bit_version():
    np.testing.assert_array_equal(read_image(CELLS / "raw_16bit/set46.tif"), read_image(CELLS / "val/set46.png"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_tall_images_are_read_to_their_end(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 7, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / "tall.tif")
    assert np.array_equal(read_image(tmp_path / "tall.tif"), np.asarray(image.convert("RGB")))
