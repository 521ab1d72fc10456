"""Copies of one picture, and frames of one video, which must not be on both sides of a split."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{8,}(\.\w+)?")

_FRAME = re.compile(
    r"(?P<video>.*(?:frame|_(?:avi|m4v|mkv|mov|mp4|webm)))[\W_]*(?P<number>\d{1,9})(?:_(?:bmp|jpe?g|png))?(?:\.\w+)?",
    re.IGNORECASE,
)

_NUMBERED = re.compile(r"(?P<video>.*?)(?P<number>\d{1,9})(?:\.\w+)?")

_HASHED = 16 * 2**20
"""Bytes of a file that its digest covers, beside its size."""


@dataclass(frozen=True)
class Origins:
    """What the stills of a data set are of, by their names and bytes.

    Attributes:
        pictures: those that files are copies of, by Roboflow's names.
        frames: video → number → name of each of its frames that is a still here.
        files: digest of a file → its name.
    """

    pictures: frozenset[str] = frozenset()
    frames: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def origins(names: Iterable[str], files: Mapping[str, str] | None = None, tracked: bool = False) -> Origins:
    """Return what the stills of a data set are of.

    Args:
        names: of the stills; frames of a video are known by ``frame_12``, and Roboflow's ``NAME_mp4-12``.
        files: digest of a file → its name; None: not known.
        tracked: objects have ids from picture to picture, so that any numbered names are frames.
    """
    names, frames = list(names), dict[str, dict[int, str]]()
    for name in names:
        if (frame := frame_of(name, tracked)) is not None:
            frames.setdefault(frame[0], {})[frame[1]] = name
    return Origins(pictures_of(names), frames, files or {})


def picture_of(name: str) -> str | None:
    """Return the picture that a file is a copy of, by Roboflow's ``NAME.rf.HASH``; None for another name."""
    match = _ROBOFLOW.fullmatch(PurePosixPath(name).name)
    return None if match is None else match[1]


def frame_of(name: str, tracked: bool = False) -> tuple[str, int] | None:
    """Return the video that a still is a frame of and its number, by its name; None for another name.

    ``tracked`` as in :func:`origins`.
    """
    path = PurePosixPath(name)
    called = str(path.with_name(picture_of(name) or path.name)) if path.name else name
    match = (_NUMBERED if tracked else _FRAME).fullmatch(called)
    return None if match is None else (match["video"], int(match["number"]))


def pictures_of(names: Iterable[str]) -> frozenset[str]:
    """Return the pictures that some files are copies of."""
    return frozenset(picture for name in names if (picture := picture_of(name)) is not None)


def digest_of(path: str | Path) -> str | None:
    """Return a hash of a file's size and its first 16 MiB; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(_HASHED)
            size = file.seek(0, 2)
    except OSError:
        return None
    return hashlib.blake2b(content, digest_size=12, key=str(size).encode()).hexdigest()


def leaks(one: Origins, other: Origins, names: tuple[str, str]) -> list[str]:
    """Return warnings of pictures that two splits share, by the splits' names.

    Numbers of frames that are in both splits say that they are of two videos, each counted from its own beginning.
    """
    warnings = []
    if shared := sorted(one.pictures & other.pictures):
        warnings.append(
            f"{len(shared)} pictures have copies both in {names[0]} and in {names[1]}, such as {shared[0]}: scores are "
            "of pictures that were learned; split them by picture"
        )
    if same := sorted(one.files.keys() & other.files.keys(), key=lambda digest: one.files[digest]):
        first = same[0]
        warnings.append(
            f"{len(same)} files are the same byte for byte in {names[0]} and in {names[1]}, such as "
            f"{one.files[first]} and {other.files[first]}: scores are of pictures that were learned; delete them on "
            "one side"
        )
    videos = sorted(video for video in one.frames.keys() & other.frames.keys())
    if divided := [video for video in videos if one.frames[video].keys().isdisjoint(other.frames[video])]:
        video = divided[0]
        warnings.append(
            f"frames of {len(divided)} video{'s' if len(divided) != 1 else ''} are both in {names[0]} and in "
            f"{names[1]}, such as {_near(one, other, video)} and {_near(other, one, video)}: scores are "
            "of scenes that were learned; split by video"
        )
    return warnings


def _near(one: Origins, other: Origins, video: str) -> str:
    """Return the first frame of one split that is nearest to those of the other, by its name."""
    numbers = sorted(other.frames[video])

    def distance(number: int) -> tuple[int, int]:
        place = bisect(numbers, number)
        return min(abs(number - near) for near in numbers[max(place - 1, 0) : place + 1]), number

    return one.frames[video][min(one.frames[video], key=distance)]
