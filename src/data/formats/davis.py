"""Folders of frames with folders of masks → records: DAVIS, MOSE, YouTube-VOS, SA-V's validation set, and kin.

A video is a folder of frames; its masks have the frames' names and lie in a folder of the same place under another
root. Masks may be missing: only frames that have one are annotated. Instead of one mask for all objects there may be a
folder of masks for each object. ``data/README.md`` shows the layouts.

Formats: https://davischallenge.org, https://github.com/facebookresearch/sam2/tree/main/sav_dataset#sa-v-val-and-test
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import UserError
from ..decode.labels import LabelImage, label_tracks, read_label_image
from ..decode.video import frame_paths, is_image, natural
from ..records import RLE, Issue, VideoRecord
from .parsing import Bounds, IssueLog, as_id, choose_videos, folder_of_both, make_objects, open_frames, sides

FRAMES, MASKS = "JPEGImages", "Annotations"
"""What the roots' names begin with (``JPEGImages_24fps``)."""

LEVELS = ("480p", "1080p", "Full-Resolution")
"""Folders of resolutions between a root and its videos; the first that is there is taken."""

FRAME_FOLDERS = (FRAMES, "img", "imgs", "image", "images", "frames", "rgb")
MASK_FOLDERS = (MASKS, "annot", "annotations", "mask", "masks", "gt", "labels", "instances", "SegmentationObject")
"""What folders of frames and of masks beside them are called, where only the former is given."""


@dataclass(frozen=True)
class VideoFolders:
    """Where frames and masks lie: one video's, or the roots of those of several."""

    name: str
    frames: Path
    masks: Path


@dataclass
class DavisSource:
    """Videos as folders of frames and masks; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    videos: list[VideoFolders]
    max_ann_per_img: int
    bounds: Bounds
    findings: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        video = self.videos[index]
        log = IssueLog(str(video.masks))
        try:
            paths, files = frame_paths(video.frames), _mask_files(video.masks)
        except UserError as error:
            log.refused(video.frames, error)
            return None, log.findings
        except OSError as error:
            log.error("", f"its folders cannot be read: {error.strerror}", "mend or delete them")
            return None, log.findings
        if _masks_fit(paths, files, log):
            return self._record(video.name, paths, files, log), log.findings
        return None, log.findings

    def _record(self, name: str, paths: list[Path], files: MaskFiles, log: IssueLog) -> VideoRecord | None:
        masks = [_read_masks(files.get(path.stem, {}), log, self.bounds) for path in paths]
        labelled = next((image.size for images in masks for image in images.values()), None)
        sources, size = open_frames(paths, labelled, log, self.bounds)
        if size is None:
            return None
        kept = [t for t, source in enumerate(sources) if source is not None]
        masks = [_of_size(masks[t], files.get(paths[t].stem, {}), size, log) for t in kept]
        tracks, void = _tracks(masks)
        objects = make_objects(tracks, self.max_ann_per_img, log)
        if not objects:
            log.repaired("", "videos without an object")
            return None
        annotated = frozenset(t for t, images in enumerate(masks) if images)
        return VideoRecord(
            name,
            *size,
            frames=[source for source in sources if source is not None],
            objects=objects,
            annotated=None if len(annotated) == len(kept) else annotated,
            void=dict(void),
        )


def _masks_fit(paths: list[Path], files: MaskFiles, log: IssueLog) -> bool:
    """Whether there are masks with the names of frames."""
    stems = {path.stem for path in paths}
    strays = [stem for stem in files if stem not in stems]
    if not files:
        log.repaired("", "videos without masks")
    elif len(strays) == len(files):
        log.error(
            "",
            f"no mask has the name of a frame: masks such as {strays[0]}, frames such as {paths[0].stem}",
            "give masks the names of their frames",
        )
    else:
        for stem in strays:
            log.repaired(stem, "masks without a frame")
    return len(strays) < len(files)


MaskFiles = dict[str, dict[str, Path]]
"""A frame's stem → an object's folder → its mask file; the folder of a mask of all objects is ``""``."""


def open_davis(
    img_folder: str | Path,
    ann_folder: str | Path | None = None,
    name: str = "davis",
    max_ann_per_img: int = 200,
    videos: list[str] | None = None,
    follow_links: bool = False,
) -> DavisSource:
    """List the videos of a data set in folders, reading no masks yet.

    Args:
        img_folder: the data set's root; its folder of frames, with or without the level of resolution; a folder of
            videos that each have their own JPEGImages and Annotations; or one video.
        ann_folder: the root of the masks; None: looked for.
        name: of the data set.
        max_ann_per_img: objects kept per video, the largest by mask area.
        videos: names of videos, paths below the root; None: all.
        follow_links: whether links may lead out of the folders.

    Raises:
        UserError: a folder is missing, holds no videos, or not one of a wanted name.
    """
    folder = Path(img_folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder")
    roots = find_roots(folder, None if ann_folder is None else Path(ann_folder))
    found = [video for root in roots for video in _videos(root)]
    if not found:
        raise UserError(
            f"{folder}: no videos with masks: neither {FRAMES} and {MASKS} in it, in its folders or around it, nor a "
            f"folder of masks beside it ({', '.join(MASK_FOLDERS[1:])}); name the folder of masks as the ann_file"
        )
    found.sort(key=lambda video: natural(video.name))
    chosen = [found[index] for index in choose_videos([video.name for video in found], videos, folder)]
    masks = [folder_of_both(folder, root.masks) for root in roots] if ann_folder is None else [Path(ann_folder)]
    bounds = Bounds.of(follow_links, folder, *masks)
    files = [path for root in roots for path in (root.frames, root.masks)]
    return DavisSource(name, files, chosen, max_ann_per_img, bounds)


def masks_beside(frames: Path) -> Path | None:
    """The folder of masks beside a folder of frames, by their names; None if there is none, or it is not clear."""
    frames = frames.absolute()
    return _only(frames.parent, MASK_FOLDERS) if _is_called(frames, FRAME_FOLDERS) else None


def frames_within(folder: Path) -> Path | None:
    """The folder of frames in a folder, by its name; None if there is none, or it is not clear."""
    return _only(folder, FRAME_FOLDERS)


def _only(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of one of these names: the first name's own, else the only one."""
    found = [path for path in _subfolders(folder) if _is_called(path, names)]
    return next((path for path in found if path.name == names[0]), found[0] if len(found) == 1 else None)


def _is_called(folder: Path, names: tuple[str, ...]) -> bool:
    return folder.name.lower() in {name.lower() for name in names} or bool(re.match(rf"{names[0]}_\d+fps", folder.name))


def find_roots(folder: Path, masks: Path | None) -> list[VideoFolders]:
    """The roots of frames with the roots of their masks."""
    if masks is not None:
        if not masks.is_dir():
            raise UserError(f"{masks}: no such folder of masks")
        frames = frames_within(folder) or folder
        return [_at_one_level(_name_of(frames), frames, _only(masks, MASK_FOLDERS) or masks)]
    return list(_roots_within(folder)) or _roots_around(folder)


def _roots_within(folder: Path, seen: set[Path] | None = None) -> Iterator[VideoFolders]:
    """The root in a folder or, where it has none, those in the folders in it, each once however links lead to it."""
    if _was_seen(folder, seen := set() if seen is None else seen):
        return
    frames = frames_within(folder)
    if frames is not None and (masks := masks_beside(frames)) is not None:
        yield _at_one_level(folder.absolute().name, frames, masks)
    elif not holds_images(folder):
        for child in _subfolders(folder):
            for root in _roots_within(child, seen):
                yield replace(root, name=child.name if root.name == child.name else f"{child.name}/{root.name}")


def _roots_around(folder: Path) -> list[VideoFolders]:
    """The root that a folder is, or lies below, with the folder of the same place below the root of masks."""
    folder = folder.absolute()
    for root in (folder, *folder.parents):
        masks = masks_beside(root)
        if masks is None:
            continue
        if root == folder:
            return [_at_one_level(_name_of(folder), folder, masks)]
        below = folder.relative_to(root).parts
        without_level = below[1:] if below[0] in LEVELS else below
        places = [masks.joinpath(*below), masks.joinpath(*without_level)]
        return [
            VideoFolders(_name_of(root) if below[-1] in LEVELS else folder.name, folder, place)
            for place in places
            if place.is_dir()
        ][:1]
    return []


def _at_one_level(name: str, frames: Path, masks: Path) -> VideoFolders:
    """Both roots or, if they have folders of resolutions, the folders of one that both have."""
    levels = [level for level in LEVELS if (frames / level).is_dir()]
    level = next((level for level in levels if (masks / level).is_dir()), levels[0] if levels else "")
    return VideoFolders(name, frames / level, masks / level if (masks / level).is_dir() else masks)


def _name_of(folder: Path) -> str:
    """What a video is called whose frames lie in this folder: as the folder above if this is a JPEGImages or so."""
    folder = folder.absolute()
    return folder.parent.name if _is_called(folder, FRAME_FOLDERS) else folder.name


def _videos(root: VideoFolders) -> Iterator[VideoFolders]:
    """The folders of images below a root; a root that holds images itself is one video."""
    for folder in folders_of_images(root.frames):
        below = folder.relative_to(root.frames)
        yield VideoFolders(below.as_posix() if below.parts else root.name, folder, root.masks / below)


def folders_of_images(folder: Path, seen: set[Path] | None = None) -> Iterator[Path]:
    """The folders that hold images, from this one on; none within another, each once however links lead to it."""
    if _was_seen(folder, seen := set() if seen is None else seen):
        return
    if holds_images(folder):
        yield folder
    else:
        for child in _subfolders(folder):
            yield from folders_of_images(child, seen)


def _was_seen(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder is among those seen, to which it is added: with two links that lead back a walk has no end."""
    real = folder.resolve()
    found = real in seen
    seen.add(real)
    return found


def holds_images(folder: Path) -> bool:
    """Whether images lie in a folder itself."""
    with os.scandir(folder) as entries:
        return any(is_image(entry) for entry in entries)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=lambda path: natural(path.name))


def _mask_files(folder: Path) -> MaskFiles:
    """The mask files of a video: those in its folder or, where there are none, those in the folders of its objects."""
    files: MaskFiles = {}
    if folder.is_dir():
        folders = {"": folder} if holds_images(folder) else {child.name: child for child in _subfolders(folder)}
        for key, place in folders.items():
            if holds_images(place):
                for path in frame_paths(place):
                    files.setdefault(path.stem, {})[key] = path
    return files


def _read_masks(files: dict[str, Path], log: IssueLog, bounds: Bounds) -> dict[str, LabelImage]:
    """A frame's masks by object's folder; none at all if one of them is damaged, since then its objects are unknown."""
    images: dict[str, LabelImage] = {}
    for key, path in files.items():
        try:
            bounds.check(path)
            images[key] = read_label_image(path)
        except UserError as error:
            log.refused(path, error)
    return images if len(images) == len(files) else {}


def _of_size(
    images: dict[str, LabelImage], files: dict[str, Path], size: tuple[int, int], log: IssueLog
) -> dict[str, LabelImage]:
    """A frame's masks, none at all if one of them has another size."""
    others = [key for key, image in images.items() if image.size != size]
    for key in others:
        found = f"the mask is {sides(images[key].size)} pixels, the frames are {sides(size)}"
        log.findings.append(Issue("error", str(files[key]), "", found, "save masks at the size of the frames"))
    return {} if others else images


def _tracks(masks: list[dict[str, LabelImage]]) -> tuple[dict[int | str, list[RLE | None]], dict[int, RLE]]:
    """The objects of a video and its void areas, from the masks of each frame by object's folder."""
    folders = sorted({folder for images in masks for folder in images}, key=natural)
    if folders == [""]:
        return label_tracks([images.get("") for images in masks])
    tracks: dict[int | str, list[RLE | None]] = {}
    for folder in folders:
        areas = [images[folder].foreground() if folder in images else None for images in masks]
        key = as_id(folder)
        tracks[folder if key is None else key] = [area if area and area.area() else None for area in areas]
    return tracks, {}
