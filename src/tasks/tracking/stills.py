"""Segment unrelated pictures, each by itself, and write the results beside each other."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from ...core.console import progress_bar
from ...core.errors import UserError
from ...data.decode.images import read_image
from ...data.decode.video import DEFAULT_RATE, frame_paths, is_image
from ...data.prompts import Prompt, PromptsByImage, check_prompts
from ...models.protocols import Tracker
from .track_video import Overlay, PredictionWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stills:
    """Pictures of any sizes; see :class:`~src.data.decode.video.FrameStream`."""

    folder: Path
    paths: list[Path]
    rate: Fraction = DEFAULT_RATE

    @property
    def name(self) -> str:
        """The folder's name, or the single picture's."""
        return self.folder.resolve().name if self.folder.is_dir() else self.folder.stem

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.paths)

    def frame_file(self, index: int) -> str:
        """Return a picture's file name."""
        return self.paths[index].name

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(read_image, self.paths)


def pictures_of(path: Path) -> list[Path]:
    """Return a picture, or those of a folder. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder", "file.missing")
    if path.is_dir():
        return frame_paths(path)
    if not is_image(path):
        raise UserError(f"{path}: neither a picture nor a folder of pictures", "stills.not-pictures")
    return [path]


def open_stills(path: Path, prompts: PromptsByImage) -> tuple[Stills, list[list[Prompt]]]:
    """Return the pictures of a folder that are prompted, and the prompts of each.

    Raises:
        UserError: there is no picture, or a prompt names one that is not there.
    """
    paths = pictures_of(path)
    names = {file.name for file in paths}
    for name in prompts.keys() - names:
        if name is not None:
            near = difflib.get_close_matches(name, names, n=3) or sorted(names)[:3]
            raise UserError(f"{path}: there is no picture {name!r}, such as {', '.join(near)}", "prompt.no-such-image")
    chosen = [(file, prompts.get(file.name) or prompts.get(None, [])) for file in paths]
    prompted = [(file, own) for file, own in chosen if own]
    if len(prompted) < len(chosen):
        logger.info(f"{len(chosen) - len(prompted)} of {len(chosen)} pictures have no prompt and are left out")
    return Stills(path, [file for file, _ in prompted]), [own for _, own in prompted]


def write_stills(
    tracker: Tracker, stills: Stills, prompts: list[list[Prompt]], output: Path, overlay: Overlay
) -> dict[int, int]:
    """Segment the prompted objects of every picture, and write everything as it comes.

    Returns:
        Object id → the number of pictures it was found on.

    Raises:
        UserError: a picture cannot be read, or a prompt is outside it.
    """
    with PredictionWriter(output, stills, overlay) as writer:
        pictures = zip(stills, prompts, strict=True)
        for index, (picture, own) in enumerate(progress_bar(pictures, total=stills.count, unit="picture")):
            try:
                check_prompts({0: own}, *picture.shape[:2])
            except UserError as error:
                raise UserError(f"{stills.paths[index]}: {error}", error.code) from None
            prediction, _ = tracker.step(picture, tracker.start(1), own)
            categories = {prompt.object_id: prompt.category for prompt in own if prompt.category is not None}
            writer.add(picture, replace(prediction, frame=index), categories)
    return writer.found
