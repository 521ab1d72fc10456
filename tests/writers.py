"""Records → files in the formats that only tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from src.core.files import inside
from src.data.decode.video_writer import VideoWriter
from src.data.formats.sav import KINDS, STEP, VIDEO_SUFFIX
from src.data.records import RLE, DataSet
from src.data.writers import (
    _box,
    _categories,
    _category_ids,
    _mask,
    _size,
    _uncompressed,
    _write_frames,
    _write_json,
    label_frame,
    write_image,
    write_palette_png,
)


def write_folder(folder: str | Path, data: DataSet) -> None:
    """Write first frames as stills with masks, called alike: ``images/<video>.png`` and ``masks/<video>.png``."""
    for video in data.videos:
        write_image(inside(Path(folder) / "images", f"{video.video_id}.png"), video.frames[0].read())
        write_palette_png(inside(Path(folder) / "masks", f"{video.video_id}.png"), label_frame(video, 0))


def write_ytvis(folder: str | Path, data: DataSet) -> None:
    """Write videos as YouTube-VIS does: ``<video>/`` for frames, ``instances.json`` with a list of masks per object.

    The format has no frames that nobody labelled: data must be annotated throughout.
    """
    annotations: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    categories = _category_ids(data)
    for number, video in enumerate(data.videos, start=1):
        videos.append({"id": number, "file_names": _write_frames(Path(folder), video), **_size(video)})
        for obj in video.objects:
            masks = [None if s is None else s.decode() for s in obj.segmentations]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": number,
                    "category_id": categories[obj.category],
                    "iscrowd": 0,
                    "segmentations": [None if mask is None else _uncompressed(mask) for mask in masks],
                    "areas": [None if mask is None else int(mask.sum()) for mask in masks],
                    "bboxes": [None if mask is None else _box(mask) for mask in masks],
                }
            )
    content = {"videos": videos, "annotations": annotations, "categories": _categories(categories)}
    _write_json(Path(folder) / "instances.json", content)


def write_tracked_coco(folder: str | Path, data: DataSet) -> None:
    """Write videos as labelling tools do: ``<video>/`` for frames, and ``instances.json``, COCO whose images have a
    ``video_id`` and ``frame_id`` and whose annotations a ``track_id``; masks as compressed RLE.

    The format has no frames that nobody labelled: data must be annotated throughout.
    """
    videos: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = _category_ids(data)
    for number, video in enumerate(data.videos, start=1):
        videos.append({"id": number, "name": video.video_id})
        for t, file in enumerate(_write_frames(Path(folder), video)):
            place = {"id": len(images) + 1, "video_id": number, "frame_id": t}
            images.append({**place, "file_name": file, **_size(video)})
            for obj in video.objects:
                if (segmentation := obj.segmentations[t]) is None:
                    continue
                mask = segmentation.decode()
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": place["id"], "track_id": obj.object_id, "iscrowd": 0,
                        "category_id": categories[obj.category], "segmentation": _compressed(mask),
                        "area": int(mask.sum()), "bbox": _box(mask),
                    }
                )  # fmt: skip
    content = {"videos": videos, "images": images, "annotations": annotations, "categories": _categories(categories)}
    _write_json(Path(folder) / "instances.json", content)


def write_sav(folder: str | Path, data: DataSet, lossless: bool = False) -> None:
    """Write videos as in SA-V's training set: ``<video>.mp4``, and ``<video>_manual.json`` with every fourth frame.

    Frames must have even sides, as H.264 wants it, and lose a little in it unless it is ``lossless``.
    """
    folder = Path(folder)
    for video in data.videos:
        with VideoWriter(inside(folder, f"{video.video_id}{VIDEO_SUFFIX}"), lossless=lossless) as writer:
            for frame in video.frames:
                writer.write(frame.read())
        labelled = range(0, len(video), STEP)
        content = {
            "video_id": video.video_id,
            "video_frame_count": float(len(video)),
            "video_height": float(video.height),
            "video_width": float(video.width),
            "masklet": [[_compressed(_mask(obj, t, video)) for obj in video.objects] for t in labelled],
            "masklet_id": [obj.object_id for obj in video.objects],
            "masklet_num": len(video.objects),
        }
        _write_json(folder / f"{video.video_id}{KINDS[0]}", content)


def _compressed(mask_HW: np.ndarray) -> dict[str, Any]:
    rle = RLE.encode(mask_HW).rle
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
