"""The splits in a folder, summarised before there is a config.

``find_splits(folder)`` knows folders called after splits (``train``, ``valid``, ``train2017``, ``sav_val``), below the
folder itself or its folder of images. It also knows DAVIS' ``ImageSets``, and a folder that is a single data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import NamedSplit, Split
from ..core.console import progress_bar
from ..core.errors import UserError
from .decode.video import natural
from .formats.mask_folders import FRAME_FOLDERS, FRAMES, MASK_FOLDERS
from .formats.parsing import LOOKS_LIKE_VOID, TRACKED_STILLS
from .formats.reader import OpenOptions
from .formats.registry import open_with, recognise
from .loading import location_of, wanted_videos
from .records import Issue, Source, VideoRecord, object_sides, read_video

SAMPLED = 300
"""Videos or images of a split that are parsed to see what it is like, evenly spread over it."""

_NO_LIMIT = 10**9
"""Objects a video may have while it is summarised."""

_SPLIT_FOLDER = re.compile(
    r"(?:.*[_-])?(?:(?P<train>train|training)|(?P<valid>valid|val|validation|dev)|(?P<test>test|testing))(?:\d{4})?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class DatasetSummary:
    """What some of a data set's videos or images say about it.

    Attributes:
        place: where it is stored.
        kind: format name.
        listed: videos and images in it, usable or not.
        count: usable ones, estimated from those that were parsed.
        names: what ``videos`` in a config calls those that were parsed, damaged ones too.
        usable: the names among these that can be used.
        frames_N, annotated_N, objects_N: how many frames, annotated frames and objects each of these has.
        sides_M: the area's square root of their objects on their frames, as a share of the frame's.
        longest_sides_N: longer side of each one's frames, in pixels.
        errors: damage that was met.
        damaged: the names with damage, wholly or in part.
    """

    place: NamedSplit
    kind: str
    listed: int
    count: int
    names: list[str]
    usable: frozenset[str]
    frames_N: np.ndarray
    annotated_N: np.ndarray
    objects_N: np.ndarray
    sides_M: np.ndarray
    longest_sides_N: np.ndarray
    errors: list[Issue] = field(default_factory=list)
    damaged: frozenset[str] = frozenset()

    @property
    def stills(self) -> bool:
        """Whether most are single images."""
        return bool(np.median(self.frames_N) == 1)


def find_splits(folder: Path, mask_threshold: float | None = None) -> dict[Split, NamedSplit]:
    """Return where the splits in a folder are; ``train`` alone for a single data set.

    Args:
        folder: the data.
        mask_threshold: share of white from which on a pixel of a mask file is the object; None: values are labels.

    Raises:
        UserError: there is no such folder, or nothing in it is a data set.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of data", "data.missing-folder")
    for parent in (folder, *_inside(folder, FRAME_FOLDERS)):
        if found := _split_folders(parent, strict=parent != folder):
            return {split: _place_of_split(path, folder, mask_threshold) for split, path in found.items()}
    whole = _place_of_split(folder, folder, mask_threshold)
    lists = _davis_lists(folder)
    if lists and recognise(location_of(whole))[0].name == "davis":
        return {split: whole.model_copy(update={"videos": str(path)}) for split, path in lists.items()}
    return {"train": whole}


def summarize(place: NamedSplit, sampled: int | None = SAMPLED) -> DatasetSummary:
    """Parse some videos or images of a data set, evenly spread, or with None all of them; decodes no pixels.

    Raises:
        UserError: it cannot be read, or nothing in what was parsed is usable.
    """
    reader, location = recognise(location_of(place), place.format)
    options = OpenOptions(
        name=place.name,
        max_objects=_NO_LIMIT,
        videos=wanted_videos(place.videos),
        follow_links=True,
        categories=place.categories,
        ignore_categories=place.ignore_categories,
        mask_threshold=place.mask_threshold,
    )
    source = open_with(reader, location, options)
    parsed = len(source) if sampled is None else min(len(source), sampled)
    met = list(source.issues)
    records: dict[int, VideoRecord] = {}
    damaged: list[int] = []
    chosen = [i * len(source) // parsed for i in range(parsed)]
    for index in progress_bar(chosen, desc=f"summarising {place.img_folder}", leave=False):
        record, issues = read_video(source, index)
        met += issues
        if any(issue.severity == "error" for issue in issues):
            damaged.append(index)
        if record is not None:
            records[index] = record
    if not records:
        first = next((issue for issue in met if issue.severity == "error"), met[0] if met else None)
        why = first or "it lists no images or videos"
        raise UserError(
            f"{source.files[0] if source.files else place.img_folder}: nothing in it is usable: {why}",
            "data.nothing-usable",
        )
    return DatasetSummary(
        place=place,
        kind=reader.name,
        listed=len(source),
        count=round(len(source) * len(records) / parsed),
        names=list(dict.fromkeys(source.name_of(index) for index in chosen)),
        usable=frozenset(source.name_of(index) for index in records),
        frames_N=np.array([len(record) for record in records.values()]),
        annotated_N=np.array([len(r) if r.annotated is None else len(r.annotated) for r in records.values()]),
        objects_N=np.array([len(record.objects) for record in records.values()]),
        sides_M=np.concatenate([object_sides(record) for record in records.values()]),
        longest_sides_N=np.array([max(record.height, record.width) for record in records.values()]),
        errors=[issue for issue in met if issue.severity == "error"],
        damaged=frozenset(source.name_of(index) for index in damaged),
    )


def void_categories(place: NamedSplit) -> list[str]:
    """Return the categories of a data set that look like void, by their names.

    Raises:
        UserError: it cannot be read.
    """
    return [issue.entry for issue in _index(place).issues if issue.problem == LOOKS_LIKE_VOID]


def object_categories(place: NamedSplit) -> set[str]:
    """Return the names of the classes of a data set's objects, by some of its videos or images.

    Raises:
        UserError: it cannot be read.
    """
    source, names = _index(place), set[str]()
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), SAMPLED)).round().astype(int)).tolist():
        record, _ = read_video(source, index)
        if record is not None:
            names |= {str(each.category) for each in record.objects if each.category is not None}
    return names


def has_tracks(place: NamedSplit) -> bool:
    """Return whether a data set is read as stills, though its objects have ids from picture to picture.

    Raises:
        UserError: it cannot be read.
    """
    return any(issue.problem == TRACKED_STILLS for issue in _index(place).issues)


def entry_names(place: NamedSplit) -> list[str]:
    """Return the names of a data set's videos and images, damaged ones too.

    Raises:
        UserError: it cannot be read.
    """
    source = _index(place)
    return [source.name_of(index) for index in range(len(source))]


def _index(place: NamedSplit) -> Source:
    reader, location = recognise(location_of(place), place.format)
    return open_with(reader, location, OpenOptions(place.name, videos=wanted_videos(place.videos)))


def _split_folders(parent: Path, strict: bool) -> dict[Split, Path]:
    """Return the subfolders that are called after splits.

    With ``strict``, none if there are others too, such as videos.
    """
    found: dict[Split, Path] = {}
    folders = sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    matches = {path: _SPLIT_FOLDER.fullmatch(path.name) for path in folders}
    if strict and not all(matches.values()):
        return {}
    for path, match in matches.items():
        if match is not None:
            split: Split = "train" if match["train"] else "valid" if match["valid"] else "test"
            found.setdefault(split, path)
    return found


def _place_of_split(folder: Path, root: Path, mask_threshold: float | None) -> NamedSplit:
    """Return the first usual place of a split's annotations whose images are there.

    Raises:
        UserError: of the first place, where none will do.
    """
    refusal: UserError | None = None
    for candidate in _candidates(folder, root):
        place = candidate.model_copy(update={"mask_threshold": mask_threshold})
        try:
            _, location = recognise(location_of(place))
            file = location.annotations
            if file is not None and file.is_file():
                place = place.model_copy(update={"ann_file": str(file)})
            _check_usable(place)
        except UserError as error:
            refusal = refusal or error
        else:
            return place
    assert refusal is not None
    raise refusal


def _check_usable(place: NamedSplit) -> None:
    """Raise UserError if nothing in a place can be used: three entries show it, and if all are damaged, more."""
    try:
        summarize(place, sampled=3)
    except UserError:
        summarize(place)


def _candidates(folder: Path, root: Path) -> Iterator[NamedSplit]:
    """Yield possible places of a split's images and annotations, the likeliest first."""
    images = [folder, *_inside(folder, FRAME_FOLDERS)]
    files = [path for place in (folder, root, root / "annotations") for path in sorted(place.glob("*.json"))]
    anywhere = [path for path in files if path.parent == folder or folder.name.lower() in path.stem.lower()]
    masks = [path for name in MASK_FOLDERS if (path := root / name / folder.name).is_dir()]
    for file in (None, *masks, *dict.fromkeys(anywhere)):
        for place in images:
            yield NamedSplit(name="data", img_folder=str(place), ann_file=None if file is None else str(file))


def _inside(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_dir()]


def _davis_lists(folder: Path) -> dict[Split, Path]:
    """Return DAVIS' lists of videos, of the latest year."""
    root = folder.parent if folder.name.startswith(FRAMES) else folder
    for year in sorted(
        filter(Path.is_dir, root.glob("ImageSets/*")), key=lambda path: natural(path.name), reverse=True
    ):
        names: dict[Split, str] = {"train": "train.txt", "valid": "val.txt"}
        found = {split: year / name for split, name in names.items() if (year / name).is_file()}
        if "train" in found:
            return found
    return {}
