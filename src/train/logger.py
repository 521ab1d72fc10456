"""What a run says: on the screen, in training.log, to TensorBoard, and step by step in steps.jsonl."""

from __future__ import annotations

import json
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from src.cli import say


class RunLogger:
    """Writes ``logs/training.log`` and TensorBoard events in ``logs/<run_name>``.

    Args:
        folder: the logs folder.
        run_name: a folder per run, so that TensorBoard can compare them.
        step: where the run begins; events of a former attempt beyond it are dropped from view.
    """

    def __init__(self, folder: Path, run_name: str, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "training.log", "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._board = SummaryWriter(str(folder / run_name), purge_step=step + 1 if step else None)

    def say(self, message: str) -> None:
        """A line, or several, for people: on the screen above the progress bar, and in the file with the time."""
        say(message)
        self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")
        self._file.flush()

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def text(self, name: str, text: str) -> None:
        self._board.add_text(name, f"```yaml\n{text}\n```", 0)

    def image(self, name: str, image_HWC: np.ndarray, step: int) -> None:
        self._board.add_image(name, image_HWC, step, dataformats="HWC")

    def expert_use(self, usage: dict[str, Tensor], step: int) -> None:
        write_expert_use(self._board, "expert_use", usage, step)

    def close(self) -> None:
        self._board.close()
        self._file.close()


def write_expert_use(board: SummaryWriter, name: str, usage: dict[str, Tensor], step: int) -> None:
    """A histogram per layer, ``name/layer``, with one bar per expert: its share of all choices."""
    for layer, share_E in usage.items():
        share = share_E.double().numpy()
        index = np.arange(len(share))
        board.add_histogram_raw(
            f"{name}/{layer}", min=0.0, max=float(len(share)), num=1.0, sum=float((index * share).sum()),
            sum_squares=float((index**2 * share).sum()), bucket_limits=(index + 1.0).tolist(),
            bucket_counts=share.tolist(), global_step=step,
        )  # fmt: skip


class StepLog:
    """``steps.jsonl``: a line of JSON for every step, each step once, however often a run is killed and resumed.

    Args:
        path: the file.
        step: where the run begins; what a former attempt wrote of later steps is cut off, as they are done again.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by close)
        self._file.truncate(self._end_of(step))

    def _end_of(self, step: int) -> int:
        """The size of the lines up to a step."""
        self._file.seek(0)
        size = 0
        for line in self._file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
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
