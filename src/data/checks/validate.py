"""Checks every video of a data set before anything is trained on it: parses it, decodes every frame, reports all.

:func:`check` gives a :class:`Report`, read in several processes and kept in a file until something changes;
:func:`load_checked` gives the :class:`~src.data.records.DataSet` of what is sound, or refuses with the first errors.
What cannot be read is told, whatever it does to the libraries that read it: their processes may die.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Config, DomainConfig
from ...core.console import PROGRAM, progress_bar
from ...core.errors import UserError
from ...core.files import write_text
from ..decode.images import ImageFile, misnamed
from ..records import DataSet, DatasetFingerprint, FrameSource, Issue, Source, SourceVideos, VideoRecord, object_sides
from .cache import content_hash, make_entry, read_entry

QUOTED = 5
"""Errors that a refusal quotes."""

EXAMPLES = 100
"""Repairs and notes of one kind that a report holds; all of them are counted, and all errors are held."""

_CHUNK = 16
"""Videos that a process is given at a time, at most."""

CHECKS_FOLDER, SKIPPED_FILE = "data_checks", "skipped.json"


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
        findings: all errors, and the first of every kind of repair and note.
        dropped: of every video of several frames that some damaged ones make unusable, that it is left out whole.
        counts: how often each kind of repair and note was met, by severity and problem.
        decoded: whether frames were decoded, or only their headers read.
    """

    listed: int = 0
    keep: list[int] = field(default_factory=list)
    frames: int = 0
    objects: int = 0
    fingerprint: str = ""
    median_side: float | None = None
    findings: list[Issue] = field(default_factory=list)
    dropped: list[Issue] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=lambda: {"repaired": {}, "note": {}})
    decoded: bool = True

    @property
    def errors(self) -> list[Issue]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def skipped(self) -> list[Issue]:
        """What is left out where damage may be: every error, and videos for some of their frames."""
        return [*(replace(finding, action="left out") for finding in self.errors), *self.dropped]

    def examples(self, severity: str) -> list[tuple[int, Issue]]:
        """Every kind of repair or note: how often it was met, and the first of them."""
        first: dict[str, Issue] = {}
        for finding in self.findings:
            if finding.severity == severity:
                first.setdefault(finding.problem, finding)
        return [(self.counts[severity][problem], finding) for problem, finding in first.items()]

    @property
    def notes(self) -> dict[str, int]:
        """Repairs and notes as :class:`~src.data.records.DataSet` has them."""
        kinds = [*self.examples("repaired"), *self.examples("note")]
        return {f"{finding.problem}, {finding.action}": count for count, finding in kinds}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Report:
        lists = {key: [Issue(**finding) for finding in content[key]] for key in ("findings", "dropped")}
        return cls(**{**content, **lists})


def check(source: Source, workers: int = 1, decode: bool = True, cache: Path | None = None) -> Report:
    """Parse every video of a data set and decode every frame.

    Args:
        source: the data set.
        workers: processes to read it with. 0: this one, which would die with a library that crashes; a crash in
            another process is a finding.
        decode: whether to decode the frames; False reads headers only.
        cache: a file with an earlier report, taken instead as long as no file that was looked at has changed, nor
            this program; where the report is written to.

    Raises:
        UserError: the cache cannot be written.
    """
    content = content_hash(source)
    if cache is not None and (cached := read_entry(cache, content, decode)) is not None:
        return Report.from_json(cached)
    collected = _Collected(Report(listed=len(source), decoded=decode))
    collected.add_findings(source.findings)
    with progress_bar(total=len(source), desc=f"checking {source.name}", leave=False) as bar:
        for checked in _checked_in_order(source, decode, workers):
            collected.add(checked)
            bar.update()
    report = collected.finish()
    if cache is not None:
        others = collected.paths - set(map(str, source.files))
        write_text(cache, json.dumps(make_entry(content, others, report.to_json())))
    return report


def data_set(source: Source, report: Report, skip_bad: bool = False) -> DataSet:
    """What of a data set is sound, parsed when it is asked for.

    Raises:
        UserError: there are errors, unless ``skip_bad`` leaves them out; or nothing usable is there.
    """
    if report.errors and not skip_bad:
        raise UserError(_refusal(source, report.errors))
    if not report.keep:
        reasons = [f"{count} {kind}" for kind, count in report.notes.items()]
        if report.errors:
            reasons.append(f"{len(report.errors)} damaged, the first of them {report.errors[0]}")
        where = source.files[0] if source.files else source.name
        raise UserError(f"{where}: nothing in it is usable: {'; '.join(reasons) or 'it lists no images or videos'}")
    videos = SourceVideos(source, np.array(report.keep, dtype=np.int64))
    contents = DatasetFingerprint(len(report.keep), report.frames, report.objects, report.fingerprint)
    return DataSet(source.name, videos, report.notes, report.median_side, contents)


def load_checked(source: Source, place: DomainConfig, config: Config) -> DataSet:
    """A data set of a run, checked, or known from ``data_checks`` in the run's folder to be sound.

    With ``dataset.skip_bad``, what is damaged is left out and listed in the run's ``skipped.json``.

    Raises:
        UserError: it is damaged, or holds nothing usable.
    """
    report = check(source, config.training.num_workers, cache=cache_file(place, config))
    data = data_set(source, report, config.dataset.skip_bad)
    list_skipped(place, config, report.skipped)
    return data


def list_skipped(place: DomainConfig, config: Config, skipped: list[Issue]) -> None:
    """Put what is left out of a data set into the run's ``skipped.json``, beside what other sets leave out."""
    path = Path(config.output_dir) / SKIPPED_FILE
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet
        listed = {}
    before = dict(listed)
    key = f"{place.name}: {place.ann_file or place.img_folder}"
    listed.pop(key, None)
    if skipped:
        listed[key] = [asdict(finding) for finding in skipped]
    if listed != before:
        write_text(path, json.dumps(listed, indent=2) + "\n")


def cache_file(place: DomainConfig, config: Config) -> Path:
    """Where the report on a data set is kept: a file for everything in the config that decides what is read."""
    settings: list[Any] = [place.model_dump(), config.dataset.max_ann_per_img, config.dataset.follow_links]
    if isinstance(place.videos, str) and Path(place.videos).is_file():
        settings.append(Path(place.videos).read_text(encoding="utf-8", errors="replace"))
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", place.name)
    return Path(config.output_dir) / CHECKS_FOLDER / f"{name}-{key}.json"


def state_of_files(place: DomainConfig, config: Config) -> str:
    """A hash of the files of a data set as they were when :func:`load_checked` looked at them for a run."""
    entry = json.loads(cache_file(place, config).read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps([entry["content"], entry["stamps"]]).encode()).hexdigest()


def _refusal(source: Source, errors: list[Issue]) -> str:
    if len(errors) == 1:
        return f"{errors[0]}, or leave it out with --skip-bad"
    quoted = f", the first {QUOTED}" if len(errors) > QUOTED else ""
    lines = "".join(f"\n  {finding}" for finding in errors[:QUOTED])
    return (
        f"{source.name}: {len(errors)} errors in the data{quoted}:{lines}\n"
        f"  {PROGRAM} validate-data --config YAML lists all of them; --skip-bad leaves them out"
    )


# One video


@dataclass
class _Checked:
    """What was found of one video. ``sides`` is None where it is not usable; ``paths``: the files looked at.

    ``dropped`` says that it is left out whole for some of its frames.
    """

    index: int
    findings: list[Issue]
    paths: set[str]
    dropped: Issue | None = None
    frames: int = 0
    objects: int = 0
    sides: np.ndarray | None = None
    fingerprint: bytes = b""


def _check_one(source: Source, index: int, decode: bool) -> _Checked:
    record, met = source.read(index)
    checked = _Checked(index, list(met), {finding.file for finding in met})
    if record is None:
        return checked
    damaged: list[Issue] = []
    for frame in record.frames:
        checked.paths.update(_files_of(frame))
        if decode:
            problems = _check_frame(frame, record)
            checked.findings += problems
            damaged += [problem for problem in problems if problem.severity == "error"]
    if damaged and len(record) > 1:
        problem = f"{len(damaged)} of its {len(record)} frames cannot be used"
        entry = f"video {record.video_id}"
        checked.dropped = Issue("error", damaged[0].file, entry, problem, "the video is left out whole")
    if not damaged:
        checked.frames, checked.objects = len(record), len(record.objects)
        checked.sides = object_sides(record).astype(np.float32)
        checked.fingerprint = _fingerprint(record, checked.sides)
    return checked


def _fingerprint(record: VideoRecord, sides: np.ndarray) -> bytes:
    """Of a video's name, the names and sizes of its frames' files, and its objects' numbers and areas."""
    files = sorted({path for frame in record.frames for path in _files_of(frame)})
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
    if isinstance(frame, ImageFile) and misnamed(frame.path):
        return [Issue("note", frame.name, "", "images of another type than their name says", "read by their content")]
    return []


def _files_of(frame: FrameSource) -> list[str]:
    path = getattr(frame, "path", None)
    return [] if path is None else [str(path)]


@dataclass
class _Collected:
    """Puts a report together."""

    report: Report
    paths: set[str] = field(default_factory=set)
    fingerprints: list[bytes] = field(default_factory=list)
    sides: list[np.ndarray] = field(default_factory=list)

    def add(self, checked: _Checked) -> None:
        self.add_findings(checked.findings)
        self.paths |= checked.paths
        if checked.dropped is not None:
            self.report.dropped.append(checked.dropped)
        if checked.sides is not None:
            self.report.keep.append(checked.index)
            self.report.frames += checked.frames
            self.report.objects += checked.objects
            self.sides.append(checked.sides)
            self.fingerprints.append(checked.fingerprint)

    def add_findings(self, findings: Iterable[Issue]) -> None:
        for finding in findings:
            if finding.severity != "error":
                counts = self.report.counts[finding.severity]
                counts[finding.problem] = counts.get(finding.problem, 0) + 1
                if counts[finding.problem] > EXAMPLES:
                    continue
            self.report.findings.append(finding)

    def finish(self) -> Report:
        sides = np.concatenate(self.sides) if self.sides else np.zeros(0)
        median_side = float(np.median(sides)) if sides.size else None
        fingerprint = hashlib.sha256(b"".join(self.fingerprints)).hexdigest()
        return replace(self.report, median_side=median_side, fingerprint=fingerprint)


# Processes


def _checked_in_order(source: Source, decode: bool, workers: int) -> Iterator[_Checked]:
    """Every video in turn. Where a process dies, what it may have died of is read again one by one, to name it."""
    if workers == 0:
        yield from (_check_one(source, index, decode) for index in range(len(source)))
        return
    size = max(1, min(_CHUNK, len(source) // (4 * workers)))
    chunks = deque(range(start, min(start + size, len(source))) for start in range(0, len(source), size))
    workers = min(workers, max(1, len(chunks)))
    ahead = 3 * workers
    while chunks:
        yield from _until_a_crash(source, decode, workers, chunks, ahead)
        in_flight = [chunks.popleft() for _ in range(min(ahead, len(chunks)))]
        suspects = deque(range(index, index + 1) for chunk in in_flight for index in chunk)
        while suspects:
            yield from _until_a_crash(source, decode, 1, suspects, ahead=1)
            if suspects:
                yield _crashed(source, suspects.popleft().start, decode)


def _until_a_crash(source: Source, decode: bool, workers: int, chunks: deque[range], ahead: int) -> Iterator[_Checked]:
    """Check chunk by chunk, taking from ``chunks`` what is done, until all are, or a process dies.

    At most ``ahead`` chunks are in flight, so that what was being read is among the first of those left over.
    """
    waiting = iter(tuple(chunks))
    in_flight: deque[Future[list[_Checked]]] = deque()
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(source, decode)) as pool:
        try:
            while chunks:
                for chunk in islice(waiting, ahead - len(in_flight)):
                    in_flight.append(pool.submit(_check_chunk, chunk))
                done = in_flight.popleft().result()
                chunks.popleft()
                yield from done
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(cancel_futures=True)


def _crashed(source: Source, index: int, decode: bool) -> _Checked:
    """What is told of a video that ends the process which reads it."""
    parsed = list(_until_a_crash(source, False, 1, deque([range(index, index + 1)]), ahead=1)) if decode else []
    paths = sorted(parsed[0].paths) if parsed else []
    file = paths[0] if paths else str(source.files[0])
    problem = f"reading entry {index} (counted from 0) of {source.name} ended the process that did"
    return _Checked(index, [Issue("error", file, "", problem, "fix or delete it")], set(paths))


_work: tuple[Source, bool]
"""In a process of the pool: what it reads, and whether it decodes frames."""


def _start_worker(source: Source, decode: bool) -> None:
    global _work
    _work = source, decode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, killed perhaps, who would have told it to: the pool does not look."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _check_chunk(chunk: range) -> list[_Checked]:
    source, decode = _work
    return [_check_one(source, index, decode) for index in chunk]
