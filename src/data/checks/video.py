"""Checks one video: parses it and decodes its frames."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...core.errors import UserError
from ..copies import digest_of
from ..decode.images import ImageFile, has_more_pages, misnamed
from ..records import (
    CategoryCounts,
    FrameSource,
    Issue,
    Source,
    VideoRecord,
    count_categories,
    object_sides,
    read_video,
    without_frames,
)


@dataclass
class CheckedVideo:
    """What was found of one video.

    ``sides`` is None where it is not usable. ``paths`` are the files looked at. ``digest`` is that of the file of its
    first frame, where that is an image.

    ``bad_frames`` are left out; ``dropped`` says that nothing usable is left without them.
    """

    index: int
    issues: list[Issue]
    paths: set[str]
    dropped: Issue | None = None
    bad_frames: list[int] = field(default_factory=list)
    frames: int = 0
    objects: int = 0
    sides: np.ndarray | None = None
    fingerprint: bytes = b""
    digest: str | None = None
    categories: CategoryCounts = field(default_factory=dict)


def check_video(source: Source, index: int, decode: bool) -> CheckedVideo:
    record, met = read_video(source, index)
    checked = CheckedVideo(index, list(met), {issue.file for issue in met})
    if record is None:
        return checked
    for number, frame in enumerate(record.frames):
        checked.paths.update(_paths_of(frame))
        if decode:
            problems = _check_frame(frame, record)
            checked.issues += problems
            if any(problem.severity == "error" for problem in problems):
                checked.bad_frames.append(number)
    usable = without_frames(record, checked.bad_frames) if checked.bad_frames else record
    if usable is None:
        if len(record) > 1:
            problem = (
                f"{len(checked.bad_frames)} of its {len(record)} frames cannot be used, and no other shows an object"
            )
            name, entry = record.frames[checked.bad_frames[0]].name, f"video {record.video_id}"
            checked.dropped = Issue("error", name, entry, problem, "the video is left out whole")
        return checked
    checked.frames, checked.objects = len(usable), len(usable.objects)
    checked.categories = count_categories(usable)
    checked.sides = object_sides(usable).astype(np.float32)
    checked.fingerprint = _fingerprint(usable, checked.sides)
    if decode and isinstance(usable.frames[0], ImageFile):
        checked.digest = digest_of(usable.frames[0].path)
    return checked


def _fingerprint(record: VideoRecord, sides: np.ndarray) -> bytes:
    """Return a hash of a video's name, its files' names and sizes, its objects' numbers and areas."""
    files = sorted({path for frame in record.frames for path in _paths_of(frame)})
    named = [(Path(path).name, os.path.getsize(path) if os.path.exists(path) else None) for path in files]
    objects = [obj.object_id for obj in record.objects]
    text = json.dumps([record.video_id, record.height, record.width, len(record), named, objects])
    return hashlib.sha256(text.encode() + sides.tobytes()).digest()


def _check_frame(frame: FrameSource, record: VideoRecord) -> list[Issue]:
    """Decode a frame: errors if it is damaged or of another size than its labels, notes if its name is wrong."""
    try:
        height, width = frame.read().shape[:2]
    except UserError as error:
        problem = str(error).removeprefix(f"{frame.name}: ")
        return [Issue("error", frame.name, "", problem, "fix or delete it")]
    if (height, width) != (record.height, record.width):
        problem = f"the frame is {width}×{height} pixels, its labels are for {record.width}×{record.height}"
        return [Issue("error", frame.name, "", problem, "fix or delete it")]
    return _notes(frame) if isinstance(frame, ImageFile) else []


def _notes(frame: ImageFile) -> list[Issue]:
    notes = []
    if misnamed(frame.path):
        notes.append(("images of another type than their name says", "read by their content"))
    if has_more_pages(frame.path):
        notes.append(("images of several pages or frames", "the first is read"))
    return [Issue("note", frame.name, "", problem, action) for problem, action in notes]


def _paths_of(frame: FrameSource) -> list[str]:
    path = getattr(frame, "path", None)
    return [] if path is None else [str(path)]
