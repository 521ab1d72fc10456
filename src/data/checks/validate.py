"""Checks every video of a data set before training on it.

It parses every video and decodes every frame, in several processes, and reports all issues. Damage may kill the
libraries that read it, and with them their processes: that is an issue, too. Reports are kept in files until something
changes.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...core.console import progress_bar
from ...core.files import write_text
from ..records import Source
from .cache import content_hash, make_entry, read_entry
from .report import Report, ReportBuilder
from .worker_pool import check_in_order


def check(source: Source, workers: int = 1, decode: bool = True, cache: Path | None = None) -> Report:
    """Parse every video of a data set and decode every frame.

    Args:
        source: the data set.
        workers: processes to read it with. 0: this one, which would die with a library that crashes; a crash in
            another process is an issue.
        decode: whether to decode the frames; False reads headers only.
        cache: a file with an earlier report, taken instead as long as no file that was looked at has changed, nor
            this program; where the report is written to.

    Raises:
        UserError: the cache cannot be written.
    """
    content = content_hash(source)
    if cache is not None and (cached := read_entry(cache, content, decode)) is not None:
        return Report.from_json(cached)
    collected = ReportBuilder(Report(listed=len(source), decoded=decode))
    collected.add_issues(source.issues)
    with progress_bar(total=len(source), desc=f"checking {source.name}", leave=False) as bar:
        for checked in check_in_order(source, decode, workers):
            collected.add(checked)
            bar.update()
    report = collected.finish()
    if cache is not None:
        others = collected.paths - set(map(str, source.files))
        write_text(cache, json.dumps(make_entry(content, others, report.to_json())))
    return report
