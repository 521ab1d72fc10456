"""Segmentations of annotations: checked, and turned into masks.

Polygons, and run-length encodings in COCO's three forms. Everything is checked before pycocotools sees it.
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..records import RLE

FLAT_PARTS = "parts of polygons with fewer than 3 points"
"""What readers report of :func:`without_flat_parts`."""

_MAX_OUTLINE = 10_000_000
"""Pixels of the outlines of one object's polygons; the rasteriser takes 80 bytes for each."""

_FAR_TOO_MANY = 10**12
"""Pixels from which on they are not counted out: the number may have thousands of digits."""


def check_segmentation(segmentation: Any, height: int, width: int) -> str | None:
    """Return what is damaged in a ``segmentation`` for an image size, None if it can be parsed.

    Everything is checked before pycocotools sees it. There a NaN, a coordinate far off or counts of the wrong length
    end the process or yield uninitialised memory.
    """
    if is_empty(segmentation):
        return "the segmentation is empty"
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width)
    if isinstance(segmentation, list):
        return _check_polygons(segmentation, height, width)
    return f"the segmentation is of type {type(segmentation).__name__}, neither polygons nor RLE"


def without_flat_parts(segmentation: Any) -> Any:
    """Return polygons without the parts of fewer than 3 points, which enclose nothing, where another part is left.

    Anything else is returned as it is.
    """
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return segmentation
    kept = [part for part in segmentation if len(part) >= 6 or len(part) % 2]
    return kept if kept and len(kept) < len(segmentation) else segmentation


def parse_segmentation(segmentation: Any, height: int, width: int) -> RLE:
    """Return a checked segmentation as a mask; polygons are clipped to the image.

    Polygons are rasterised here rather than on every decode. That takes microseconds, the runs take less memory than
    lists of floats, and only the raster shows the area.
    """
    if isinstance(segmentation, list):
        return RLE(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    counts = segmentation["counts"]
    if isinstance(counts, list):
        runs = {"size": [height, width], "counts": [int(run) for run in counts]}
        return RLE(coco_mask.frPyObjects(runs, height, width))
    return RLE({"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts})


def is_empty(segmentation: Any) -> bool:
    """Return whether a ``segmentation`` holds nothing: null, ``[]``, ``[[]]`` or ``{}``."""
    return not segmentation or (isinstance(segmentation, list) and all(part == [] for part in segmentation))


def _check_polygons(parts: list[Any], height: int, width: int) -> str | None:
    # Room for an object that sticks out of the image; the rasteriser's memory grows with the distance.
    side = max(height, width)
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, list):
            return "polygons must be lists of numbers in a list: [[x1, y1, x2, y2, …], …]"
        odd_ones = [value for value in part if not isinstance(value, (int, float)) or isinstance(value, bool)]
        if odd_ones:
            return f"polygon {number} holds something that is not a number: {_quoted(odd_ones[0])}"
        if len(part) % 2:
            return f"polygon {number} has an odd number of coordinates ({len(part)})"
        if len(part) < 6:
            return f"polygon {number} has fewer than 3 points ({len(part) // 2})"
        # Written so that NaN is caught too.
        far = [value for value in part if not -side <= value <= 2 * side]
        if far:
            return f"polygon {number} has the coordinate {_quoted(far[0])}, on an image of {width}×{height} pixels"
    if side > 4 and all(0 <= value <= 1 for part in parts for value in part):
        return "the polygon looks normalised to 0–1; COCO wants pixels"
    if 2 * side * sum(map(len, parts)) > _MAX_OUTLINE and sum(map(_outline, parts)) > _MAX_OUTLINE:
        return f"the polygons' outlines are over {_MAX_OUTLINE} pixels long"
    return None


def reaches_outside(parts: list[list[float]], height: int, width: int) -> bool:
    """Return whether polygons leave the image by more than a pixel.

    Conventions of tools differ by that much.
    """
    return any(min(part) < -1 or max(part[0::2]) > width + 1 or max(part[1::2]) > height + 1 for part in parts)


def holds_nested(parts: list[list[float]], height: int, width: int) -> bool:
    """Return whether one of an object's polygons is wholly inside another, where a hole may be meant."""
    if len(parts) < 2:
        return False
    rles = coco_mask.frPyObjects(parts, height, width)
    shares = coco_mask.iou(rles, rles, [1] * len(rles))  # of the first one's area, as for crowds
    inside = (shares == 1) & (coco_mask.area(rles) > 0)[:, None]
    return bool(inside.sum() > inside.diagonal().sum())


def _check_rle(rle: dict[str, Any], height: int, width: int) -> str | None:
    if "size" not in rle or "counts" not in rle:
        return "the RLE needs 'size' and 'counts'"
    if rle["size"] != [height, width]:
        swapped = "; height comes first" if rle["size"] == [width, height] else ""
        return f"the RLE's size is {_quoted(rle['size'])}, the image's is [{height}, {width}]{swapped}"
    try:
        runs = _run_lengths(rle["counts"])
    except ValueError as error:
        return str(error)
    if any(run < 0 for run in runs):
        return "the RLE's counts hold a negative run"
    if (total := sum(runs)) != height * width:
        found = f"{total}" if total < _FAR_TOO_MANY else f"over {_FAR_TOO_MANY}"
        return f"the RLE's counts cover {found} pixels, the image has {height * width}"
    return None


def _outline(part: list[float]) -> float:
    """Return a closed polygon's length in the rasteriser's steps, along each side's longer axis."""
    points_N2 = np.array(part, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points_N2 - np.roll(points_N2, 1, axis=0)).max(axis=1).sum())


def _quoted(value: Any) -> str:
    """Return a value from a file in few characters, however long or deeply nested."""
    return reprlib.repr(value)[:40]


def _run_lengths(counts: Any) -> list[int]:
    """Return the lengths of runs, of zeros and ones in turn, of COCO's RLE.

    Raises:
        ValueError: ``counts`` is neither a list of whole numbers nor a string of pycocotools' encoding.
    """
    if isinstance(counts, list):
        if not all(type(run) is int or (isinstance(run, float) and run.is_integer()) for run in counts):
            raise ValueError("the RLE's counts hold something that is not a whole number")
        return [int(run) for run in counts]
    if isinstance(counts, str):
        counts = counts.encode(errors="replace")
    if not isinstance(counts, bytes):
        raise ValueError(f"the RLE's counts are of type {type(counts).__name__}, neither a list nor a string")
    return _decompress(counts)


def _decompress(counts: bytes) -> list[int]:
    """The run lengths in pycocotools' compressed form (``rleFrString`` of its maskApi.c).

    A character carries 6 bits on top of ASCII 48: five of a number, lowest first, and a flag that more follow. The top
    bit of a number is its sign. From the fourth on, numbers are differences from the run before the last.
    """
    chars = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(chars & 32 == 0)
    if not chars.size or chars.min() < 0 or chars.max() > 63 or not ends.size or ends[-1] != chars.size - 1:
        raise ValueError("the RLE's counts are not a run-length string")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 6:  # 30 bits, more than an image's pixels; beyond, pycocotools overflows
        raise ValueError("the RLE's counts are not a run-length string")
    places = np.arange(chars.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((chars & 31) << 5 * places, starts)
    runs -= np.where(chars[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    lengths_of_runs: list[int] = runs.tolist()
    return lengths_of_runs
