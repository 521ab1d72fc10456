"""Copies of one picture under several names, which must not be on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{8,}(\.\w+)?")


def picture_of(name: str) -> str | None:
    """Return the picture that a file is a copy of, by Roboflow's ``NAME.rf.HASH``; None for another name."""
    match = _ROBOFLOW.fullmatch(PurePosixPath(name).name)
    return None if match is None else match[1]


def pictures_of(names: Iterable[str]) -> frozenset[str]:
    """Return the pictures that some files are copies of."""
    return frozenset(picture for name in names if (picture := picture_of(name)) is not None)


def leak(one: frozenset[str], other: frozenset[str], names: tuple[str, str]) -> str | None:
    """Return a warning of pictures with copies in two splits, by their names; None without any."""
    shared = sorted(one & other)
    if not shared:
        return None
    return (
        f"{len(shared)} pictures have copies both in {names[0]} and in {names[1]}, such as {shared[0]}: scores are of "
        "pictures that were learned; split them by picture"
    )
