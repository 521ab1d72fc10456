"""``steps.jsonl``: a line of JSON for every step, each step once, however often a run is killed and resumed."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from ...core.files import user_errors, write_atomically
from .base import Callback, StepReport

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)

STEPS_FILE = "steps.jsonl"


class StepLog(Callback):
    """Writes a line a step.

    What a former attempt wrote of later steps than the run's first is cut off, as they are done again.
    """

    main_process_only: ClassVar[bool] = True

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the file at the end of the steps that count."""
        path = trainer.folder / STEPS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with user_errors(path):
            _cut(path, trainer.state.step)
            self._file = open(path, "ab")  # noqa: SIM115 (closed by on_fit_end)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """Add a line; a number that is not finite becomes null."""
        assert self._file is not None
        record = step_record(trainer, report)
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def before_save(self, trainer: Trainer) -> None:
        """Make all lines outlast a power cut, before a checkpoint says that they are there."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _cut(path: Path, last: int) -> None:
    """Take out of a file what is of later steps than the last that counts, and lines that are damaged."""
    size, kept, damaged = 0, [], 0
    with open(path, "a+b") as file:
        file.seek(0)
        for line in file:
            step = _step_of(line)
            if not line.endswith(b"\n") or (step is not None and step > last):
                break
            size += len(line)
            if step is None:
                damaged += 1
            else:
                kept.append(line.lstrip(b"\0"))
        if not damaged:
            file.truncate(size)
    if damaged:  # as a power cut may leave zeros
        logger.warning(
            f"warning: {path}: {damaged} damaged lines are taken out; the run itself goes on from a checkpoint"
        )
        write_atomically(path, lambda temporary: temporary.write_bytes(b"".join(kept)))


def _step_of(line: bytes) -> int | None:
    """Return the step that a line is of; None where it is damaged."""
    try:
        step = json.loads(line.lstrip(b"\0"))["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def step_record(trainer: Trainer, report: StepReport) -> dict[str, Any]:
    """Return what is written down of a step."""
    return {
        "step": trainer.state.step, "epoch": trainer.state.epoch, "clips": list(report.names), **report.result.losses,
        "learning_rate": report.learning_rate,
    }  # fmt: skip


def last_record(folder: Path) -> dict[str, Any] | None:
    """Return what a run's ``steps.jsonl`` says of its last step; None where there is none."""
    path = folder / STEPS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else None
