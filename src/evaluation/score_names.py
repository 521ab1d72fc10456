"""What the scores of a task are called, and which of them a table shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ScoreNames:
    """Names of scores, in the order of tables.

    Attributes:
        headline: the score that the best weights are chosen by.
        main: scores with intervals, and those of the domain gate's table.
        table: the columns beside the headline; one that no domain has is left out.
        unit: what intervals resample, and a row counts, such as videos.
        parts: what a unit has several of, such as objects.
        decimals: digits of scores; 3 of those that are not named.
    """

    headline: str
    main: tuple[str, ...]
    table: tuple[str, ...]
    unit: str
    parts: str
    decimals: Mapping[str, int] = field(default_factory=dict)

    def format(self, score: str, value: float, signed: bool = False, fewer: int = 0) -> str:
        """Return a score as text, with so many digits fewer than it has."""
        return f"{value:{'+' if signed else ''}.{max(self.decimals.get(score, 3) - fewer, 0)}f}"


TRACKING = ScoreNames(
    headline="J",
    main=("J", "F", "J&F"),
    table=("F", "J&F", "mIoU", "Dice"),
    unit="videos",
    parts="objects",
)
CONCEPTS = ScoreNames(
    headline="cgF1",
    main=("cgF1", "AP", "AP50", "AP75", "pmF1", "IL_MCC", "IL_FPR"),
    table=("AP", "AP50", "AP75", "pmF1", "IL_MCC", "IL_FPR", "agreement"),
    unit="images",
    parts="phrases",
    decimals={"cgF1": 1, "cgF1@50": 1},
)
