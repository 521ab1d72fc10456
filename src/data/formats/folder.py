"""A folder of images with mask files → records: every image with its mask becomes a video of one frame.

Masks lie in a folder of their own, under the images' names, or beside the images. What their values mean is told in
:mod:`src.data.decode.labels`: a palette or grey image of numbers is an object for each number, a black and white one is one
object.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UserError
from ..decode.labels import label_tracks, read_label_image
from ..decode.video import is_image, natural
from ..records import Issue, VideoRecord
from .davis import frames_within, masks_beside
from .parsing import Bounds, IssueLog, choose_videos, folder_of_both, make_objects, open_frames, sides

MARKS = ("_mask", "-mask", ".mask", "_masks", "_label", "_labels", "_seg", "_gt")
"""What may follow an image's name in that of its mask."""


@dataclass(frozen=True)
class MaskedImage:
    """An image and its mask, None where it has none; ``spare``: further masks of it, which are not read."""

    name: str
    image: Path
    mask: Path | None
    spare: tuple[Path, ...] = ()


@dataclass
class FolderSource:
    """Images with masks; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    images: list[MaskedImage]
    max_ann_per_img: int
    bounds: Bounds
    findings: list[Issue] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        image = self.images[index]
        if image.mask is None:
            log = IssueLog(str(image.image))
            log.repaired("", "images without a mask")
            return None, log.findings
        log = IssueLog(str(image.mask))
        for path in image.spare:
            log.repaired(path.name, "masks of an image that has another")
        return self._record(image.name, image.image, image.mask, log), log.findings

    def _record(self, name: str, image: Path, mask: Path, log: IssueLog) -> VideoRecord | None:
        try:
            self.bounds.check(mask)
            labels = read_label_image(mask)
        except UserError as error:
            log.refused(mask, error)
            return None
        (frame,), size = open_frames([image], labels.size, log, self.bounds)
        if frame is None or size is None:
            return None
        if labels.size != size:
            problem = f"the mask is {sides(labels.size)} pixels, the image is {sides(size)}"
            log.error("", problem, "save masks at the size of the images")
            return None
        tracks, void = label_tracks([labels])
        objects = make_objects(tracks, self.max_ann_per_img, log)
        if not objects:
            log.repaired("", "images whose mask shows no object")
            return None
        return VideoRecord(name, *size, [frame], objects, void=dict(void))


def open_folder(
    img_folder: str | Path,
    ann_folder: str | Path | None = None,
    name: str = "folder",
    max_ann_per_img: int = 200,
    videos: list[str] | None = None,
    follow_links: bool = False,
) -> FolderSource:
    """List the images of a folder, and of the folders in it, with their masks, reading none yet.

    Args:
        img_folder: the images, or a folder with one of images and one of masks in it.
        ann_folder: the masks, laid out as the images are; None: looked for in, beside and among the images.
        name: of the data set.
        max_ann_per_img: objects kept per image, the largest by mask area.
        videos: names of images, as paths below the folder without extension; None: all.
        follow_links: whether links may lead out of the folders.

    Raises:
        UserError: a folder is missing, there are no images with masks, or none of a wanted name.
    """
    images = Path(img_folder)
    if not images.is_dir():
        raise UserError(f"{images}: no such image folder")
    named = images
    if ann_folder is None:
        images, masks = folders_of_stills(images)
    else:
        masks = Path(ann_folder)
    if not masks.is_dir():
        raise UserError(f"{masks}: no such folder of masks")
    log = IssueLog(str(masks))
    found = list(_beside(images) if masks == images else _apart(images, masks, log))
    if not any(image.mask for image in found):
        raise UserError(
            f"{images}: none of its {len(found)} images has a mask: neither a file of the same name in {masks}, nor "
            f"one with {', '.join(MARKS)} added to it"
        )
    chosen = choose_videos([image.name for image in found], videos, images)
    files = list(dict.fromkeys([images, masks]))
    strays = log.findings if videos is None else []
    bounds = Bounds.of(follow_links, named, folder_of_both(named, masks) if ann_folder is None else masks)
    return FolderSource(name, files, [found[index] for index in chosen], max_ann_per_img, bounds, strays)


def has_masks_beside(folder: Path) -> bool:
    """Whether some of the images in a folder are masks of others in it."""
    return any(image.mask for image in _beside(folder))


def folders_of_stills(folder: Path) -> tuple[Path, Path]:
    """The folders of images and of masks, given the former or the one that both are in; twice the same if mixed."""
    inner = frames_within(folder)
    if inner is not None and (masks := masks_beside(inner)) is not None:
        return inner, masks
    return folder, masks_beside(folder) or folder


def _apart(images: Path, masks: Path, log: IssueLog) -> Iterator[MaskedImage]:
    """The images of one folder with the masks of another; a finding for each mask that is of none of them."""
    files, masks_by_name = _files(images), _by_image(_files(masks))
    for name, paths in files.items():
        found = masks_by_name.pop(name, [])
        for path in paths:
            yield _with_masks(name if len(paths) == 1 else name + path.suffix, path, found)
    for strays in masks_by_name.values():
        for path in strays:
            log.repaired(path.relative_to(masks).as_posix(), "masks without a frame")


def _beside(folder: Path) -> Iterator[MaskedImage]:
    """Pairs within one folder: ``a.jpg`` with ``a_mask.png``, or ``a.jpg`` with ``a.png``."""
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
    """Masks by their images' names; of an image's, in the order of ``MARKS``, one that is called as it is last."""

    def rank(name: str) -> int:
        return next((place for place, mark in enumerate(MARKS) if name.endswith(mark)), len(MARKS))

    found: dict[str, list[Path]] = {}
    for name in sorted(masks, key=rank):
        found.setdefault(_unmarked(name), []).extend(masks[name])
    return found


def _files(folder: Path) -> dict[str, list[Path]]:
    """The image files in a folder and in those in it: path below it, without extension → files called so."""
    found: dict[str, list[Path]] = {}
    for at, folders, files in os.walk(folder):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural)
        for path in (Path(at) / file for file in sorted(files, key=natural)):
            if is_image(path):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _unmarked(name: str) -> str:
    return next((name.removesuffix(mark) for mark in MARKS if name.endswith(mark)), name)
