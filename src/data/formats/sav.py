"""SA-V's training files: videos, each with JSON files of masklets.

People draw those of one kind, a model those of the other.

Every fourth frame is annotated: annotated frame k is frame 4 k of the video. Objects may overlap; an empty mask means
that the object is away. People's file (``_manual.json``) is read alone where there is one, else the model's
(``_auto.json``).

Format: https://github.com/facebookresearch/sam2/tree/main/sav_dataset#sa-v-train
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.files import refuse_unreadable
from ..decode.segmentation import check_segmentation, is_empty, parse_segmentation
from ..decode.video import natural
from ..decode.video_frames import VideoFrame, read_header
from ..records import RLE, Issue, VideoRecord
from .file_names import utf8_name
from .json_files import find_json, holds_keys, read_json
from .parsing import Bounds, IssueLog, as_id, choose_videos, declared_size, make_objects, sides
from .reader import Location, OpenOptions

STEP = 4
"""Frames of the 24 a second from one annotated frame to the next; the JSON does not say."""

KINDS = ("_manual.json", "_auto.json")
"""Endings of the files, the one to be preferred first."""

VIDEO_SUFFIX = ".mp4"


@dataclass(frozen=True)
class VideoFiles:
    """One video and its masklets."""

    name: str
    video: Path
    masklets: Path


@dataclass
class SavSource:
    """Videos with masklets; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    videos: list[VideoFiles]
    max_objects: int
    bounds: Bounds
    issues: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.videos)

    def name_of(self, index: int) -> str:
        return self.videos[index].name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        files = self.videos[index]
        log = IssueLog(str(files.masklets))
        if not files.video.is_file():
            log.issues.append(_misfit(files, f"there is no video for {files.masklets}"))
            return None, log.issues
        try:
            content = read_json(files.masklets, log)
        except UserError as error:
            log.refused(files.masklets, error)
            return None, log.issues
        try:
            self.bounds.check(files.video)
            header = read_header(files.video)
        except UserError as error:
            log.refused(files.video, error)
            return None, log.issues
        return self._record(files, content, header.count, header.size, log), log.issues

    def _record(
        self, files: VideoFiles, content: dict[str, Any], count: int, size: tuple[int, int], log: IssueLog
    ) -> VideoRecord | None:
        declared = declared_size(content, "video_")
        if declared not in (None, size):
            log.issues.append(
                _misfit(files, f"the video is {sides(size)} pixels, {files.masklets} says {sides(declared)}")
            )
            return None
        labelled = _annotated_frames(content, log)
        if labelled is None:
            return None
        last = (len(labelled) - 1) * STEP
        if last >= count:
            problem = (
                f"the video has {count} frames, {len(labelled)} annotated ones in {files.masklets} go up to {last}"
            )
            log.issues.append(_misfit(files, problem))
            return None
        tracks, annotated = _tracks(content, labelled, count, size, log)
        objects = make_objects(tracks, self.max_objects, log)
        if not objects:
            log.repaired("", "videos without an object")
            return None
        frames = [VideoFrame(files.video, t) for t in range(count)]
        return VideoRecord(files.name, *size, frames, objects, frozenset(annotated))


class SavReader:
    """SA-V's training files, recognised by their names or by the key ``masklet``."""

    name = "sav"
    order = 0
    looks_for = " and ".join(f"*{kind}" for kind in KINDS)

    def recognise(self, location: Location) -> Location | None:
        place = location.annotations or location.folder
        if place.is_dir() and _holds_masklets(place):
            return location
        file, _ = find_json(location)
        return Location(location.folder, file) if file is not None and holds_keys(file, "masklet") else None

    def open(self, location: Location, options: OpenOptions) -> SavSource:
        """List the videos that have masklets, reading none yet.

        ``location.folder`` is the folder of videos, or one of folders of them (``sav_000``, ``sav_001``, …).
        ``location.annotations`` is a folder of JSON files with the same layout, or one such file; without it they are
        beside the videos. Videos that share a name in several folders are called by their paths,
        ``sav_000/sav_000001``.

        Raises:
            UserError: a folder is missing, there are no masklets, or not of a wanted name.
        """
        folder = location.folder
        place = location.annotations or folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of videos", "data.missing-folder")
        if options.categories is not None or options.ignore_categories:
            raise UserError(
                f"{folder}: SA-V's objects have no categories: leave out categories and ignore_categories",
                "data.no-such-category",
            )
        if not place.exists():
            raise UserError(f"{place}: no such folder of masklets", "data.missing-annotations")
        masklets = [place] if place.is_file() else list(_masklet_files(place))
        root = place.parent if place.is_file() else place
        found = [
            VideoFiles(name, folder / f"{below.as_posix()}{VIDEO_SUFFIX}", path)
            for name, below, path in _named(_preferred(masklets, root))
        ]
        if not found:
            raise UserError(
                f"{place}: no masklets: no file here or in its folders ends in {' or '.join(KINDS)}", "sav.no-masklets"
            )
        chosen = choose_videos([video.name for video in found], options.videos, place)
        return SavSource(
            name=options.name,
            files=[place],
            videos=[found[index] for index in chosen],
            max_objects=options.max_objects,
            bounds=Bounds.of(options.follow_links, folder),
            issues=_videos_without_masklets(folder, found) if options.videos is None else [],
        )


READER = SavReader()


def _videos_without_masklets(folder: Path, found: list[VideoFiles]) -> list[Issue]:
    log = IssueLog(str(folder))
    known = {video.video for video in found}
    for path in sorted(folder.glob(f"*{VIDEO_SUFFIX}")):
        if path not in known:
            log.repaired(path.name, "videos without masklets")
    return log.issues


def _holds_masklets(folder: Path) -> bool:
    """Return whether a folder, or one of its subfolders, holds files of masklets."""
    return any(next(folder.glob(f"{depth}*{kind}"), None) for kind in KINDS for depth in ("", "*/"))


def _masklet_files(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder, onerror=refuse_unreadable):
        folders.sort(key=natural)
        yield from (Path(at) / file for file in sorted(files, key=natural) if file.endswith(KINDS))


def _preferred(masklets: list[Path], root: Path) -> dict[Path, Path]:
    """Return each video's path below the root, without extension → its file of masklets."""
    found: dict[Path, Path] = {}
    for path in masklets:
        kind = next((kind for kind in KINDS if path.name.endswith(kind)), path.suffix)
        video = path.with_name(path.name.removesuffix(kind)).relative_to(root)
        if video not in found or kind == KINDS[0]:
            found[video] = path
    return found


def _named(found: dict[Path, Path]) -> Iterator[tuple[str, Path, Path]]:
    """Yield each video's name, its path and its file of masklets.

    A video whose name is not unique is called by its path.
    """
    counts = Counter(video.name for video in found)
    for video, path in found.items():
        yield utf8_name(video.name if counts[video.name] == 1 else video.as_posix()), video, path


def _misfit(files: VideoFiles, problem: str) -> Issue:
    """Return an issue about a video that does not fit its JSON.

    It is in the video's file, since that is what has to change.
    """
    return Issue("error", str(files.video), "", problem, "put the video it is of there, or delete the JSON")


def _annotated_frames(content: dict[str, Any], log: IssueLog) -> list[Any] | None:
    """Return the lists of masks, one an annotated frame; None without any."""
    labelled = content.get("masklet")
    if not isinstance(labelled, list) or not labelled:
        log.error("", "no masklets: 'masklet' must be a list of lists of masks, one an annotated frame")
        return None
    return labelled


def _tracks(
    content: dict[str, Any], labelled: list[Any], count: int, size: tuple[int, int], log: IssueLog
) -> tuple[dict[int | str, list[RLE | None]], set[int]]:
    """Return each masklet's areas by frame, and the frames whose annotations are sound."""
    width = max((len(masks) for masks in labelled if isinstance(masks, list)), default=0)
    keys = _masklet_ids(content, width)
    tracks: dict[int | str, list[RLE | None]] = {key: [None] * count for key in keys}
    annotated = set()
    for k, masks in enumerate(labelled):
        if not isinstance(masks, list) or len(masks) != width:
            log.error(f"annotated frame {k}", f"not a list of {width} masks, one an object")
            continue
        problems = [None if is_empty(mask) else check_segmentation(mask, *size) for mask in masks]
        for number, problem in enumerate(problems):
            if problem is not None:
                log.error(f"annotated frame {k}, object {number}", problem)
        if any(problems):
            continue
        annotated.add(k * STEP)
        for key, mask in zip(keys, masks, strict=True):
            if not is_empty(mask) and (area := parse_segmentation(mask, *size)).area():
                tracks[key][k * STEP] = area
    return tracks, annotated


def _masklet_ids(content: dict[str, Any], count: int) -> list[int | str]:
    """Return the ids of the masklets, or their positions where ids are missing or repeated."""
    ids = content.get("masklet_id")
    keys = [as_id(value) for value in ids] if isinstance(ids, list) else []
    found = [key for key in keys if key is not None]
    return found if len(set(found)) == len(keys) == count else list(range(count))
