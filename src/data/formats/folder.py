"""Folders of images with mask files, read as videos of one frame.

Masks are in a folder of their own, under the images' names, or beside the images. In a palette or grey image each
number is an object; a black and white one is one object (:mod:`src.data.decode.labels`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UserError
from ...core.files import refuse_unreadable
from ..decode.labels import LabelImage, label_tracks, read_label_image
from ..decode.video import is_image, natural
from ..records import RLE, Issue, VideoRecord
from .file_names import FITTING, renamed, utf8_name
from .mask_folders import (
    MASKS,
    VideoFolders,
    are_frames,
    find_roots,
    folders_of_images,
    frames_within,
    holds_images,
    is_frames_folder,
    masks_beside,
    subfolders,
)
from .parsing import (
    Bounds,
    Categories,
    IssueLog,
    choose_videos,
    folder_of_both,
    make_objects,
    open_frames,
    shown,
    sides,
    with_void,
)
from .reader import Location, OpenOptions

MARKS = ("_segmentation", "_mask", "-mask", ".mask", "_masks", "_label", "_labels", "_seg", "_gt")
"""What may follow an image's name in that of its mask."""


@dataclass(frozen=True)
class MaskedImage:
    """An image and its mask, None where it has none.

    ``spare`` are further masks of it, which are not read or, with ``instances``, further objects: a file each.
    """

    name: str
    image: Path
    mask: Path | None
    spare: tuple[Path, ...] = ()
    instances: bool = False


@dataclass
class FolderSource:
    """Images with masks; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    images: list[MaskedImage]
    max_objects: int
    bounds: Bounds
    mask_threshold: float | None = None
    categories: Categories = field(default_factory=Categories)
    issues: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def name_of(self, index: int) -> str:
        return self.images[index].name

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        image = self.images[index]
        if image.mask is None:
            log = IssueLog(str(image.image))
            log.repaired("", "images without a mask")
            return None, log.issues
        log = IssueLog(str(image.mask))
        if not image.instances:
            for path in image.spare:
                log.repaired(path.name, "masks of an image that has another")
        files = [image.mask, *image.spare] if image.instances else [image.mask]
        masks = [(path, labels) for path in files if (labels := self._read_mask(path, log)) is not None]
        return (self._record(image, masks, log) if masks else None), log.issues

    def _read_mask(self, path: Path, log: IssueLog) -> LabelImage | None:
        try:
            self.bounds.check(path)
            return read_label_image(path, self.mask_threshold)
        except UserError as error:
            log.refused(path, error)
            return None

    def _record(self, image: MaskedImage, masks: list[tuple[Path, LabelImage]], log: IssueLog) -> VideoRecord | None:
        (frame,), size = open_frames([image.image], masks[0][1].size, log, self.bounds)
        if frame is None or size is None:
            return None
        for path, labels in masks:
            if labels.size != size:
                problem = f"the mask is {sides(labels.size)} pixels, the image is {sides(size)}"
                log.issues.append(Issue("error", str(path), "", problem, "save masks at the size of the images"))
        fitting = [labels for _, labels in masks if labels.size == size]
        if not fitting:
            return None
        if self.mask_threshold is not None:
            log.repaired("", "masks read as black and white", "dataset.mask_threshold says so")
        tracks: dict[int | str, list[RLE | None]] = {}
        void: dict[int, RLE] = {}
        if image.instances:
            files = (labels.foreground() for labels in fitting)
            tracks = {number: [area if area.area() else None] for number, area in enumerate(files, start=1)}
        else:
            tracks, void = label_tracks(fitting)
        chosen, areas = self.categories.select(tracks, None, log)
        objects = make_objects(chosen, self.max_objects, log)
        if not objects:
            log.repaired("", "images whose mask shows no object")
            return None
        return VideoRecord(image.name, *size, [frame], objects, void=with_void(void, areas, objects))


class FolderReader:
    """Stills with mask files, in their own folder or among the images."""

    name = "folder"
    order = 30
    looks_for = f"masks among the images (NAME{MARKS[0]}.png)"

    def recognise(self, location: Location) -> Location | None:
        folder, annotations = location.folder, location.annotations
        if annotations is not None:
            return location if annotations.is_dir() and _are_stills(folder, annotations) else None
        roots = [root for root in find_roots(folder, None) if next(folders_of_images(root.masks), None) is not None]
        if roots and all(_one_image_with_its_masks(root) for root in roots):
            return location
        if roots:
            frames, masks = roots[0].frames, roots[0].masks
            one_of_several = len(roots) > 1 and masks.name.startswith(MASKS)
            stills = is_frames_folder(frames) and not one_of_several and _are_stills(frames, masks)
            return location if stills else None
        among = holds_images(folder) and any(image.mask for image in _beside(folder))
        return location if among else None

    def open(self, location: Location, options: OpenOptions) -> FolderSource:
        """List the images of a folder, and of the folders in it, with their masks, reading none yet.

        ``location.folder`` holds the images, or a folder of images and one of masks; ``location.annotations`` the
        masks, in the same layout. Without it they are looked for in, beside and among the images. Images are called by
        their paths below the folder, without extension.

        Raises:
            UserError: a folder is missing, there are no images with masks, or none of a wanted name.
        """
        folder, annotations = location.folder, location.annotations
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        roots = find_roots(folder, None) if annotations is None else []
        if roots and all(_one_image_with_its_masks(root) for root in roots):
            return self._open_folders(location, options, roots)
        images, masks = _folders_of_stills(folder) if annotations is None else (folder, annotations)
        if not masks.is_dir():
            raise UserError(f"{masks}: no such folder of masks", "data.missing-annotations")
        if holds_images(images):
            masks = _holding_images(masks)
        log = IssueLog(str(masks))
        found = list(_beside(images) if masks == images else _apart(images, masks, log))
        if not any(image.mask for image in found):
            raise UserError(
                f"{images}: none of its {len(found)} images has a mask: neither a file of the same name in {masks}, "
                f"nor one with {', '.join(MARKS)} added to it",
                "folder.no-masks",
            )
        chosen = choose_videos([image.name for image in found], options.videos, images)
        bounds_of_masks = folder_of_both(folder, masks) if annotations is None else masks
        return FolderSource(
            name=options.name,
            files=list(dict.fromkeys([images, masks])),
            images=[found[index] for index in chosen],
            max_objects=options.max_objects,
            categories=Categories.of(options, numbered=True),
            mask_threshold=options.mask_threshold,
            bounds=Bounds.of(options.follow_links, folder, bounds_of_masks),
            issues=log.issues if options.videos is None else [],
        )

    def _open_folders(self, location: Location, options: OpenOptions, roots: list[VideoFolders]) -> FolderSource:
        """List images that have a folder each, with a mask file an object (Kaggle's Data Science Bowl)."""
        found = []
        for root in sorted(roots, key=lambda root: natural(root.name)):
            (image,) = _files(root.frames).values()
            masks = [path for paths in _files(root.masks).values() for path in paths]
            found.append(MaskedImage(root.name, image[0], masks[0], tuple(masks[1:]), instances=True))
        chosen = choose_videos([image.name for image in found], options.videos, location.folder)
        return FolderSource(
            name=options.name,
            files=[location.folder],
            images=[found[index] for index in chosen],
            max_objects=options.max_objects,
            categories=Categories.of(options, numbered=True),
            mask_threshold=options.mask_threshold,
            bounds=Bounds.of(options.follow_links, location.folder),
        )


READER = FolderReader()


def _one_image_with_its_masks(root: VideoFolders) -> bool:
    """Return whether a folder holds one image, and masks of which none is called like it: an object each."""
    if not (root.frames.is_dir() and root.masks.is_dir()):
        return False
    images, masks = _files(root.frames), _files(root.masks)
    if len(images) != 1 or not masks:
        return False
    called = _by_image(masks)
    return not (images.keys() & called.keys() or renamed(called, images))


def _are_stills(images: Path, masks: Path) -> bool:
    """Return whether two folders hold stills with masks, not one video's frames.

    Pictures are stills unless something says that they are a video: numbered names of one size, whose masks are in a
    folder called Annotations, or in folders of their own.
    """
    if not holds_images(images):
        return False
    if holds_images(masks):
        return not (masks.name.startswith(MASKS) and are_frames(images))
    return any(map(holds_images, subfolders(masks))) and not are_frames(images)


def _holding_images(masks: Path) -> Path:
    """Return a folder of masks, or the folder in it that has them.

    Raises:
        UserError: there are several.
    """
    inner = [] if holds_images(masks) else [path for path in subfolders(masks) if holds_images(path)]
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner[:4])
        raise UserError(
            f"{masks}: {len(inner)} folders of masks for the same images ({names}); name the one to read as the "
            "ann_file, or set format: davis if each has an object's masks on the frames of a video",
            "folder.several-masks",
        )
    return inner[0] if inner else masks


def _folders_of_stills(folder: Path) -> tuple[Path, Path]:
    """Return the folders of images and of masks, the same one twice if mixed.

    ``folder`` is the folder of images, or holds both.
    """
    inner = frames_within(folder)
    if inner is not None and (masks := masks_beside(inner)) is not None:
        return inner, masks
    return folder, masks_beside(folder) or folder


def _apart(images: Path, masks: Path, log: IssueLog) -> Iterator[MaskedImage]:
    """Pair the images of one folder with the masks of another.

    Masks without an image are issues.
    """
    files, mask_files = _files(images), _files(masks)
    masks_by_name = _by_image(mask_files)
    for mask, image in renamed(masks_by_name, files).items():
        masks_by_name[image] = masks_by_name.pop(mask)
        log.repaired(mask, FITTING, f"read for {shown(image)}")
    if not files.keys() & masks_by_name.keys():
        masks_by_name = _by_own_mark(files, mask_files) or masks_by_name
    numbered = _take_numbered(files, masks_by_name)
    for name, paths in files.items():
        found, objects = masks_by_name.pop(name, []), numbered.get(name, [])
        for path in paths:
            called = name if len(paths) == 1 else name + path.suffix
            if objects:
                yield MaskedImage(called, path, objects[0], tuple(objects[1:]), instances=True)
            else:
                yield _with_masks(called, path, found)
    for strays in masks_by_name.values():
        for path in strays:
            log.repaired(path.relative_to(masks).as_posix(), "masks without a frame")


def _by_own_mark(images: Container[str], masks: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return masks by their images' names where all of them add the same to it, such as ``_lesion``; else none."""
    found: dict[str, list[Path]] = {}
    marks = set()
    for name, paths in masks.items():
        ends = [match.start() for match in re.finditer(r"[_.-]", name) if name[: match.start()] in images]
        if not ends:
            return {}
        marks.add(name[ends[-1] :])
        found[name[: ends[-1]]] = paths
    return found if len(marks) == 1 else {}


def _take_numbered(images: Container[str], masks: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Take out the masks called ``NAME_1``, ``NAME_2``, … of images without another: a file an object."""
    found: dict[str, list[Path]] = {}
    for name in sorted(masks, key=natural):
        match = re.fullmatch(r"(.+)[_.-]\d+", name)
        if match and name not in images and match[1] in images and match[1] not in masks:
            found.setdefault(match[1], []).extend(masks.pop(name))
    return found


def _beside(folder: Path) -> Iterator[MaskedImage]:
    """Pair files within one folder: ``a.jpg`` with ``a_mask.png``, or with ``a.png``."""
    files = _files(folder)
    marked = {name: paths for name, paths in files.items() if _unmarked(name) in files.keys() - {name}}
    masks_by_name = _by_image(marked)
    for name, paths in files.items():
        if name not in marked:
            image, *others = sorted(paths, key=lambda path: path.suffix.lower() == ".png")
            yield _with_masks(name, image, [*masks_by_name.get(name, []), *others])


def _with_masks(name: str, image: Path, masks: list[Path]) -> MaskedImage:
    return MaskedImage(name, image, masks[0] if masks else None, tuple(masks[1:]))


def _by_image(masks: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return masks by their images' names, in the order of ``MARKS``.

    A mask that has its image's name comes last.
    """

    def rank(name: str) -> int:
        return next((place for place, mark in enumerate(MARKS) if name.endswith(mark)), len(MARKS))

    found: dict[str, list[Path]] = {}
    for name in sorted(masks, key=rank):
        found.setdefault(_unmarked(name), []).extend(masks[name])
    return found


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the image files below a folder by relative path without extension."""
    found: dict[str, list[Path]] = {}
    for at, folders, files in os.walk(folder, onerror=refuse_unreadable):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        for path in (Path(at) / file for file in sorted(files, key=natural)):
            if is_image(path):
                found.setdefault(utf8_name(path.relative_to(folder).with_suffix("").as_posix()), []).append(path)
    return found


def _unmarked(name: str) -> str:
    return next((name.removesuffix(mark) for mark in MARKS if name.endswith(mark)), name)
