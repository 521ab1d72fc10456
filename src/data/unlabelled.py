"""General images and videos without labels, from a folder: something to keep a model as it was on."""

from __future__ import annotations

from pathlib import Path

from src.data.images import ImageFile, image_size
from src.data.records import DataSet, VideoRecord
from src.data.video import IMAGE_SUFFIXES
from src.errors import UserError


def open_unlabelled(folder: str | Path) -> DataSet:
    """Every image in a folder as a still.

    Raises:
        UserError: there is no such folder, or there is nothing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    videos = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            _, (height, width) = image_size(path)
            videos.append(VideoRecord(path.stem, height, width, [ImageFile(path)], []))
    if not videos:
        raise UserError(f"{folder}: no images in it")
    return DataSet(folder.name, videos)
