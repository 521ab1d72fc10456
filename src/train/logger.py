"""What a run says: on the screen and in training.log, and step by step in steps.jsonl."""

from __future__ import annotations

import json
import logging
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class RunLogger:
    """Says things on the screen and in ``training.log``.

    Args:
        folder: the logs folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "training.log", "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def say(self, message: str) -> None:
        """A line, or several, for people: on the screen above the progress bar, and in the file with the time."""
        logger.info(message)
        self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class StepLog:
    """``steps.jsonl``: a line of JSON for every step, each step once, however often a run is killed and resumed.

    Args:
        path: the file.
        step: where the run begins; what a former attempt wrote of later steps is cut off, as they are done again.

    Attributes:
        last: what it holds of the last step before, None where that is nothing.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.last: dict[str, Any] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by close)
        self._file.truncate(self._end_of(step))

    def _end_of(self, step: int) -> int:
        """The size of the lines up to a step."""
        self._file.seek(0)
        size = 0
        for line in self._file:
            if not line.endswith(b"\n") or (record := json.loads(line))["step"] > step:
                break
            self.last = record
            size += len(line)
        return size

    def add(self, record: dict[str, Any]) -> None:
        """Add a step: ``step`` and whatever is known of it; a number that is not finite becomes null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Make all lines outlast a power cut, before a checkpoint says that they are there."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
