"""YouTube-VIS JSON, and the COCO-like JSON of tracked objects.

Labelling tools and predictors write the latter. In YouTube-VIS' own flavour, ``videos`` list their ``file_names`` and
an annotation is an object with a segmentation per frame, null where it is absent. In the other, ``images`` have a
``video_id`` and a ``frame_id``. There an annotation is an object on one image, and its ``track_id`` (``instance_id``)
identifies it.

A file's frames count as annotated: one without annotations is one without objects. Only a frame with a damaged
annotation does not.

Format: https://youtube-vos.org/dataset/vis/#data-format
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from ...core.errors import UserError
from ..decode.segmentation import (
    FLAT_PARTS,
    check_segmentation,
    is_empty,
    parse_segmentation,
    without_flat_parts,
)
from ..decode.video import natural
from ..records import RLE, Issue, VideoRecord
from .file_names import FITTING, FileNames, said_otherwise
from .json_files import annotation_json, find_json, holds_keys, read_json
from .parsing import (
    VOIDED,
    Bounds,
    Categories,
    IssueLog,
    as_id,
    category_names,
    choose_videos,
    declared_size,
    leaves_folder,
    make_objects,
    open_frames,
    shown,
    sides,
    with_void,
)
from .reader import Location, OpenOptions

TRACK_KEYS = ("track_id", "instance_id")


@dataclass(frozen=True)
class FrameSegmentation:
    """One object's segmentation on one frame, as in the file.

    ``place`` names it in messages.
    """

    frame: int
    segmentation: Any
    place: str


@dataclass(frozen=True)
class Image:
    """An entry of ``images``; ``order`` sorts the frames of a video."""

    video: int | str
    order: tuple[int, list[tuple[int, str]]]
    file: str
    entry: dict[str, Any]


@dataclass
class Video:
    """A video of the file: frames, and objects' segmentations by id.

    Ids are the objects' numbers, but for those of YouTube-VIS' annotations, which are counted through the whole file.
    ``crowds``: areas that are void. ``damaged``: frames with annotations that are of no object by the file.
    """

    name: str
    file_names: list[str]
    size: tuple[int, int] | None
    log: IssueLog
    ids_are_numbers: bool = True
    segmentations: dict[int | str, list[FrameSegmentation]] = field(default_factory=dict)
    categories: dict[int | str, str | None] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    crowds: list[FrameSegmentation] = field(default_factory=list)


@dataclass
class YtvisSource:
    """The videos of one JSON file; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    img_folder: Path
    videos: list[Video]
    max_objects: int
    bounds: Bounds
    issues: list[Issue]
    categories: Categories = field(default_factory=Categories)

    def __len__(self) -> int:
        return len(self.videos)

    def name_of(self, index: int) -> str:
        return self.videos[index].name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        video = self.videos[index]
        log = IssueLog(video.log.file, list(video.log.issues))
        return self._record(video, log), log.issues

    def _record(self, video: Video, log: IssueLog) -> VideoRecord | None:
        sources, size = open_frames([self.img_folder / name for name in video.file_names], video.size, log, self.bounds)
        if size is None:
            return None
        place = f"video {video.name}"
        if video.size not in (None, size):
            log.error(place, f"its frames are {sides(size)} pixels, the JSON says {sides(video.size)}")
            return None
        kept = [t for t, source in enumerate(sources) if source is not None]
        _leave_out_flat_parts(video, log)
        damaged = video.damaged | _damaged_frames(video, size, log)
        names = {key: video.categories.get(key) for key in video.segmentations}
        tracks = {key: _masks(segmentations, damaged, size) for key, segmentations in video.segmentations.items()}
        placed = {key: [masks.get(t) for t in kept] for key, masks in tracks.items()}
        chosen, areas = self.categories.select(placed, names, log)
        for t, crowd in _masks(video.crowds, damaged, size).items():
            if t in kept:
                areas.setdefault(kept.index(t), []).append(crowd)
        objects = make_objects(chosen, self.max_objects, log, video.categories, video.ids_are_numbers)
        if not objects:
            log.repaired(place, "videos without an object")
            return None
        frames = [source for source in sources if source is not None]
        annotated = None if damaged.isdisjoint(kept) else frozenset(i for i, t in enumerate(kept) if t not in damaged)
        return VideoRecord(video.name, *size, frames, objects, annotated, with_void({}, areas, objects))


class YtvisReader:
    """YouTube-VIS and COCO-like JSON of tracked objects, recognised by its keys."""

    name = "ytvis"
    order = 10
    looks_for = f"a .json with 'file_names', or with 'video_id' and {' or '.join(map(repr, TRACK_KEYS))}"

    def recognise(self, location: Location) -> Location | None:
        file, _ = find_json(location)
        if file is None:
            return None
        if holds_keys(file, "file_names") or any(holds_keys(file, "video_id", key) for key in TRACK_KEYS):
            return Location(location.folder, file)
        return None

    def open(self, location: Location, options: OpenOptions) -> YtvisSource:
        """List the videos of a JSON file of tracked objects.

        ``location.folder`` is what the file names are relative to. A video is called as in the file, else as the
        folder of its frames.

        Raises:
            UserError: the file or the folder cannot be read, or there is no video, or none of a wanted name.
        """
        path, folder = annotation_json(location), location.folder
        log = IssueLog(str(path))
        content = read_json(path, log)
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        videos = _with_unique_names(_listed_videos(path, content, log, FileNames(folder)))
        if not videos:
            issues = "".join(f"\n  {issue}" for issue in log.issues[:5])
            raise UserError(f"{path}: no video with frames{issues}", "ytvis.no-videos")
        chosen = choose_videos([video.name for video in videos], options.videos, path)
        return YtvisSource(
            name=options.name,
            files=[path],
            img_folder=folder,
            videos=[videos[index] for index in chosen],
            max_objects=options.max_objects,
            bounds=Bounds.of(options.follow_links, folder),
            issues=log.issues,
            categories=Categories.of(options, category_names(content.get("categories")).values(), log),
        )


READER = YtvisReader()


def _listed_videos(path: Path, content: dict[str, Any], log: IssueLog, names: FileNames) -> list[Video]:
    """Return the videos of either flavour."""
    refusal = f"{path}: not a file of tracked objects"
    if not isinstance(content.get("annotations"), list):
        raise UserError(f"{refusal}: no list 'annotations'", "ytvis.not-ytvis")
    if not all(isinstance(content.get(key, []), list) for key in ("videos", "images")):
        raise UserError(f"{refusal}: 'videos' or 'images' is not a list", "ytvis.not-ytvis")
    if any(isinstance(entry, dict) and "file_names" in entry for entry in content.get("videos", [])):
        return _videos_with_tracks(content, log, names)
    if "images" in content:
        return _videos_of_images(content, log, names)
    raise UserError(f"{refusal}: neither 'videos' with 'file_names' nor 'images'", "ytvis.not-ytvis")


def _videos_with_tracks(content: dict[str, Any], log: IssueLog, names: FileNames) -> list[Video]:
    """Return the videos of YouTube-VIS' own flavour."""
    videos: dict[int | str | None, Video] = {}
    for place, entry in _entries(content["videos"], "video", log):
        key, files = as_id(entry.get("id")), entry.get("file_names")
        if key is None or key in videos:
            log.error(place, "has no id" if key is None else "two videos have this id")
            continue
        paths = [_file(file, names, place, log) for file in files] if isinstance(files, list) else []
        files = [path for path in paths if path is not None]
        if not files or len(files) < len(paths):
            log.error(place, "file_names must be a list of paths within the image folder")
        else:
            videos[key] = Video(
                _name(entry.get("name"), files, key), files, declared_size(entry), IssueLog(log.file), False
            )
    categories = category_names(content.get("categories"))
    for place, entry, crowd in _labelled(content["annotations"], "segmentations", log):
        video = videos.get(_id(entry, "video_id"))
        segmentations = entry["segmentations"]
        if video is None:
            log.repaired(place, "annotations of unknown videos")
        elif not isinstance(segmentations, list) or len(segmentations) != len(video.file_names):
            count = f"{len(segmentations)}" if isinstance(segmentations, list) else "no list of"
            video.log.error(place, f"has {count} segmentations, its video has {len(video.file_names)} frames")
        else:
            found = [
                FrameSegmentation(t, each, f"{place}, frame {t}")
                for t, each in enumerate(segmentations)
                if not is_empty(each)
            ]
            if crowd:
                video.crowds += found
            else:
                key = _unused(_id(entry, "id"), video.segmentations)
                video.categories[key] = _category(entry, categories)
                video.segmentations[key] = found
    return list(videos.values())


def _videos_of_images(content: dict[str, Any], log: IssueLog, names: FileNames) -> list[Video]:
    """Return the videos of the flavour with an annotation per object and image."""
    videos, frames = _images_by_video(content, log, names)
    categories = category_names(content.get("categories"))
    for place, entry, crowd in _labelled(content["annotations"], "segmentation", log):
        video, t = frames.get(_id(entry, "image_id"), (None, 0))
        key = track_of(entry)
        if video is None:
            log.repaired(place, "annotations of unknown images")
        elif crowd:
            video.crowds.append(FrameSegmentation(t, entry["segmentation"], f"{place} ({video.file_names[t]})"))
        elif key is None:
            video.log.error(place, f"has no {' or '.join(TRACK_KEYS)}, which identifies an object from frame to frame")
            video.damaged.add(t)
        else:
            video.categories.setdefault(key, _category(entry, categories))
            video.segmentations.setdefault(key, []).append(
                FrameSegmentation(t, entry["segmentation"], f"{place} ({video.file_names[t]})")
            )
    for video in videos:
        video.segmentations = dict(
            sorted(video.segmentations.items(), key=lambda item: (isinstance(item[0], str), item[0]))
        )
        labelled = {each.frame for segmentations in video.segmentations.values() for each in segmentations}
        if 2 * len(labelled) < len(video.file_names):
            video.log.note(
                f"video {video.name}",
                "videos with annotations on less than half of their frames",
                "these frames are taken to show no object; leave frames that nobody labelled out of the file",
            )
    return videos


def _images_by_video(
    content: dict[str, Any], log: IssueLog, files_there: FileNames
) -> tuple[list[Video], dict[int | str | None, tuple[Video, int]]]:
    """Return the videos with ordered frames, and each image's video and frame number.

    An id that two files share is left out, as nothing says which of them its annotations are for.
    """
    images: dict[int | str, Image] = {}
    shared: set[int | str] = set()
    for place, entry in _entries(content["images"], "image", log):
        key, file = as_id(entry.get("id")), _file(entry.get("file_name"), files_there, place, log)
        if key is None or file is None:
            log.error(place, "has no id" if key is None else "file_name must be a path within the image folder")
            continue
        number = as_id(entry.get("frame_id", entry.get("frame_index")))
        order = (number if isinstance(number, int) else 0, natural(file))
        video = as_id(entry.get("video_id"))
        image = Image(PurePosixPath(file).parent.as_posix() if video is None else video, order, file, entry)
        if key not in images:
            images[key] = image
        elif (images[key].video, images[key].file) == (image.video, file):
            log.repaired(place, "images listed more than once", "read once")
        else:
            log.error(
                place, f"two files have this id: {shown(images[key].file)} and {shown(file)}", "give each its own"
            )
            shared.add(key)
    listed: dict[int | str, list[tuple[int | str, Image]]] = defaultdict(list)
    for key, image in images.items():
        if key not in shared:
            listed[image.video].append((key, image))
    names = {_id(entry, "id"): entry.get("name") for _, entry in _entries(content.get("videos") or [], "video", log)}
    videos: list[Video] = []
    frames: dict[int | str | None, tuple[Video, int]] = {}
    for video_key, placed in listed.items():
        placed.sort(key=lambda item: item[1].order)
        files = [image.file for _, image in placed]
        size = declared_size(placed[0][1].entry)
        videos.append(Video(_name(names.get(video_key), files, video_key), files, size, IssueLog(log.file)))
        frames.update({key: (videos[-1], t) for t, (key, _) in enumerate(placed)})
    return videos, frames


def _entries(entries: Any, kind: str, log: IssueLog) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects in a list, each with its name for messages."""
    for position, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield f"{kind} {shown(entry.get('id', f'at [{position}]'))}", entry
        else:
            log.error(f"{kind} at [{position}]", "is not an object")


def track_of(entry: dict[str, Any]) -> int | str | None:
    """Return the id that an annotation's object has from frame to frame; None if it has none."""
    return next((key for key in map(partial(_id, entry), TRACK_KEYS) if key is not None), None)


def _labelled(entries: Any, key: str, log: IssueLog) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield the annotations that have a segmentation, each with its name, and whether it is a crowd.

    Crowds count as objects where the file has nothing else.
    """
    listed = list(_entries(entries, "annotation", log))
    crowds_only = all(_is_crowd(entry) for _, entry in listed)
    for place, entry in listed:
        if is_empty(entry.get(key)):
            log.repaired(place, f"annotations without {key}")
            continue
        crowd = _is_crowd(entry) and not crowds_only
        if crowd:
            log.repaired(place, "crowd annotations", VOIDED)
        yield place, entry, crowd


def _is_crowd(entry: dict[str, Any]) -> bool:
    return as_id(entry.get("iscrowd")) not in (None, 0)


def _id(entry: dict[str, Any], key: str) -> int | str | None:
    """Return an id of an entry, which may be among its ``attributes``."""
    attributes = entry.get("attributes")
    return as_id(entry[key] if key in entry else attributes.get(key) if isinstance(attributes, dict) else None)


def _category(entry: dict[str, Any], names: dict[int | str, str]) -> str | None:
    key = _id(entry, "category_id")
    return None if key is None else names.get(key)


def _unused(key: int | str | None, taken: Container[int | str]) -> int | str:
    """Return an id, or the next free number without one or where it is taken."""
    return key if key is not None and key not in taken else next(n for n in count(1) if n not in taken)


def _file(listed: Any, names: FileNames, place: str, log: IssueLog) -> str | None:
    """Return the path of a listed file within the folder; None where it is none."""
    if not isinstance(listed, str) or not listed:
        return None
    file, otherwise = names.resolve(listed.replace("\\", "/"))  # tools on Windows write its separators
    if otherwise is not None:
        log.repaired(f"{place} ({shown(file, 160)}){said_otherwise(otherwise)}", FITTING, "read")
    return None if leaves_folder(file) else file


def _name(given: Any, files: list[str], key: int | str) -> str:
    """Return a video's name: as the file says, else its frames' folder, else its id."""
    if given and isinstance(given, (str, int)):
        return str(given)
    folders = {PurePosixPath(file).parent.as_posix() for file in files}
    return folders.pop() if len(folders) == 1 and folders != {"."} else str(key)


def _with_unique_names(videos: list[Video]) -> list[Video]:
    """Rename videos that share a name to name_2, name_3, …."""
    taken: Counter[str] = Counter()
    for video in videos:
        taken[video.name] += 1
        if taken[video.name] > 1:
            video.name += f"_{taken[video.name]}"
    return videos


def _leave_out_flat_parts(video: Video, log: IssueLog) -> None:
    for each in chain(video.crowds, *video.segmentations.values()):
        if without_flat_parts(each.segmentation) is not each.segmentation:
            log.repaired(each.place, FLAT_PARTS)


def _damaged_frames(video: Video, size: tuple[int, int], log: IssueLog) -> set[int]:
    """Return the frames on which a segmentation is damaged.

    Nothing is known there about its object.
    """
    damaged = set()
    for each in chain(video.crowds, *video.segmentations.values()):
        problem = check_segmentation(without_flat_parts(each.segmentation), *size)
        if problem is not None:
            log.error(each.place, problem)
            damaged.add(each.frame)
    return damaged


def _masks(segmentations: list[FrameSegmentation], damaged: Container[int], size: tuple[int, int]) -> dict[int, RLE]:
    """Return an object's masks by frame, without damaged frames.

    Several on one frame are united.
    """
    masks: dict[int, list[RLE]] = defaultdict(list)
    for each in segmentations:
        if (
            each.frame not in damaged
            and (mask := parse_segmentation(without_flat_parts(each.segmentation), *size)).area()
        ):
            masks[each.frame].append(mask)
    return {t: RLE(coco_mask.merge([mask.rle for mask in found])) for t, found in masks.items()}
