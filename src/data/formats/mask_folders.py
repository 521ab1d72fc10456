"""Folders of frames and their folders of masks, found by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import UserError
from ..decode.images import image_size
from ..decode.video import is_image, natural
from .file_names import utf8_name

FRAMES, MASKS = "JPEGImages", "Annotations"
"""What the roots' names begin with (``JPEGImages_24fps``)."""

LEVELS = ("480p", "1080p", "Full-Resolution")
"""Folders of resolutions between a root and its videos; the first that is there is taken."""

FRAME_FOLDERS = (FRAMES, "img", "imgs", "image", "images", "frames", "rgb")

MASK_FOLDERS = (MASKS, "annot", "annotations", "mask", "masks", "gt", "labels", "instances", "SegmentationObject")
"""What folders of frames and of masks beside them are called, where only the former is given."""


_SIZES_LOOKED_AT = 20
"""Images, spread over a folder, whose sizes are compared."""


@dataclass(frozen=True)
class VideoFolders:
    """Folders of frames and masks, of one video or of several."""

    name: str
    frames: Path
    masks: Path


def masks_beside(frames: Path) -> Path | None:
    """Return the folder of masks beside a folder of frames; None if there is no clear one."""
    frames = frames.absolute()
    return _only(frames.parent, MASK_FOLDERS) if _is_called(frames, FRAME_FOLDERS) else None


def frames_within(folder: Path) -> Path | None:
    """Return the folder of frames in a folder; None if there is no clear one."""
    return _only(folder, FRAME_FOLDERS)


def _only(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the subfolder of one of these names.

    The first name's own comes first, else it must be the only one.
    """
    found = [path for path in subfolders(folder) if _is_called(path, names)]
    return next((path for path in found if path.name == names[0]), found[0] if len(found) == 1 else None)


def _is_called(folder: Path, names: tuple[str, ...]) -> bool:
    return folder.name.lower() in {name.lower() for name in names} or bool(re.match(rf"{names[0]}_\d+fps", folder.name))


def find_roots(folder: Path, masks: Path | None) -> list[VideoFolders]:
    """Return the roots of frames with the roots of their masks."""
    if masks is not None:
        if not masks.is_dir():
            raise UserError(f"{masks}: no such folder of masks", "data.missing-annotations")
        frames = frames_within(folder) or folder
        return [_at_one_level(_name_of(frames), frames, _only(masks, MASK_FOLDERS) or masks)]
    return list(_roots_within(folder)) or _roots_around(folder)


def _roots_within(folder: Path, seen: set[Path] | None = None) -> Iterator[VideoFolders]:
    """Yield the root in a folder or, without one, those in its subfolders.

    Each comes once, however links lead to it.
    """
    if _was_seen(folder, seen := set() if seen is None else seen):
        return
    frames = frames_within(folder)
    if frames is not None and (masks := masks_beside(frames)) is not None:
        yield _at_one_level(folder.absolute().name, frames, masks)
    elif not holds_images(folder):
        for child in subfolders(folder):
            for root in _roots_within(child, seen):
                yield replace(root, name=child.name if root.name == child.name else f"{child.name}/{root.name}")


def _roots_around(folder: Path) -> list[VideoFolders]:
    """Return the root that a folder is or is below.

    Its masks are in the folder of the same relative path below the root of masks.
    """
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
    """Return both roots or, where they have folders of resolutions, those that both have."""
    levels = [level for level in LEVELS if (frames / level).is_dir()]
    level = next((level for level in levels if (masks / level).is_dir()), levels[0] if levels else "")
    return VideoFolders(name, frames / level, masks / level if (masks / level).is_dir() else masks)


def _name_of(folder: Path) -> str:
    """Return the name of a video whose frames are in a folder.

    A folder such as JPEGImages takes the name of its parent.
    """
    folder = folder.absolute()
    return folder.parent.name if _is_called(folder, FRAME_FOLDERS) else folder.name


def are_frames(folder: Path) -> bool:
    """Return whether the images in a folder look like the frames of one video: numbered names, and one size."""
    paths = [path for path in sorted(folder.iterdir()) if is_image(path)]
    names = [re.fullmatch(r"(\D*)\d{3,}|()\d+", path.stem) for path in paths]
    if not all(names) or len({name[1] or "" for name in names if name}) > 1:
        return False
    looked_at = paths[:: max(1, len(paths) // _SIZES_LOOKED_AT)]
    try:
        return len({image_size(path)[0] for path in looked_at}) == 1
    except UserError:  # damaged: whoever reads it says so
        return True


def is_frames_folder(folder: Path) -> bool:
    """Return whether a folder is called as folders of frames or images are."""
    return _is_called(folder.absolute(), FRAME_FOLDERS)


def videos_below(root: VideoFolders) -> Iterator[VideoFolders]:
    """Yield the folders of images below a root.

    A root that holds images itself is one video.
    """
    for folder in folders_of_images(root.frames):
        below = folder.relative_to(root.frames)
        yield VideoFolders(utf8_name(below.as_posix()) if below.parts else root.name, folder, root.masks / below)


def folders_of_images(folder: Path, seen: set[Path] | None = None) -> Iterator[Path]:
    """Yield the folders that hold images, from this one on, none within another.

    Each comes once, however links lead to it.
    """
    if _was_seen(folder, seen := set() if seen is None else seen):
        return
    if holds_images(folder):
        yield folder
    else:
        for child in subfolders(folder):
            yield from folders_of_images(child, seen)


def _was_seen(folder: Path, seen: set[Path]) -> bool:
    """Return whether a folder was seen before, and remember it.

    Two links that lead back would make a walk endless.
    """
    real = folder.resolve()
    found = real in seen
    seen.add(real)
    return found


def holds_images(folder: Path) -> bool:
    """Return whether a folder itself holds images."""
    with os.scandir(folder) as entries:
        return any(is_image(entry) for entry in entries)


def subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=lambda path: natural(path.name))
