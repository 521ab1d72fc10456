"""Check every data set of a run before anything is trained on it: annotations, images, and that they fit together.

All splits under dataset, and evaluation.domains: every entry is parsed and every frame decoded. What
is harmless is repaired or left out, the same way every time, and counted. What is damaged is an error, one line each.
Exit status 0: all is well; 2: there are errors. Training and evaluation make the same check, and know its result.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import Config, NamedSplit, Split, load_config
from ..core.errors import UserError
from ..core.files import write_atomically, write_text
from ..data.checks.cache import cache_file
from ..data.checks.report import Report, data_set
from ..data.checks.skipped import SKIPPED_FILE, list_skipped
from ..data.checks.validate import check
from ..data.copies import Origins, leaks, origins
from ..data.formats.parsing import TRACKED_STILLS
from ..data.loading import open_data
from ..data.options import LoadOptions
from ..data.records import Issue, format_of
from . import command

SHOWN = 20
"""Errors of a data set that are printed."""

SPLITS: tuple[Split, ...] = ("train", "valid", "test")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A data set of the config, and what was found.

    ``kind`` is the format that it was read as, ``origins`` what its pictures are of.
    ``refusal`` says why it cannot be used at all, whatever is left out.
    """

    label: str
    place: NamedSplit
    report: Report
    refusal: Issue | None
    kind: str = ""
    origins: Origins = field(default_factory=Origins)

    @property
    def _unreported(self) -> list[Issue]:
        """The refusal, unless the report's errors are what it comes from."""
        return [self.refusal] if self.refusal and not self.report.errors else []

    @property
    def errors(self) -> list[Issue]:
        return [*self._unreported, *self.report.errors]

    def to_json(self) -> dict[str, Any]:
        content = self.report.to_json()
        del content["digests"]
        issues = [*self._unreported, *self.report.issues]
        content["issues"] = [vars(issue) for issue in issues]
        return {"data_set": self.label, **self.place.model_dump(), **content}


def places(config: Config, split: str) -> list[tuple[str, NamedSplit]]:
    """Return the data sets to check, each with a label.

    Domains that are only evaluated have no splits: ``all`` includes them.
    """
    found = [
        (f"{data.name}, {one}", place)
        for data in config.dataset.domains
        for one in SPLITS
        if split in ("all", one) and (place := data.split(one)) is not None
    ]
    return found + [(domain.name, domain) for domain in config.evaluation.domains if split == "all"]


def check_place(label: str, place: NamedSplit, options: LoadOptions, decode: bool = True) -> Result:
    """Check one data set. What makes it unusable is in the result, too."""
    report, kind, found = Report(), "", Origins()
    try:
        source = open_data(place, options)
        kind = format_of(source)
        report = check(source, options.workers, decode, cache_file(place, options))
        tracked = any(issue.problem == TRACKED_STILLS for issue in source.issues)
        files = {digest: source.name_of(index) for digest, index in report.digests.items()}
        found = origins((source.name_of(index) for index in range(len(source))), files, tracked)
        data_set(source, report, skip_bad=True)
    except UserError as error:
        return Result(label, place, report, _refusal(place, str(error)), kind, found)
    return Result(label, place, report, None, kind, found)


def _refusal(place: NamedSplit, message: str) -> Issue:
    """Return why a data set cannot be used.

    The issue's file is the one that the message names, or else the one in the config.
    """
    file, named = place.ann_file or place.img_folder, message.partition(": ")[0]
    if not message.startswith(f"{file}: ") and os.path.exists(named):
        file = named
    return Issue("error", file, "", message.removeprefix(f"{file}: "), "the data set cannot be used")


def format_result(result: Result) -> str:
    """What was found, in lines."""
    report = result.report
    lines = [f"{result.label} ({result.place.img_folder})"]
    if report.listed:
        side = "" if report.median_side is None else f", their median side {report.median_side:.1%} of the frame's"
        lines.append(
            f"  {report.listed} images or videos read as {result.kind}, {len(report.keep)} usable: "
            f"{report.frames} frames, "
            f"{report.objects} objects{side}"
        )
    lines += [f"  error: {issue}" for issue in result.errors[:SHOWN]]
    if len(result.errors) > SHOWN:
        lines.append(f"  … and {len(result.errors) - SHOWN} errors more; --report FILE lists all")
    for severity, word in (("repaired", "repaired"), ("note", "noted")):
        for count, first in report.examples(severity):
            where = f"{first.file}: {first.entry}" if first.entry else first.file
            lines.append(f"  {word}: {count} × {first.problem}, {first.action} (first: {where})")
    return "\n".join(lines)


def shared_pictures(results: list[Result]) -> list[str]:
    """Warnings of pictures that several splits of a domain share, unless one is the other under two names."""
    pairs = [
        (a, b)
        for a, b in combinations(results, 2)
        if a.place.name == b.place.name and a.place.model_dump() != b.place.model_dump()
    ]
    return [warning for a, b in pairs for warning in leaks(a.origins, b.origins, (a.label, b.label))]


def conclude(results: list[Result], options: LoadOptions) -> tuple[str, int]:
    """The last line, and the exit status."""
    sets = f"{len(results)} data set{'s' if len(results) != 1 else ''}"
    errors = sum(len(result.errors) for result in results)
    if not errors:
        return f"OK: {sets}, no errors", 0
    if options.skip_bad and not any(result.refusal for result in results):
        return f"OK: {sets}, without {errors} that are left out, listed in {options.output_dir / SKIPPED_FILE}", 0
    return f"not OK: {errors} errors in {sum(bool(result.errors) for result in results)} of {sets}", 2


def main(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    chosen = places(config, arguments.split)
    if not chosen:
        raise UserError(f"{arguments.config}: it names no data for --split {arguments.split}", "validate-data.no-data")
    if arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers}: must be 0 or more", "validate-data.option")
    if arguments.clips < 1:
        raise UserError(f"--clips {arguments.clips}: must be 1 or more", "validate-data.option")
    options = replace(LoadOptions.from_config(config), workers=arguments.workers)
    results = []
    for label, place in chosen:
        result = check_place(label, place, options, not arguments.headers_only)
        print(format_result(result), flush=True)
        if options.skip_bad and result.refusal is None:
            list_skipped(place, options.output_dir, result.report.skipped)
        results.append(result)
    if arguments.report:
        write_text(Path(arguments.report), json.dumps([result.to_json() for result in results], indent=2) + "\n")
    for warning in shared_pictures(results):
        print(f"warning: {warning}")
    line, status = conclude(results, options)
    if arguments.preview and status == 0:
        save_preview(Path(arguments.preview), config, arguments.clips)
    elif arguments.preview:
        print("preview: not drawn, since there are errors")
    print(line)
    return status


def save_preview(path: Path, config: Config, clips: int) -> None:
    """Draw training clips as the trainer will see them, masks drawn in, into a picture."""
    from ..tasks.tracking.data import preview  # only here: it imports SAM 2, which takes seconds

    picture = Image.fromarray(preview(config, clips))
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
    logger.info(f"preview: {path}: {clips} clips as training will see them, a row each")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(
        __doc__, "sam2-mope validate-data --config src/configs/mope.yaml --split train --report issues.json"
    )
    command.add_config_arguments(parser)
    command.add_skip_bad(parser)
    parser.add_argument(
        "--split", choices=[*SPLITS, "all"], default="all", help="of the domains to learn (default: all)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that read (default: one for every core)"
    )
    parser.add_argument(
        "--headers-only", action="store_true", help="do not decode the frames: quick, but blind to broken-off files"
    )
    parser.add_argument("--report", metavar="JSON", help="write everything that was found into a file")
    parser.add_argument("--preview", metavar="PNG", help="draw clips as training will see them, masks drawn in")
    parser.add_argument("--clips", type=int, default=8, help="clips in the preview (default: 8)")
    return parser
