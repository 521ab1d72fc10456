"""General images and videos without labels.

On these a model should stay as it was.
"""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UserError
from .decode.images import ImageFile, image_size
from .decode.video import VIDEO_SUFFIXES, is_image
from .decode.video_frames import VideoFrame, read_header
from .formats.parsing import Bounds
from .records import DataSet, FrameSource, VideoRecord


def open_unlabelled(folder: str | Path, follow_links: bool = False) -> DataSet:
    """Open a folder's images as stills and its video files as videos.

    Subfolders are included. Pixels are read on demand.

    Args:
        folder: the images and videos.
        follow_links: whether links may lead out of the folder.

    Raises:
        UserError: there is no such folder, nothing is in it, or a file in it is damaged or a link that leads out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "data.missing-folder")
    bounds = Bounds.of(follow_links, folder)
    videos = [video for path in sorted(folder.rglob("*")) if (video := _record(path, bounds)) is not None]
    if not videos:
        raise UserError(f"{folder}: no images or videos in it", "data.nothing-usable")
    return DataSet(folder.name, videos)


def _record(path: Path, bounds: Bounds) -> VideoRecord | None:
    if is_image(path):
        bounds.check(path)
        _, (height, width) = image_size(path)
        return VideoRecord(path.stem, height, width, [ImageFile(path)], [])
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        bounds.check(path)
        header = read_header(path)
        frames: list[FrameSource] = [VideoFrame(path, index) for index in range(header.count)]
        return VideoRecord(path.stem, *header.size, frames, [])
    return None
