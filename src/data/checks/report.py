"""What a check found, and the data set of what is sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ...core.console import PROGRAM
from ...core.errors import UserError
from ..records import CategoryCounts, DataSet, DatasetFingerprint, Issue, Source, SourceVideos, add_categories
from .video import CheckedVideo

QUOTED = 5
"""Errors that a refusal quotes."""

EXAMPLES = 100
"""Repairs and notes of one kind that a report holds; all of them are counted, and all errors are held."""


@dataclass
class Report:
    """What a check found.

    Attributes:
        listed: videos and images in the data set.
        keep: the indices of those that can be used, in order.
        frames, objects: how many these have, objects counted once a video.
        fingerprint: of all that :class:`~src.data.records.DatasetFingerprint` names.
        median_side: the median over their objects and frames of the area's square root, as a share of the frame's;
            None without any.
        issues: all errors, and the first of every kind of repair and note.
        dropped: of every video that damaged frames leave without an object, that it is left out whole.
        bad_frames: index of a video that can be used → numbers of its frames that cannot.
        categories: how many objects of each category are on how many of their frames.
        counts: how often each kind of repair and note was met, by severity and problem.
        decoded: whether frames were decoded, or only their headers read.
        digests: digest of the first frame's file, where that is an image and was decoded → its video's index.
    """

    listed: int = 0
    keep: list[int] = field(default_factory=list)
    frames: int = 0
    objects: int = 0
    fingerprint: str = ""
    median_side: float | None = None
    issues: list[Issue] = field(default_factory=list)
    dropped: list[Issue] = field(default_factory=list)
    bad_frames: dict[int, list[int]] = field(default_factory=dict)
    categories: CategoryCounts = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=lambda: {"repaired": {}, "note": {}})
    decoded: bool = True
    digests: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> list[Issue]:
        return [issue for issue in self.issues if issue.severity == "error"]

    @property
    def skipped(self) -> list[Issue]:
        """Return every error, and every video left out for some frames."""
        return [*(replace(issue, action="left out") for issue in self.errors), *self.dropped]

    def examples(self, severity: str) -> list[tuple[int, Issue]]:
        """Return how often each kind of repair or note was met, and the first of it."""
        first: dict[str, Issue] = {}
        for issue in self.issues:
            if issue.severity == severity:
                first.setdefault(issue.problem, issue)
        return [(self.counts[severity][problem], issue) for problem, issue in first.items()]

    @property
    def notes(self) -> dict[str, int]:
        """Repairs and notes as :class:`~src.data.records.DataSet` has them."""
        kinds = [*self.examples("repaired"), *self.examples("note")]
        return {f"{issue.problem}, {issue.action}": count for count, issue in kinds}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Report:
        lists = {key: [Issue(**issue) for issue in content[key]] for key in ("issues", "dropped")}
        counted = {
            category: {int(count): frames for count, frames in of.items()}
            for category, of in content["categories"].items()
        }
        bad_frames = {int(index): frames for index, frames in content["bad_frames"].items()}
        return cls(**{**content, **lists, "categories": counted, "bad_frames": bad_frames})


def data_set(source: Source, report: Report, skip_bad: bool = False) -> DataSet:
    """Return the data set of what is sound, parsed on demand.

    Raises:
        UserError: there are errors, unless ``skip_bad`` leaves them out; or nothing usable is there.
    """
    if report.errors and not skip_bad:
        raise UserError(_refusal(source, report.errors), "data.damaged")
    if not report.keep:
        reasons = [f"{count} {kind}" for kind, count in report.notes.items()]
        if report.errors:
            reasons.append(f"{len(report.errors)} damaged, the first of them {report.errors[0]}")
        where = source.files[0] if source.files else source.name
        raise UserError(
            f"{where}: nothing in it is usable: {'; '.join(reasons) or 'it lists no images or videos'}",
            "data.nothing-usable",
        )
    videos = SourceVideos(source, np.array(report.keep, dtype=np.int64), report.bad_frames)
    contents = DatasetFingerprint(len(report.keep), report.frames, report.objects, report.fingerprint)
    return DataSet(source.name, videos, report.notes, report.median_side, contents, report.categories)


def _refusal(source: Source, errors: list[Issue]) -> str:
    if len(errors) == 1:
        return f"{errors[0]}, or leave it out with --skip-bad"
    quoted = f", the first {QUOTED}" if len(errors) > QUOTED else ""
    lines = "".join(f"\n  {issue}" for issue in errors[:QUOTED])
    return (
        f"{source.name}: {len(errors)} errors in the data{quoted}:{lines}\n"
        f"  {PROGRAM} validate-data --config YAML lists all of them; --skip-bad leaves them out"
    )


@dataclass
class ReportBuilder:
    """Puts a report together."""

    report: Report
    paths: set[str] = field(default_factory=set)
    fingerprints: list[bytes] = field(default_factory=list)
    sides: list[np.ndarray] = field(default_factory=list)

    def add(self, checked: CheckedVideo) -> None:
        self.add_issues(checked.issues)
        self.paths |= checked.paths
        if checked.dropped is not None:
            self.report.dropped.append(checked.dropped)
        if checked.sides is not None:
            self.report.keep.append(checked.index)
            if checked.digest is not None:
                self.report.digests.setdefault(checked.digest, checked.index)
            if checked.bad_frames:
                self.report.bad_frames[checked.index] = checked.bad_frames
            self.report.frames += checked.frames
            self.report.objects += checked.objects
            add_categories(self.report.categories, checked.categories)
            self.sides.append(checked.sides)
            self.fingerprints.append(checked.fingerprint)

    def add_issues(self, issues: Iterable[Issue]) -> None:
        for issue in issues:
            if issue.severity != "error":
                counts = self.report.counts[issue.severity]
                counts[issue.problem] = counts.get(issue.problem, 0) + 1
                if counts[issue.problem] > EXAMPLES:
                    continue
            self.report.issues.append(issue)

    def finish(self) -> Report:
        sides = np.concatenate(self.sides) if self.sides else np.zeros(0)
        median_side = float(np.median(sides)) if sides.size else None
        fingerprint = hashlib.sha256(b"".join(self.fingerprints)).hexdigest()
        return replace(self.report, median_side=median_side, fingerprint=fingerprint)
