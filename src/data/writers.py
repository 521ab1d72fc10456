"""Writes records in formats that the readers read.

Masks are written at the frames' own size, under the frames' own file stems (their numbers, if stems repeat) and with
the objects' own numbers. Frames become PNG files; for COCO they become JPEG files by default.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from PIL import Image
from scipy.ndimage import label

from ..core.errors import UserError
from ..core.files import inside, write_atomically, write_text
from .decode.labels import VOID, davis_palette
from .records import DataSet, ObjectTrack, VideoRecord


def write_palette_png(path: Path, ids_HW: np.ndarray) -> None:
    """Write object numbers, (H, W), 0 for background, as DAVIS does: a PNG of palette indices.

    Numbers above 255, for which a palette has no room, make it a grey PNG of 16 bits; the parsers read both.

    Raises:
        UserError: a number is negative or above 65535, or the file cannot be written.
    """
    least, most = int(ids_HW.min()), int(ids_HW.max())
    if least < 0 or most > np.iinfo(np.uint16).max:
        raise UserError(
            f"{path}: object numbers in a PNG go from 1 to 65535, not to {least if least < 0 else most}",
            "writers.object-number",
        )
    if most > np.iinfo(np.uint8).max:
        image = Image.fromarray(ids_HW.astype(np.uint16))
    else:
        image = Image.fromarray(ids_HW.astype(np.uint8))
        image.putpalette(davis_palette().tobytes())
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def write_frame_labels(folder: Path, video: VideoRecord, per_object: bool = False) -> None:
    """Write a mask for every annotated frame, as DAVIS does: numbers of objects, and 255 for void.

    Args:
        folder: of the masks, called after the video.
        video: where its objects overlap, the later one is shown, unless ``per_object``.
        per_object: a folder of black and white masks for each object, as in SA-V's validation set.
    """
    for t, name in enumerate(frame_names(video)):
        if video.is_annotated(t) and per_object:
            for obj in video.objects:
                write_palette_png(folder / str(obj.object_id) / f"{name}.png", _mask(obj, t, video).astype(np.uint8))
        elif video.is_annotated(t):
            write_palette_png(folder / f"{name}.png", label_frame(video, t))


def label_frame(video: VideoRecord, frame: int) -> np.ndarray:
    """Return the numbers of the objects on a frame, (H, W), the later where they overlap.

    Void is ``VOID``.
    """
    ids_HW = np.zeros((video.height, video.width), dtype=np.int64)
    if frame in video.void:
        ids_HW[video.void[frame].decode()] = VOID
    for object_id, mask_HW in video.masks(frame).items():
        ids_HW[mask_HW] = object_id
    return ids_HW


def frame_names(video: VideoRecord) -> list[str]:
    """Return the stems of a video's frames, or their numbers if stems repeat."""
    stems = [frame.stem for frame in video.frames]
    return stems if len(set(stems)) == len(stems) else [f"{t:05d}" for t in range(len(stems))]


def write_davis(
    folder: str | Path, data: DataSet, per_object: bool = False, list_as: str | None = None, quality: int | None = None
) -> None:
    """Write videos as DAVIS and MOSE do: ``JPEGImages/<video>/`` and ``Annotations/<video>/``.

    ``per_object`` as in :func:`write_frame_labels`; ``list_as`` also lists the videos in ``ImageSets/<list_as>.txt``;
    ``quality`` of frames as in :func:`write_image`.
    """
    folder = Path(folder)
    for video in data.videos:
        _write_frames(folder / "JPEGImages", video, quality)
        write_frame_labels(inside(folder / "Annotations", video.video_id), video, per_object)
    if list_as is not None:
        write_text(folder / "ImageSets" / f"{list_as}.txt", "".join(f"{video.video_id}\n" for video in data.videos))


def write_coco(folder: str | Path, data: DataSet, quality: int | None = 80, description: str = "") -> None:
    """Write the first frame of every video as a COCO data set: images with ``_annotations.coco.json`` beside them.

    Outlines become polygons; a mask with a hole in it becomes uncompressed RLE, since polygons would fill it.

    Args:
        folder: the images are written into.
        data: its videos' ids become file names.
        quality: of images, as in :func:`write_image`.
        description: of the data, for its ``info``.
    """
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = _category_ids(data)
    for image_id, video in enumerate(data.videos, 1):
        file_name = f"{video.video_id}{_suffix(quality)}"
        write_image(inside(folder, file_name), video.frames[0].read(), quality)
        images.append({"id": image_id, "file_name": file_name, **_size(video)})
        for obj in video.objects:
            if (segmentation := obj.segmentations[0]) is None:
                continue
            mask = segmentation.decode()
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": categories[obj.category],
                    "iscrowd": 0, "bbox": _box(mask), "area": int(mask.sum()),
                    "segmentation": _outlines(mask) or _uncompressed(mask),
                }
            )  # fmt: skip
    content = {
        "info": {"description": description},
        "categories": _categories(categories),
        "images": images,
        "annotations": annotations,
    }
    _write_json(folder / "_annotations.coco.json", content)


def _write_frames(root: Path, video: VideoRecord, quality: int | None = None) -> list[str]:
    """Write a video's frames into a folder of its name, and return their paths below the root."""
    files = [f"{video.video_id}/{name}{_suffix(quality)}" for name in frame_names(video)]
    for file, frame in zip(files, video.frames, strict=True):
        write_image(inside(root, file), frame.read(), quality)
    return files


def write_image(path: Path, pixels_HWC: np.ndarray, quality: int | None = None) -> None:
    """Write RGB uint8 (H, W, 3) whole or not at all; ``quality`` of a JPEG file, None: PNG, which loses nothing."""
    options = {"format": "PNG"} if quality is None else {"format": "JPEG", "quality": quality}
    write_atomically(path, partial(Image.fromarray(pixels_HWC).save, **options))


def _suffix(quality: int | None) -> str:
    return ".png" if quality is None else ".jpg"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, separators=(",", ":")))


def _category_ids(data: DataSet) -> dict[str | None, int]:
    """Return each category's id, counted from 1 in the order of the data."""
    names = dict.fromkeys(obj.category for video in data.videos for obj in video.objects)
    return {name: number for number, name in enumerate(names, start=1)}


def _categories(ids: dict[str | None, int]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name or "object"} for name, number in ids.items()]


def _size(video: VideoRecord) -> dict[str, int]:
    return {"height": video.height, "width": video.width}


def _mask(obj: ObjectTrack, frame: int, video: VideoRecord) -> np.ndarray:
    segmentation = obj.segmentations[frame]
    return np.zeros((video.height, video.width), dtype=bool) if segmentation is None else segmentation.decode()


def _box(mask_HW: np.ndarray) -> list[int]:
    """Return COCO's box of a mask that is not empty: left, top, width, height."""
    ys, xs = np.nonzero(mask_HW)
    return [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]


def _outlines(mask_HW: np.ndarray) -> list[list[float]] | None:
    """Return the mask's outlines as COCO polygons; None where it has a hole."""
    if label(np.pad(~mask_HW, 1, constant_values=True))[1] > 1:
        return None
    lines: Any = contour_generator(z=np.pad(mask_HW, 1).astype(float)).lines(0.5)
    # pixel (x, y) covers x…x+1, so its centre, through which contours are drawn, is at +0.5; the padding is taken out
    return [(_corners(np.round(line, 1)) - 0.5).flatten().tolist() for line in lines if len(line) > 3]


def _corners(closed_N2: np.ndarray) -> np.ndarray:
    """Return the points of a closed line at which it turns.

    Its first point is repeated at the end.
    """
    points = closed_N2[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners_N2: np.ndarray = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return corners_N2


def _uncompressed(mask_HW: np.ndarray) -> dict[str, Any]:
    """Return uncompressed COCO RLE: run lengths of 0 and 1, column by column."""
    flat = mask_HW.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask_HW.shape), "counts": [0, *runs] if flat[0] else runs}
