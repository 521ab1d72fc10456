"""The folder of a run: an earlier run's files are moved aside, config.yaml and run.json are written."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...core import distributed
from ...core.errors import UserError
from ...core.files import remove_leftovers, user_errors, write_text
from ...data.checks.cache import CHECKS_FOLDER
from ...evaluation.card import CARD_FILE
from ...gating.domain_gate import GATE_FILE
from ...lora.adapter import iter_adapter_layers
from ...lora.adapter_io import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from ...models.checkpoint import ADAPTER_FOLDER, is_checkpoint
from ..provenance import RUN_FILE, is_run_file, write_start
from ..resume import BEST, LAST, PREVIOUS
from .base import Callback
from .step_log import STEPS_FILE

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)

RUN_FILES = (
    "predictions/base", "predictions/adapted", "overlays", "clicks.png", "results.json", "results.md", "metrics.json",
    "bad_batch_*", "config.yaml",
    *(f"{ADAPTER_FOLDER}/{name}" for name in (WEIGHTS_FILE, CONFIG_FILE, GATE_FILE, CARD_FILE)),
    STEPS_FILE, RUN_FILE, "checkpoints/epoch_*.pt",
    *(f"checkpoints/{name}" for name in (BEST, PREVIOUS, LAST)),
)  # fmt: skip
"""What one run writes into its folder, and a new run moves aside, in this order: a kill on the way loses nothing.

What is beside them, such as base weights among the checkpoints, or masks of ``predict``, is the user's own.
"""


class RunFolder(Callback):
    """Makes a run's folder its own when it begins to train."""

    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, trainer: Trainer) -> None:
        """Move an earlier run aside unless this one goes on with it; write what this run is."""
        run, folder = trainer.run, trainer.folder
        moved = None if goes_on_in_its_folder(trainer) else archive_previous_run(folder)
        if moved is not None:
            logger.info(f"an earlier run was moved to {moved}")
        for place in (folder, trainer.checkpoints, folder / ADAPTER_FOLDER, folder / CHECKS_FOLDER):
            remove_leftovers(place)
        if run.encoder is not None and run.encoder.store is not None:
            run.encoder.store.clean()
        write_start(folder, run.state.step, run.base_fingerprint, run.data, str(run.device))  # first: a run's own mark
        write_text(folder / "config.yaml", run.config.to_yaml())


def goes_on_in_its_folder(trainer: Trainer) -> bool:
    """Return whether a run goes on in the folder that its earlier part is in."""
    start = trainer.run.resumed_from
    if start is None:
        return False
    return start.resolve().parent == trainer.checkpoints.resolve() or trainer.events_folder.is_dir()


def archive_previous_run(folder: Path) -> Path | None:
    """Move an earlier run's files into ``earlier/<time>``, its checkpoints last.

    Returns:
        Where they are; None where there was no earlier run.

    Raises:
        UserError: a file that no run wrote is where this run would write its own, or files cannot be moved.
    """
    names = (LAST, PREVIOUS, BEST)
    found = [path for name in names if (path := folder / "checkpoints" / name).exists()]
    if not is_run_file(folder / RUN_FILE) and (foreign := [path for path in found if not is_checkpoint(path)]):
        raise UserError(
            f"{foreign[0]}: no run wrote this file, and this run would write over it; move it away, or choose another "
            "output_dir",
            "run.foreign-file",
        )
    if not found:
        return None
    aside = folder / "earlier" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    with user_errors(aside):
        for pattern in RUN_FILES:
            for path in sorted(folder.glob(pattern)):
                place = aside / path.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.rename(place)
                if path.parent != folder:
                    with suppress(OSError):  # it holds something of the user's
                        path.parent.rmdir()
    return aside


def write_adapter(trainer: Trainer) -> None:
    """Write the adapter folder, where there are adapters."""
    if distributed.is_main_process() and any(iter_adapter_layers(trainer.model)):
        configs = trainer.run.groups or trainer.config.lora
        save_adapter(trainer.model, trainer.folder / ADAPTER_FOLDER, configs, trainer.task.adapter_info())


def write_metrics(trainer: Trainer) -> None:
    """Write ``metrics.json``: scores before training and of the best, and the epochs' losses and scores."""
    if distributed.is_main_process():
        state, headline = trainer.state, trainer.task.headline
        metrics = {
            f"base_{headline}": state.base_score, f"best_{headline}": state.best_score,
            "adapter_scale": state.adapter_scale, "epochs": state.history,
        }  # fmt: skip
        write_text(trainer.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
