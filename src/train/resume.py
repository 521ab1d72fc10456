"""Going on with an earlier run: from which of its checkpoints, and whether it would be the same run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..config import Config
from ..core.errors import UserError
from ..models.checkpoint import Checkpoint, differences, read_checkpoint
from .state import TrainState

AUTO = "auto"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

FREE = (
    # where things lie: whether they are the same is seen from the base's and the data's fingerprints
    "output_dir", "model.checkpoint", "dataset.skip_bad", "dataset.follow_links",
    "dataset.domains.*.format", "dataset.domains.*.train.*", "dataset.domains.*.val*", "dataset.domains.*.test*",
    # what is done beside training
    "evaluation.*", "training.validate_every_epochs", "training.monitor_clips",
    "training.domain_gate", "training.adapter_scales", "training.save_every.*",
    # where a run ends, and how its steps are computed
    "training.max_steps", "training.early_stopping_patience",
    "training.on_non_finite", "training.max_skips",
    "training.num_workers", "training.device", "training.activation_checkpointing",
    "training.cache_features.store", "training.cache_features.budget_gb",
)  # fmt: skip
"""Keys that do not change what a step learns."""

JUDGED_BY = ("evaluation.prompt", "evaluation.protocol", "evaluation.frames", "evaluation.max_*", "valid.*")
"""Keys, and data, that change the scores of validation."""


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
            checkpoint = read_checkpoint(path)
            TrainState.from_checkpoint(checkpoint.progress, path)  # so that one that cannot be used is passed over
            return path, checkpoint, damaged
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(
            f"{folder}: no checkpoint in it is intact; move them away to start again: {'; '.join(damaged)}",
            "resume.damaged",
        )
    return None


def check_same_run(
    checkpoint: Checkpoint, path: str | Path, fingerprint: str, data: dict[str, Any], config: Config, force: bool
) -> list[str]:
    """Refuse to go on where steps would be other ones than those of the run that wrote a checkpoint.

    Args:
        checkpoint: of the earlier run.
        path: its file.
        fingerprint: of the base's weights.
        data: what is in the data sets (:meth:`~src.tasks.base.Task.data_fingerprints`).
        config: how the run is to go on.
        force: whether to go on all the same.

    Returns:
        What is overridden by ``force``, each with both values.

    Raises:
        UserError: the base, the training data, or a key that changes what is learned differs (each with both values)
            and ``force`` is not set; or the method does, which cannot be forced.
    """
    found: dict[str, str] = {}
    if checkpoint.base_fingerprint != fingerprint:
        found["base"] = (
            f"it was trained on another base: on {checkpoint.base_fingerprint[:12]}, "
            f"but model.checkpoint's weights are {fingerprint[:12]}"
        )
    keys = differences(checkpoint.config.model_dump(mode="json"), config.model_dump(mode="json"), "")
    found |= {key: text for key, text in keys.items() if not _is_among(key, FREE)}
    if checkpoint.data:
        found |= differences(checkpoint.data["train"], data["train"], "training data")
    if found and (not force or "lora.method" in found):
        hint = "" if "lora.method" in found else "; --force goes on all the same"
        raise UserError(f"{path}: does not fit the config: {'; '.join(found.values())}{hint}", "resume.other-run")
    return list(found.values())


def eval_settings_changed(checkpoint: Checkpoint, data: dict[str, Any], config: Config) -> list[str]:
    """What makes scores of validation other ones than in the earlier run, each with both values."""
    theirs, ours = checkpoint.config.model_dump(mode="json"), config.model_dump(mode="json")
    keys = differences(theirs, ours, "")
    if checkpoint.data:
        keys |= differences(checkpoint.data["valid"], data["valid"], "valid")
    return [text for key, text in keys.items() if _is_among(key, JUDGED_BY)]


def _is_among(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


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
