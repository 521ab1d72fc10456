"""``run.json``: what is needed, beside config.yaml, to do a run again."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..core.shipped import CLONE

RUN_FILE = "run.json"


def write_start(folder: Path, step: int, base_fingerprint: str, data: dict[str, Any], device: str) -> None:
    """Write down a start of a run, after earlier ones if it is resumed in the same folder.

    Args:
        folder: the run's.
        step: from which it goes on; 0: a new run.
        base_fingerprint: of the base's weights.
        data: what is in the data sets (:func:`src.train.resume.contents`).
        device: what it runs on.

    Raises:
        UserError: the folder cannot be written to.
    """
    path = folder / RUN_FILE
    starts = [*(_earlier_starts(path) if step else []), {"step": step, **_this_start(device)}]
    content = {"base_fingerprint": base_fingerprint, "data": data, "starts": starts}
    write_text(path, json.dumps(content, indent=2) + "\n")


def is_run_file(path: Path) -> bool:
    """Return whether a file is one that :func:`write_start` wrote: the mark of a run's folder."""
    return bool(_earlier_starts(path))


def _earlier_starts(path: Path) -> list[Any]:
    """Return the starts that a file has; none where it cannot be read, as in another folder than the earlier run's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    starts = content.get("starts") if isinstance(content, dict) else None
    return starts if isinstance(starts, list) else []


def _this_start(device: str) -> dict[str, Any]:
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": None if CLONE is None else git_state(CLONE),
        "device": device,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": _packages(),
    }


@cache  # hundreds of files are read for it
def _packages() -> dict[str, str]:
    """Return the version of each installed package, by name."""
    about = [found.metadata for found in distributions()]
    return dict(sorted(((of["Name"], of["Version"]) for of in about), key=lambda item: str(item[0]).lower()))


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder's files are of, and the files that differ from it; None where it is in no repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return None
    return {"commit": commit.strip(), "dirty": [line[3:] for line in changed.splitlines()]}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
