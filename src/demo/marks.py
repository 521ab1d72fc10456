"""Clicks on frames, and the prompts that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.errors import UserError
from ..data.prompts import MAX_OBJECT_ID, Prompt, PromptsByFrame

Kind = Literal["on it", "beside it", "corner of a box"]


@dataclass(frozen=True)
class Mark:
    """A click: on an object, beside it, or one of the two corners of its box; (x, y) in pixels of the frame."""

    kind: Kind
    frame: int
    object_id: int
    x: float
    y: float


class Marks:
    """The clicks of a session, in the order in which they were made."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []

    def add(self, mark: Mark) -> None:
        """Add a click. A further pair of corners on a frame replaces the object's box there.

        Raises:
            UserError: the object's number is out of range, or the box has no area.
        """
        if not 1 <= mark.object_id <= MAX_OBJECT_ID:
            raise UserError(
                f"objects are numbered 1 to {MAX_OBJECT_ID}, not {mark.object_id}", code="demo.object-number"
            )
        before = self._corners(mark.frame, mark.object_id)
        if mark.kind == "corner of a box" and len(before) % 2 and (before[-1].x == mark.x or before[-1].y == mark.y):
            raise UserError("this corner makes a box without area: click the one opposite", code="demo.empty-box")
        self._marks.append(mark)

    def undo(self) -> None:
        """Remove the last click. Raises UserError where there is none."""
        if not self._marks:
            raise UserError("there is no prompt to take back", code="demo.nothing-to-undo")
        self._marks.pop()

    def clear(self) -> None:
        """Remove all clicks."""
        self._marks.clear()

    def prompts(self) -> PromptsByFrame:
        """Return the clicks as prompts; a corner without its opposite is not among them."""
        found: PromptsByFrame = {}
        for frame, object_id in sorted({(mark.frame, mark.object_id) for mark in self._marks}):
            clicks = [m for m in self._of(frame, object_id) if m.kind != "corner of a box"]
            corners = self._corners(frame, object_id)
            pair = corners[len(corners) // 2 * 2 - 2 : len(corners) // 2 * 2]
            if clicks or pair:
                points = tuple((mark.x, mark.y) for mark in clicks)
                labels = tuple(int(mark.kind == "on it") for mark in clicks)
                found.setdefault(frame, []).append(Prompt(object_id, points, labels, _box(pair)))
        return found

    def half_boxes(self, frame: int, reach: float) -> list[Prompt]:
        """Return the corners that wait for their opposites, as boxes of ``reach`` pixels to each side, to be drawn."""
        lone = [
            corners[-1]
            for object_id in {mark.object_id for mark in self._marks}
            if len(corners := self._corners(frame, object_id)) % 2
        ]
        return [Prompt(m.object_id, box=(m.x - reach, m.y - reach, m.x + reach, m.y + reach)) for m in lone]

    def _of(self, frame: int, object_id: int) -> list[Mark]:
        return [mark for mark in self._marks if (mark.frame, mark.object_id) == (frame, object_id)]

    def _corners(self, frame: int, object_id: int) -> list[Mark]:
        return [mark for mark in self._of(frame, object_id) if mark.kind == "corner of a box"]


def _box(corners: list[Mark]) -> tuple[float, float, float, float] | None:
    if not corners:
        return None
    xs, ys = sorted(mark.x for mark in corners), sorted(mark.y for mark in corners)
    return xs[0], ys[0], xs[1], ys[1]
