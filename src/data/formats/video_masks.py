"""Video files, each with a folder of mask images whose names are frame numbers.

``clip.mp4`` goes with ``masks/clip/00000.png``, ``00001.png``, …; frames without a mask are not annotated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UserError
from ..decode.labels import LabelImage, label_tracks, read_label_image
from ..decode.video import VIDEO_SUFFIXES, frame_paths, natural
from ..decode.video_frames import VideoFrame, VideoHeader, read_header
from ..records import Issue, VideoRecord
from .file_names import utf8_name
from .mask_folders import MASK_FOLDERS, holds_images, subfolders
from .parsing import Bounds, Categories, IssueLog, choose_videos, make_objects, sides, with_void
from .reader import Location, OpenOptions

VIDEO_FOLDERS = ("videos", "video", "clips")


@dataclass(frozen=True)
class MaskedVideo:
    """A video file and its folder of masks; None: it has none."""

    name: str
    video: Path
    masks: Path | None


@dataclass
class VideoMasksSource:
    """Video files with masks; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    videos: list[MaskedVideo]
    max_objects: int
    bounds: Bounds
    mask_threshold: float | None = None
    categories: Categories = field(default_factory=Categories)
    issues: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.videos)

    def name_of(self, index: int) -> str:
        return self.videos[index].name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        video = self.videos[index]
        log = IssueLog(str(video.masks or video.video))
        if video.masks is None:
            log.repaired("", "videos without masks")
            return None, log.issues
        try:
            self.bounds.check(video.video)
            header = read_header(video.video)
        except UserError as error:
            log.refused(video.video, error)
            return None, log.issues
        return self._record(video, video.masks, header, log), log.issues

    def _record(self, video: MaskedVideo, masks: Path, header: VideoHeader, log: IssueLog) -> VideoRecord | None:
        paths = _by_frame(masks, header.count, log)
        labels: list[LabelImage | None] = [None] * header.count
        for frame, path in paths.items():
            try:
                self.bounds.check(path)
                image = read_label_image(path, self.mask_threshold)
            except UserError as error:
                log.refused(path, error)
                continue
            if image.size == header.size:
                labels[frame] = image
            else:
                problem = f"the mask is {sides(image.size)} pixels, the video is {sides(header.size)}"
                log.error(path.name, problem, "save masks at the size of the frames")
        if self.mask_threshold is not None:
            log.repaired("", "masks read as black and white", "dataset.mask_threshold says so")
        tracks, void = label_tracks(labels)
        chosen, areas = self.categories.select(tracks, None, log)
        objects = make_objects(chosen, self.max_objects, log)
        if not objects:
            log.repaired("", "videos without an object")
            return None
        frames = [VideoFrame(video.video, t) for t in range(header.count)]
        annotated = frozenset(t for t, image in enumerate(labels) if image is not None)
        return VideoRecord(video.name, *header.size, frames, objects, annotated, void=with_void(void, areas, objects))


class VideoMasksReader:
    """Video files, and folders of masks that are called like them."""

    name = "video_masks"
    order = 35
    looks_for = "video files with folders of masks called like them (masks/NAME)"

    def recognise(self, location: Location) -> Location | None:
        return location if any(video.masks for video in _videos(location)) else None

    def open(self, location: Location, options: OpenOptions) -> VideoMasksSource:
        """List the videos of a folder with their folders of masks, reading none yet.

        ``location.folder`` holds the video files, or a folder ``videos``; ``location.annotations`` the folders of
        masks, called like the videos; without it they are in a folder ``masks`` in it or beside it.

        Raises:
            UserError: a folder is missing, no video has masks, or there is no video of a wanted name.
        """
        folder = location.folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of videos", "data.missing-folder")
        videos = _videos(location)
        masks = next((video.masks.parent for video in videos if video.masks is not None), None)
        if masks is None:
            raise UserError(
                f"{folder}: no video file here has a folder of masks of its name ({', '.join(MASK_FOLDERS[:4])}, …); "
                "name the folder above them as the ann_file",
                "video-masks.none",
            )
        chosen = choose_videos([video.name for video in videos], options.videos, folder)
        return VideoMasksSource(
            name=options.name,
            files=list(dict.fromkeys([folder, masks])),
            videos=[videos[index] for index in chosen],
            max_objects=options.max_objects,
            categories=Categories.of(options, numbered=True),
            mask_threshold=options.mask_threshold,
            bounds=Bounds.of(options.follow_links, folder, masks),
        )


READER = VideoMasksReader()


def _videos(location: Location) -> list[MaskedVideo]:
    """Return the video files in natural order."""
    folder = next((path for name in VIDEO_FOLDERS if (path := location.folder / name).is_dir()), location.folder)
    files = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    if not files:
        return []
    places = [location.annotations] if location.annotations is not None else _mask_folders(folder)
    return [
        MaskedVideo(utf8_name(path.stem), path, _masks_of(path.stem, len(files), places))
        for path in sorted(files, key=lambda path: natural(path.name))
    ]


def _mask_folders(folder: Path) -> list[Path]:
    names = {name.lower() for name in MASK_FOLDERS}
    around = [*subfolders(folder), *subfolders(folder.absolute().parent)]
    return [path for path in around if path.name.lower() in names]


def _masks_of(stem: str, videos: int, places: list[Path]) -> Path | None:
    """Return the folder of a video's masks; that of a single video may be the folder of masks itself."""
    for place in places:
        if not place.is_dir():
            continue
        if (place / stem).is_dir() and holds_images(place / stem):
            return place / stem
        if videos == 1 and holds_images(place):
            return place
    return None


def _by_frame(masks: Path, count: int, log: IssueLog) -> dict[int, Path]:
    """Return mask files by frame, counted from 0; they may be called from 1 on."""
    numbered: dict[int, Path] = {}
    try:
        paths = frame_paths(masks)
    except (UserError, OSError) as error:
        log.error("", f"cannot be read: {error}")
        return {}
    for path in paths:
        found = re.search(r"(\d+)$", path.stem)
        if found is None or len(found[1]) > 9:
            log.error(path.name, "its name does not end in a frame's number", "call it like 00012.png")
        else:
            numbered[int(found[1])] = path
    first = 1 if count in numbered and 0 not in numbered else 0
    if first:
        log.note("", "masks counted from 1", "the first is of the first frame")
    for number in [number for number in numbered if not 0 <= number - first < count]:
        log.error(numbered.pop(number).name, f"the video has {count} frames", "delete it, or put the right video there")
    return {number - first: path for number, path in numbered.items()}
