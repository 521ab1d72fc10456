"""Going on with an earlier run: which of its checkpoints."""

from __future__ import annotations

import shlex
from pathlib import Path

from src.errors import UserError
from src.model.checkpoint import Checkpoint, read_checkpoint

AUTO = "auto"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def find_checkpoint(folder: Path) -> tuple[Path, Checkpoint, list[str]] | None:
    """The newest intact checkpoint of a run.

    Args:
        folder: the run's ``checkpoints``.

    Returns:
        Its path, its content, and what was wrong with each newer one; None if there is no checkpoint at all.

    Raises:
        UserError: there are some, and all of them are damaged.
    """
    epochs = sorted(folder.glob("epoch_*.pt"), key=lambda path: (len(path.name), path.name), reverse=True)
    candidates = [folder / LAST, folder / PREVIOUS, *epochs, folder / BEST]
    damaged: list[str] = []
    for path in filter(Path.is_file, candidates):
        try:
            return path, read_checkpoint(path), damaged
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(f"{folder}: no checkpoint in it is intact; move them away to start anew: {'; '.join(damaged)}")
    return None


def resume_command(argv: list[str]) -> str:
    """The command line that goes on with a run.

    Args:
        argv: of the run's own command, the program first.
    """
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--resume":
            next(words, None)
        elif not word.startswith("--resume="):
            kept.append(word)
    return shlex.join(["python", *kept, "--resume", AUTO])
