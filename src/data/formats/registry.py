"""Every format to the same records: recognises what a data set is, and opens it.

With ``format: auto`` the annotations decide. A JSON file is YouTube-VIS if it has ``file_names``, or ``video_id``
together with ``track_id`` or ``instance_id``; SA-V if it has ``masklet``; else COCO. A folder is SA-V if files in it
end in ``_manual.json`` or ``_auto.json``; what its only JSON file is, if it has one; a folder of stills if it and the
image folder both hold their images directly, and it is not called Annotations; else DAVIS. Where no annotations are
named, they are looked for in this order: SA-V's files; ``_annotations.coco.json``, ``instances_`` and the image
folder's name, or the only JSON file, among the images or in a folder ``annotations`` in it or up to two above it; in
the folder above it ``instances_`` and its name only; folders of masks; masks among the images.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

from ...config import Config, DomainConfig, Format, SetConfig, Split
from ...core.errors import UserError
from ...core.shipped import find_file
from ..checks.validate import load_checked
from ..records import DataSet, Source
from .coco import open_coco
from .davis import FRAMES, LEVELS, MASKS, find_roots, folders_of_images, holds_images, open_davis
from .folder import has_masks_beside, open_folder
from .sav import KINDS as SAV_KINDS
from .sav import open_sav
from .ytvis import TRACK_KEYS, open_ytvis

ROBOFLOW = "_annotations.coco.json"


def place_of(data: SetConfig, split: Split) -> DomainConfig | None:
    """Where a split of a domain to learn lies; None if the config does not say."""
    folder, annotations, videos = {
        "train": (data.train_img_folder, data.train_ann_file, data.train_videos),
        "valid": (data.val_img_folder, data.val_ann_file, data.val_videos),
        "test": (data.test_img_folder, data.test_ann_file, data.test_videos),
    }[split]
    if folder is None:
        return None
    folder, annotations = str(find_file(folder)), None if annotations is None else str(find_file(annotations))
    return DomainConfig(name=data.name, img_folder=folder, ann_file=annotations, format=data.format, videos=videos)


def load_split(data: SetConfig, split: Split, config: Config) -> DataSet:
    """A split of a domain to learn, checked.

    Raises:
        UserError: as :func:`load_data`, or the config has no such split.
    """
    place = place_of(data, split)
    if place is None:
        prefix = {"train": "train", "valid": "val", "test": "test"}[split]
        raise UserError(f"domain '{data.name}' has no {split} split: set its {prefix}_img_folder under dataset")
    return load_data(place, config)


def load_data(place: DomainConfig, config: Config) -> DataSet:
    """The videos and images of a data set of a run, once all of it has been checked.

    Raises:
        UserError: it cannot be read, holds nothing usable, or is damaged (unless ``dataset.skip_bad``).
    """
    source = open_source(place, config.dataset.max_ann_per_img, config.dataset.follow_links)
    return load_checked(source, place, config)


def open_source(place: DomainConfig, max_ann_per_img: int, follow_links: bool = False) -> Source:
    """A data set as its format's parser has indexed it.

    Args:
        place: where it lies, of which format it is, and which of its videos are wanted.
        max_ann_per_img: objects kept per image or video, the largest by mask area.
        follow_links: whether links may lead out of its folders.

    Raises:
        UserError: it cannot be read, its format is not clear, or there is no video of a wanted name.
    """
    kind, annotations = recognise(place)
    openers: dict[str, Callable[..., Source]] = {
        "coco": open_coco, "ytvis": open_ytvis, "davis": open_davis, "sav": open_sav, "folder": open_folder,
    }  # fmt: skip
    wanted = wanted_videos(place.videos)
    return openers[kind](place.img_folder, annotations, place.name, max_ann_per_img, wanted, follow_links)


def wanted_videos(videos: str | list[str] | None) -> list[str] | None:
    """The names of videos that a config gives: a list, or a text file with one a line (blank lines aside); None: all.

    In DAVIS-2016's lists a line is a frame and its mask, ``/JPEGImages/480p/bear/00000.jpg /Annotations/…``: they name
    the videos that have such frames, each once.

    Raises:
        UserError: the file is missing, no text, or empty.
    """
    if not isinstance(videos, str):
        return videos
    try:
        names = [line.strip() for line in Path(videos).read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"{videos}: the list of videos cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{videos}: the list of videos is not a text file") from None
    if not any(names):
        raise UserError(f"{videos}: the list of videos is empty")
    return list(dict.fromkeys(_video_of_frame(name) for name in names if name))


def _video_of_frame(line: str) -> str:
    """The video of a line of DAVIS-2016's lists; another line as it is."""
    frame = re.fullmatch(rf"/{FRAMES}/(?:(?:{'|'.join(LEVELS)})/)?(\S+)/[^/\s]+\.\w+(?:\s+/{MASKS}/\S+)?", line)
    return line if frame is None else frame[1]


def recognise(place: DomainConfig) -> tuple[Format, Path | None]:
    """What a data set is, and where its annotations are (None: its parser knows).

    Raises:
        UserError: a file or folder is missing, or nothing fits: what was looked for is told.
    """
    folder = Path(place.img_folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder")
    annotations = None if place.ann_file is None else Path(place.ann_file)
    if annotations is not None and not annotations.exists():
        raise UserError(f"{annotations}: no such annotation file")
    if place.format != "auto":
        if annotations is None and place.format in ("coco", "ytvis"):
            annotations, several = _find_json(folder)
            if annotations is None:
                raise UserError(f"{folder}: no annotation file in it or beside it{several}; name it as the ann_file")
        return place.format, annotations
    if annotations is None:
        return _recognise_around(folder)
    if annotations.is_file():
        return _format_of_json(annotations), annotations
    return _recognise_folder(folder, annotations)


def _recognise_folder(folder: Path, annotations: Path) -> tuple[Format, Path]:
    """What images are whose annotations lie in this folder."""
    if _holds_masklets(annotations):
        return "sav", annotations
    file, several = _only_json(annotations, folder)
    if file is not None:
        return _format_of_json(file), file
    if next(folders_of_images(annotations), None) is None:
        raise UserError(
            f"{annotations}: no annotations in this folder: looked for one .json, {' and '.join(SAV_KINDS)}, and "
            f"images of masks{several}"
        )
    stills = holds_images(folder) and holds_images(annotations) and not annotations.name.startswith(MASKS)
    return ("folder" if stills else "davis"), annotations


def _recognise_around(folder: Path) -> tuple[Format, Path | None]:
    """What images are whose annotations are not named."""
    if _holds_masklets(folder):
        return "sav", None
    file, several = _find_json(folder)
    if file is not None:
        return _format_of_json(file), file
    roots = [root for root in find_roots(folder, None) if next(folders_of_images(root.masks), None) is not None]
    if roots:
        root = roots[0]
        stills = holds_images(root.frames) and holds_images(root.masks) and not root.masks.name.startswith(MASKS)
        return ("folder" if stills else "davis"), None
    if holds_images(folder) and has_masks_beside(folder):
        return "folder", None
    raise UserError(
        f"{folder}: no annotations found: looked for {' and '.join(SAV_KINDS)}, for {ROBOFLOW} or one other .json here "
        f"and in folders 'annotations' in it and above it, for {_made_for(folder)} above it, "
        f"for folders of masks in it and beside it ({MASKS}, masks, …), and for masks among the images "
        f"(NAME_mask.png){several}; name them as the ann_file"
    )


def _holds_masklets(folder: Path) -> bool:
    """Whether SA-V's files lie in a folder, or in those in it."""
    return any(next(folder.glob(f"{depth}*{kind}"), None) for kind in SAV_KINDS for depth in ("", "*/"))


def _find_json(folder: Path) -> tuple[Path | None, str]:
    """The annotation file of a folder of images; what to add to a message where there is none."""
    told = ""
    parents = _two_above(folder)
    for place in (folder, *(above / "annotations" for above in (folder, *parents))):
        if place.is_dir():
            file, several = _only_json(place, folder)
            if file is not None:
                return file, ""
            told += several
    beside = parents[0] / _made_for(folder)
    return (beside, "") if beside.is_file() else (None, told)


def _two_above(folder: Path) -> list[Path]:
    """The two folders above one, written as it is: relative or absolute."""
    above = list(folder.absolute().parents[:2])
    return above if folder.is_absolute() else [Path(os.path.relpath(path)) for path in above]


def _made_for(images: Path) -> str:
    """What COCO calls the annotations of a folder of images."""
    return f"instances_{images.absolute().name}.json"


def _only_json(folder: Path, images: Path) -> tuple[Path | None, str]:
    """Roboflow's file, the one made for a folder of images, or the only one there is."""
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    for name in (ROBOFLOW, _made_for(images)):
        if folder / name in files:
            return folder / name, ""
    if len(files) > 1:
        return None, f"; in {folder} there are {len(files)}: {', '.join(path.name for path in files[:4])}"
    return (files[0] if files else None), ""


def _format_of_json(path: Path) -> Format:
    """Which of the formats a JSON file is, by the keys that are in it, without parsing it."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return "coco"  # whose parser says that it is empty
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:

            def has(key: str) -> bool:
                return content.find(f'"{key}"'.encode()) >= 0

            if has("masklet"):
                return "sav"
            if has("file_names") or (has("video_id") and any(map(has, TRACK_KEYS))):
                return "ytvis"
    return "coco"
