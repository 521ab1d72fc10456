"""The folder of a run: an earlier run's files are moved aside, config.yaml and run.json are written."""

from __future__ import annotations

import json
import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...core import distributed
from ...core.files import remove_leftovers, write_text
from ...data.checks.cache import CHECKS_FOLDER
from ...lora.adapter import iter_adapter_layers
from ...lora.adapter_io import save_adapter
from ...models.checkpoint import ADAPTER_FOLDER
from ..provenance import RUN_FILE, write_start
from .base import Callback

if TYPE_CHECKING:
    from ..trainer import Trainer

logger = logging.getLogger(__name__)

RUN_FILES = (
    "checkpoints", ADAPTER_FOLDER, "config.yaml", "metrics.json", "results.json", "results.md", "overlays",
    "clicks.png", "predictions", "steps.jsonl", "bad_batch_*", RUN_FILE,
)  # fmt: skip
"""What one run leaves in its folder, and a new run moves aside."""


class RunFolder(Callback):
    """Makes a run's folder its own when it begins to train."""

    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, trainer: Trainer) -> None:
        """Move an earlier run aside unless this one goes on with it; write what this run is."""
        run, folder = trainer.run, trainer.folder
        moved = archive_previous_run(folder) if run.resumed_from is None else None
        if moved is not None:
            logger.info(f"an earlier run was moved to {moved}")
        for place in (folder, trainer.checkpoints, folder / ADAPTER_FOLDER, folder / CHECKS_FOLDER):
            remove_leftovers(place)
        if run.encoder is not None and run.encoder.store is not None:
            run.encoder.store.clean()
        write_text(folder / "config.yaml", run.config.to_yaml())
        write_start(folder, run.state.step, run.base_fingerprint, run.data, str(run.device))


def archive_previous_run(folder: Path) -> Path | None:
    """Move an earlier run's checkpoints and results into ``earlier/<time>``; returns where, None if there were none."""
    if not any((folder / "checkpoints").glob("*.pt")):
        return None
    aside = folder / "earlier" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    aside.mkdir(parents=True)
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            shutil.move(path, aside / path.name)
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
