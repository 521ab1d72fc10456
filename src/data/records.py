"""The plain records that every reader makes of its files.

A video has frame sources, and objects with a segmentation per frame.

A still image is a video of one frame. Nothing outside ``formats`` knows a file format.
"""

from __future__ import annotations

import traceback
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, overload

import numpy as np

from ..core.errors import UserError

_SAMPLED_VIDEOS = 500
"""Videos that :meth:`DataSet.median_object_side` parses at most."""


class FrameSource(Protocol):
    """Where one frame's pixels come from."""

    @property
    def name(self) -> str:
        """A name for messages: a path, or a path with frame number."""

    @property
    def stem(self) -> str:
        """The name, without extension, of files made for this frame.

        It is the frame's own file stem, or its number.
        """

    def read(self) -> np.ndarray:
        """Return the frame as RGB, uint8, (H, W, 3).

        Raises UserError naming the file if it cannot be read.
        """


@dataclass(frozen=True)
class ArrayFrame:
    """A frame that is already in memory: RGB, uint8, (H, W, 3)."""

    array: np.ndarray
    name: str = "array"
    stem: str = "00000"

    def read(self) -> np.ndarray:
        return self.array


class Segmentation(Protocol):
    """One object's area on one frame."""

    def decode(self) -> np.ndarray:
        """The mask, bool, (H, W) of the frame."""

    def area(self) -> int:
        """The mask's area in pixels."""


@dataclass(frozen=True)
class RLE:
    """A mask as pycocotools' compressed run-length encoding: ``{"size": [H, W], "counts": bytes}``."""

    rle: dict[str, Any]

    @classmethod
    def encode(cls, mask_HW: np.ndarray) -> RLE:
        from pycocotools import mask as coco_mask

        return cls(coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)))

    def decode(self) -> np.ndarray:
        from pycocotools import mask as coco_mask

        mask_HW: np.ndarray = coco_mask.decode(self.rle).astype(bool)
        return mask_HW

    def area(self) -> int:
        from pycocotools import mask as coco_mask

        return int(coco_mask.area(self.rle))


@dataclass(frozen=True)
class ObjectTrack:
    """One object of a video.

    ``object_id`` is positive and unique in its video: the file's own number where that is a positive integer, else its
    place counted from 1, with ``original_id`` as the file has it. ``segmentations[t]`` is its area on frame t, None
    where it is absent, or where nothing is known of the frame (see ``VideoRecord.annotated``).
    """

    object_id: int
    segmentations: Sequence[Segmentation | None]
    category: str | None = None
    original_id: int | str | None = None


@dataclass(frozen=True)
class VideoRecord:
    """One video (or still image) with its objects.

    An object without a segmentation is absent from an annotated frame. Nothing is known about the other frames, so they
    are tracked through, but neither trained on nor scored.

    Attributes:
        video_id: name, unique in its data set.
        height, width: size of the frames that ``FrameSource.read`` returns, in pixels.
        frames: sources of the frames.
        objects: objects of the video.
        annotated: numbers of the frames that somebody labelled; None: all of them.
        void: frame → area that is neither an object nor background (DAVIS' 255), which scores leave out.
        crowds: areas of several objects of a category that are not separated (COCO crowds), which are no objects.
        unsure: categories of which not all objects are labelled.
        absent: categories that are known not to be there; None: all without an object.
    """

    video_id: str
    height: int
    width: int
    frames: Sequence[FrameSource]
    objects: list[ObjectTrack]
    annotated: frozenset[int] | None = None
    void: dict[int, Segmentation] = field(default_factory=dict)
    crowds: Sequence[ObjectTrack] = ()
    unsure: frozenset[str] = frozenset()
    absent: frozenset[str] | None = None

    def is_annotated(self, frame: int) -> bool:
        """Return whether it is known which objects are on a frame."""
        return self.annotated is None or frame in self.annotated

    def __len__(self) -> int:
        return len(self.frames)

    def masks(self, frame: int) -> dict[int, np.ndarray]:
        """Return masks of the objects seen on a frame: object id → bool (H, W)."""
        found = ((o.object_id, o.segmentations[frame]) for o in self.objects)
        return {object_id: s.decode() for object_id, s in found if s is not None}


def without_frames(video: VideoRecord, frames: Collection[int]) -> VideoRecord | None:
    """Return a video without some of its frames; None if no object is seen on the others."""
    kept = [t for t in range(len(video)) if t not in frames]
    place = {t: i for i, t in enumerate(kept)}

    def cut(tracks: Sequence[ObjectTrack]) -> list[ObjectTrack]:
        cut_tracks = [replace(track, segmentations=[track.segmentations[t] for t in kept]) for track in tracks]
        return [track for track in cut_tracks if any(s is not None for s in track.segmentations)]

    objects = cut(video.objects)
    if not objects:
        return None
    return replace(
        video,
        frames=[video.frames[t] for t in kept],
        objects=objects,
        annotated=None if video.annotated is None else frozenset(place[t] for t in video.annotated if t in place),
        void={place[t]: area for t, area in video.void.items() if t in place},
        crowds=cut(video.crowds),
    )


CategoryCounts: TypeAlias = dict[str, dict[int, int]]
"""Category → number of its objects on a frame → number of frames that show so many; "" is no category."""


def count_categories(video: VideoRecord) -> CategoryCounts:
    """Return how many objects of each category the frames of a video show."""
    counts: CategoryCounts = {}
    for t in range(len(video)):
        shown = Counter(o.category or "" for o in video.objects if o.segmentations[t] is not None)
        for category, count in shown.items():
            frames = counts.setdefault(category, {})
            frames[count] = frames.get(count, 0) + 1
    return counts


def add_categories(total: CategoryCounts, counts: CategoryCounts) -> None:
    """Add the counts of some frames to those of others."""
    for category, frames in counts.items():
        known = total.setdefault(category, {})
        for count, number in frames.items():
            known[count] = known.get(count, 0) + number


Severity = Literal["error", "repaired", "note"]


@dataclass(frozen=True)
class Issue:
    """Something worth telling about a data set. As text, one line.

    Attributes:
        severity: ``error``: damaged, the run stops unless it may be left out; ``repaired``: repaired, or left out as
            harmless, the same way every time; ``note``: nothing was changed.
        file: the file it is in.
        entry: which entry of it (``annotation 17``, ``frame 12``), empty where it is the file as a whole.
        problem: what is wrong; of one kind of repair or note always the same words, by which they are counted.
        action: what is done about it, or what the user can do.
    """

    severity: Severity
    file: str
    entry: str
    problem: str
    action: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.entry}" if self.entry else self.file
        text = f"{place}: {self.problem}; {self.action}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Source(Protocol):
    """A data set, indexed by its reader, parsed video by video.

    It is cheap to hold and to hand to other processes.
    """

    @property
    def name(self) -> str:
        """The name of the data set."""

    @property
    def files(self) -> list[Path]:
        """The annotation files and folders that decide what ``read`` returns."""

    @property
    def issues(self) -> list[Issue]:
        """Issues of whole files, and of entries without a video."""

    def __len__(self) -> int:
        """The number of videos or images listed, with or without usable objects."""

    def name_of(self, index: int) -> str:
        """Return what ``videos`` in a config calls an entry, also a damaged one. Parses nothing."""

    def read(self, index: int) -> tuple[VideoRecord | None, list[Issue]]:
        """Parse one video's annotations and the headers of its frames; decodes no pixels.

        Always the same for the same files. Never raises for damaged input.

        Returns:
            The record without what is damaged; None where nothing usable is left, so also without an object that is
            seen. And everything met on the way.
        """


def read_video(source: Source, index: int) -> tuple[VideoRecord | None, list[Issue]]:
    """Return what ``source.read`` does, and None for a record without an object that is seen.

    Raises:
        UserError: the reader failed, which is its fault and not the data's.
    """
    try:
        record, issues = source.read(index)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        entry = f"entry {index} (counted from 0) of {_file_of(source)}"
        raise reader_failed(source.name, format_of(source), entry, error) from error
    if record is None or any(s is not None for obj in record.objects for s in obj.segmentations):
        return record, issues
    problem = "images and videos without objects"
    return None, [*issues, Issue("repaired", _file_of(source), record.video_id, problem, "left out")]


def format_of(source: Source) -> str:
    """Return the name of the format that a data set was read as."""
    return type(source).__module__.rpartition(".")[2]


def reader_failed(name: str, kind: str, entry: str, error: Exception) -> UserError:
    """Return the error that names a reader's line, the innermost of its own file, if that is known.

    Args:
        name: data set name.
        kind: name of the format, and of the reader's module.
        entry: what was being read.
        error: what the reader raised.
    """
    lines = traceback.extract_tb(error.__traceback__)
    line = [line for line in lines if Path(line.filename).stem == kind] or lines
    return UserError(
        f"{name}: the reader of format {kind} failed on {entry}: {type(error).__name__}: {error} "
        f"({line[-1].filename}, line {line[-1].lineno})",
        "data.reader-failed",
    )


def _file_of(source: Source) -> str:
    return str(source.files[0]) if source.files else source.name


LRU_MAX_BYTES = 256 * 2**20
"""What the parsed videos that a process keeps of a data set may take: parsing one may mean reading all of its masks."""

LRU_MIN_ITEMS = 32
"""Parsed videos that are kept whatever they take."""

_BYTES_PER_ITEM = 512
"""About what Python takes for a frame source, or a segmentation without its runs."""


class LRUCache:
    """The videos used last, up to the above limits.

    Pickling empties it: each process has its own.
    """

    def __init__(self) -> None:
        self._videos: OrderedDict[int, tuple[VideoRecord, int]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type[LRUCache], tuple[()]]:
        return LRUCache, ()

    def get(self, number: int) -> VideoRecord | None:
        if number not in self._videos:
            return None
        self._videos.move_to_end(number)
        return self._videos[number][0]

    def put(self, number: int, video: VideoRecord) -> None:
        size = _parsed_bytes(video)
        self._videos[number] = video, size
        self._bytes += size
        while self._bytes > LRU_MAX_BYTES and len(self._videos) > LRU_MIN_ITEMS:
            self._bytes -= self._videos.popitem(last=False)[1][1]


def _parsed_bytes(video: VideoRecord) -> int:
    """About the memory that a parsed video takes."""
    known = [s for o in video.objects for s in o.segmentations if s is not None] + list(video.void.values())
    runs = sum(len(s.rle["counts"]) for s in known if isinstance(s, RLE))
    return runs + _BYTES_PER_ITEM * (len(known) + len(video.frames))


@dataclass(frozen=True, eq=False)
class SourceVideos(Sequence[VideoRecord]):
    """Some videos of a source, each parsed when it is asked for.

    Every process, also a loader process, caches those it used last: at least ``LRU_MIN_ITEMS``, and more as long as
    they take no more than ``LRU_MAX_BYTES`` (256 MB) together.

    Attributes:
        source: the data set.
        kept: indices of the videos in it, int64.
        bad_frames: index of a video → numbers of its frames that are left out.
    """

    source: Source
    kept: np.ndarray
    bad_frames: Mapping[int, Collection[int]] = field(default_factory=dict)
    _recent: LRUCache = field(default_factory=LRUCache, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> SourceVideos: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | SourceVideos:
        """Return a video, or a part of the list, unparsed.

        Raises UserError where files changed since they were checked.
        """
        if isinstance(index, slice):
            return SourceVideos(self.source, self.kept[index], self.bad_frames)
        number = int(self.kept[index])
        known = self._recent.get(number)
        if known is not None:
            return known
        record, issues = read_video(self.source, number)
        if record is not None and number in self.bad_frames:
            record = without_frames(record, self.bad_frames[number])
        if record is None:
            raise UserError(
                f"{self.source.name}: changed since it was checked: {'; '.join(map(str, issues[:1]))}", "data.changed"
            )
        self._recent.put(number, record)
        return record


@dataclass(frozen=True)
class DatasetFingerprint:
    """What is in a data set, to compare it with another one.

    ``fingerprint`` is a hash of the names and sizes of videos and files and of every object's number and area. It does
    not depend on the folder, and shows more differences than the numbers do.
    """

    videos: int
    frames: int
    objects: int
    fingerprint: str


@dataclass
class DataSet:
    """The videos of one split, with what was left out or repaired.

    ``videos`` may be made when they are asked for. ``notes`` maps a kind of repair or omission ("crowd annotations,
    left out") to how often it happened. ``median_side``, where a check has found it out: the median over objects and
    frames of the area's square root, as a share of the frame's. ``contents``: what is in it, of a data set read from
    files. ``categories``, where a check has counted them: how many objects of each are on how many frames.
    """

    name: str
    videos: Sequence[VideoRecord]
    notes: dict[str, int] = field(default_factory=dict)
    median_side: float | None = None
    contents: DatasetFingerprint | None = None
    categories: CategoryCounts | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def category_counts(self) -> CategoryCounts:
        """Return how many objects of each category frames show; where no check has counted, all videos are parsed."""
        if self.categories is not None:
            return self.categories
        counts: CategoryCounts = {}
        for video in self.videos:
            add_categories(counts, count_categories(video))
        return counts

    def median_object_side(self, size: int) -> float:
        """Return the median over objects and frames of the area's square root.

        It is in pixels on frames of ``size`` × ``size``.

        Where no check has found it out, videos are parsed for it: of more than 500, 500 evenly spread over the list.
        """
        if self.median_side is not None:
            return self.median_side * size
        count = min(len(self.videos), _SAMPLED_VIDEOS)
        sampled = (self.videos[i * len(self.videos) // count] for i in range(count))
        return float(np.median(np.concatenate([object_sides(video) for video in sampled]))) * size


def object_sides(video: VideoRecord) -> np.ndarray:
    """Return the square root of each object's area on each frame that shows it.

    It is a share of the frame's: float64, (N,).
    """
    areas = [s.area() for obj in video.objects for s in obj.segmentations if s is not None]
    return np.sqrt(np.array(areas, dtype=np.float64) / (video.height * video.width))
