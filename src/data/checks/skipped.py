"""The list of what a run leaves out of its data sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ...config import NamedSplit
from ...core.files import write_text
from ..records import Issue

SKIPPED_FILE = "skipped.json"


def list_skipped(place: NamedSplit, output_dir: Path, skipped: list[Issue]) -> None:
    """Put what is left out of a data set into the run's ``skipped.json``, beside what other sets leave out."""
    path = output_dir / SKIPPED_FILE
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet
        listed = {}
    listed = listed if isinstance(listed, dict) else {}
    before = dict(listed)
    key = f"{place.name}: {place.ann_file or place.img_folder}"
    listed.pop(key, None)
    if skipped:
        listed[key] = [asdict(issue) for issue in skipped]
    if listed != before:
        write_text(path, json.dumps(listed, indent=2) + "\n")
