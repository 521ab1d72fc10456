"""Image files of any kind, read as RGB, uint8, (H, W, 3).

What cannot be read is refused in one line that names the file.

Files with several frames (GIF, multi-page TIFF, APNG, MPO) give the first one. Transparency is dropped, since an object
is labelled by its colours, whether or not they are shown.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from ...core.errors import UserError
from ...core.files import refuse_irregular

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded; the number is Pillow's own limit for decompression bombs."""

# The TIFF tags ImageWidth and ImageLength.
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257

_ROWS = 256
"""Rows that are converted at a time, so that a large image is in memory twice at most: decoded, and as an array."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk as a frame source; ``orient`` as in :func:`read_image`."""

    path: str | Path
    orient: bool = True

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def stem(self) -> str:
        return Path(self.path).stem

    def read(self) -> np.ndarray:
        return read_image(self.path, self.orient)


def read_image(path: str | Path, orient: bool = True) -> np.ndarray:
    """Read any image file as RGB, uint8, (H, W, 3).

    Args:
        path: of any raster format Pillow reads; the contents count, not the extension.
        orient: turn and mirror the image as its EXIF (or TIFF) orientation asks; False gives the pixels as stored.

    Grey images deeper than 8 bits are stretched by :func:`stretch_to_8_bit`. Colour images of 16 bits a channel keep
    the upper 8 bits.

    Raises:
        UserError: the file is missing, empty, a Git LFS pointer, not an image, damaged, or has over ``MAX_PIXELS``.
    """
    with open_image(path) as image:
        orientation = _orientation(image)
        pixels = _pixels(image)
    if image.format == "TIFF":
        # Pillow has already turned a TIFF upright. Turning back is the same turn, but for the two quarter turns.
        orientation = 1 if orient else {6: 8, 8: 6}.get(orientation, orientation)
    elif not orient:
        orientation = 1
    if pixels.ndim == 2:
        pixels = np.repeat(stretch_to_8_bit(pixels)[..., None], 3, axis=2)
    return np.ascontiguousarray(_turned(pixels, orientation))


def image_size(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (height, width) as stored and once oriented, from the header alone.

    Raises:
        UserError: as :func:`read_image`, as far as the header shows it.
    """
    with open_image(path) as image:
        stored = _stored_size(image)
        swapped = _orientation(image) >= 5
    return stored, (stored[::-1] if swapped else stored)


def misnamed(path: str | Path) -> bool:
    """Return whether an image has another type than its extension, such as a PNG called ``.jpg``.

    Raises:
        UserError: as :func:`read_image`, as far as the header shows it.
    """
    with open_image(path) as image:
        found = image.format
    named = Image.registered_extensions().get(Path(path).suffix.lower())
    as_jpeg = {"MPO": "JPEG"}  # JPEGs of several pictures, which cameras call .jpg
    return named is not None and as_jpeg.get(named, named) != as_jpeg.get(found or "", found)


def has_more_pages(path: str | Path) -> bool:
    """Return whether a file holds pictures after the first, as TIFF, GIF and WebP can.

    Raises:
        UserError: as :func:`read_image`, as far as the headers show it.
    """
    with open_image(path) as image:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # cameras' MPOs hold views of one picture


def stretch_to_8_bit(values_HW: np.ndarray) -> np.ndarray:
    """Convert grey values of any range to uint8, linearly.

    The image's 0.1 % darkest become 0, its 0.1 % brightest 255.

    Cameras fill 12 of a file's 16 bits, or fewer, so the file's type does not show the range. Percentiles do, and hot
    pixels do not move them. Where the two percentiles coincide the extremes take their place, and a constant image
    becomes 0. NaN reads as the darkest value.
    """
    values = np.asarray(values_HW, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = np.percentile(finite, [0.1, 99.9])
    if low == high:
        low, high = finite.min(), finite.max()
    scale = 255 / (high - low) if high > low else 0.0
    grey_HW: np.ndarray = np.round((np.nan_to_num(np.clip(values, low, high), nan=low) - low) * scale).astype(np.uint8)
    return grey_HW


def refuse_placeholder(path: str | Path, head: bytes) -> None:
    """Refuse a file without contents, given its first bytes: UserError if there are none, or a Git LFS pointer."""
    if not head:
        raise UserError(f"{path}: the file is empty (0 bytes)", "file.empty")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its repository", "file.lfs-pointer"
        )


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image with Pillow, its header read.

    Whatever Pillow raises until the block ends becomes a UserError.
    """
    refuse_irregular(path)
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refuse_placeholder(path, file.read(64))
            file.seek(0)
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width}×{image.height} pixels")
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "file.missing") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image, or of a format that is not supported", "image.unknown-type") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: the image is larger than the limit of {MAX_PIXELS} pixels; cut it into tiles", "image.too-large"
        ) from None
    except MemoryError:
        raise UserError(f"{path}: memory ran out while it was read; it may be sound", "image.out-of-memory") from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise UserError(f"{path}: the image cannot be read: {reason}", "image.damaged") from None


def _pixels(image: Image.Image) -> np.ndarray:
    """Decode to RGB, uint8, (H, W, 3), or deeper grey, (H, W)."""
    if image.mode == "F" or image.mode.startswith("I"):
        return np.array(image)
    image.load()  # only now are mode and size those of the pixels
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _ROWS):
        rows = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        pixels[top : top + _ROWS] = np.asarray(_lab_to_rgb(rows) if rows.mode == "LAB" else rows.convert("RGB"))
    return pixels


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """Convert CIE L*a*b* to sRGB by colour profiles, as Pillow's ``convert`` cannot."""
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert converted is not None, "profileToProfile returns an image unless asked to work in place"
    return converted


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) before any turning.

    A TIFF's comes from its tags, as Pillow's size is that of the turned image.
    """
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[_TIFF_HEIGHT]), int(tags[_TIFF_WIDTH])
    return image.height, image.width


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 without one, or if it is damaged.

    Must be asked before the pixels are decoded: Pillow deletes the tag from a TIFF once it has turned it.
    """
    try:
        # Not image.getexif(): for a PNG that decodes all pixels, in search of a block behind them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # any, as in open_image; the pixels may be sound all the same
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels (H, W, …) turned upright from an EXIF orientation.

    It is a transposition, then mirrored columns and rows.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
