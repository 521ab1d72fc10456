"""Folders of frames with folders of masks.

DAVIS, MOSE, YouTube-VOS and SA-V's validation set are stored so. A video is a folder of frames. Its masks have the
frames' names and are in a folder of the same relative path below another root. Masks may be missing: only frames that
have one are annotated. Instead of one mask for all objects there may be a folder of masks for each object.
``data/README.md`` shows the layouts.

Formats: https://davischallenge.org, https://github.com/facebookresearch/sam2/tree/main/sav_dataset#sa-v-val-and-test
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UserError
from ..decode.labels import LabelImage, label_tracks, read_label_image
from ..decode.video import frame_paths, natural
from ..records import RLE, Issue, VideoRecord
from .file_names import FITTING, renamed
from .mask_folders import (
    FRAMES,
    MASK_FOLDERS,
    MASKS,
    VideoFolders,
    find_roots,
    folders_of_images,
    holds_images,
    subfolders,
    videos_below,
)
from .parsing import (
    Bounds,
    Categories,
    IssueLog,
    as_id,
    choose_videos,
    folder_of_both,
    make_objects,
    open_frames,
    shown,
    sides,
    with_void,
)
from .reader import Location, OpenOptions


@dataclass
class DavisSource:
    """Videos as folders of frames and masks; see :class:`src.data.records.Source`."""

    name: str
    files: list[Path]
    videos: list[VideoFolders]
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
        log = IssueLog(str(video.masks))
        try:
            paths, files = frame_paths(video.frames), _mask_files(video.masks)
        except UserError as error:
            log.refused(video.frames, error)
            return None, log.issues
        except OSError as error:
            log.error("", f"its folders cannot be read: {error.strerror}", "mend or delete them")
            return None, log.issues
        for mask, frame in renamed(files, [path.stem for path in paths]).items():
            files[frame] = files.pop(mask)
            log.repaired(mask, FITTING, f"read for {shown(frame)}")
        if _masks_fit(paths, files, log):
            return self._record(video.name, paths, files, log), log.issues
        return None, log.issues

    def _record(self, name: str, paths: list[Path], files: MaskFiles, log: IssueLog) -> VideoRecord | None:
        masks = [_read_masks(files.get(path.stem, {}), log, self.bounds, self.mask_threshold) for path in paths]
        if self.mask_threshold is not None:
            log.repaired("", "masks read as black and white", "dataset.mask_threshold says so")
        labelled = next((image.size for images in masks for image in images.values()), None)
        sources, size = open_frames(paths, labelled, log, self.bounds)
        if size is None:
            return None
        kept = [t for t, source in enumerate(sources) if source is not None]
        masks = [_of_size(masks[t], files.get(paths[t].stem, {}), size, log) for t in kept]
        tracks, void = _tracks(masks)
        chosen, areas = self.categories.select(tracks, None, log)
        objects = make_objects(chosen, self.max_objects, log)
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
            void=with_void(void, areas, objects),
        )


def _masks_fit(paths: list[Path], files: MaskFiles, log: IssueLog) -> bool:
    """Return whether there are masks with the names of frames."""
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


class DavisReader:
    """Folders of masks beside folders of frames."""

    name = "davis"
    order = 40
    looks_for = f"folders of masks in it and beside it ({MASKS}, masks, …)"

    def recognise(self, location: Location) -> Location | None:
        if location.annotations is None:
            folders = [root.masks for root in find_roots(location.folder, None)]
        else:
            folders = [location.annotations] if location.annotations.is_dir() else []
        return location if any(next(folders_of_images(folder), None) for folder in folders) else None

    def open(self, location: Location, options: OpenOptions) -> DavisSource:
        """List the videos of a data set in folders, reading no masks yet.

        ``location.folder`` is the data set's root; its folder of frames, with or without the level of resolution; a
        folder of videos that each have their own JPEGImages and Annotations; or one video. ``location.annotations`` is
        the root of the masks. Videos are called by their paths below the root.

        Raises:
            UserError: a folder is missing, holds no videos, or not one of a wanted name.
        """
        folder, annotations = location.folder, location.annotations
        if not folder.is_dir():
            raise UserError(f"{folder}: no such image folder", "data.missing-folder")
        roots = find_roots(folder, annotations)
        found = sorted((video for root in roots for video in videos_below(root)), key=lambda v: natural(v.name))
        if not found:
            raise UserError(
                f"{folder}: no videos with masks: neither {FRAMES} and {MASKS} in it, in its folders or around it, nor "
                f"a folder of masks beside it ({', '.join(MASK_FOLDERS[1:])}); name that folder as the ann_file",
                "davis.no-videos",
            )
        chosen = choose_videos([video.name for video in found], options.videos, folder)
        masks = [folder_of_both(folder, root.masks) for root in roots] if annotations is None else [annotations]
        return DavisSource(
            name=options.name,
            files=[path for root in roots for path in (root.frames, root.masks)],
            videos=[found[index] for index in chosen],
            max_objects=options.max_objects,
            categories=Categories.of(options, numbered=True),
            mask_threshold=options.mask_threshold,
            bounds=Bounds.of(options.follow_links, folder, *masks),
        )


READER = DavisReader()


def _mask_files(folder: Path) -> MaskFiles:
    """Return the mask files of a video.

    They are in its folder or, where there are none, in the folders of its objects.
    """
    files: MaskFiles = {}
    if folder.is_dir():
        folders = {"": folder} if holds_images(folder) else {child.name: child for child in subfolders(folder)}
        for key, place in folders.items():
            if holds_images(place):
                for path in frame_paths(place):
                    files.setdefault(path.stem, {})[key] = path
    return files


def _read_masks(
    files: dict[str, Path], log: IssueLog, bounds: Bounds, threshold: float | None
) -> dict[str, LabelImage]:
    """Read a frame's masks by object's folder.

    If one is damaged there are none, since the frame's objects are then unknown.
    """
    images: dict[str, LabelImage] = {}
    for key, path in files.items():
        try:
            bounds.check(path)
            images[key] = read_label_image(path, threshold)
        except UserError as error:
            log.refused(path, error)
    return images if len(images) == len(files) else {}


def _of_size(
    images: dict[str, LabelImage], files: dict[str, Path], size: tuple[int, int], log: IssueLog
) -> dict[str, LabelImage]:
    """Return a frame's masks, none if one has another size."""
    others = [key for key, image in images.items() if image.size != size]
    for key in others:
        found = f"the mask is {sides(images[key].size)} pixels, the frames are {sides(size)}"
        log.issues.append(Issue("error", str(files[key]), "", found, "save masks at the size of the frames"))
    return {} if others else images


def _tracks(masks: list[dict[str, LabelImage]]) -> tuple[dict[int | str, list[RLE | None]], dict[int, RLE]]:
    """Return the objects of a video and its void areas.

    ``masks`` are those of each frame by object's folder.
    """
    folders = sorted({folder for images in masks for folder in images}, key=natural)
    if folders == [""]:
        return label_tracks([images.get("") for images in masks])
    tracks: dict[int | str, list[RLE | None]] = {}
    for folder in folders:
        areas = [images[folder].foreground() if folder in images else None for images in masks]
        key = as_id(folder)
        tracks[folder if key is None else key] = [area if area and area.area() else None for area in areas]
    return tracks, {}
