"""What hangs on the training loop, a file each: logs, checkpoints, the best weights, warnings, early stopping."""

from __future__ import annotations

from ...config import Config
from .adapter_scale import AdapterScaleSearch
from .advice import EpochSummary, FinalAdvice
from .base import Callback, EpochReport, StepReport
from .best import KeepBest
from .checkpoints import Checkpoints
from .domain_gate import FitDomainGate
from .early_stopping import EarlyStopping
from .non_finite import NonFiniteGuard
from .progress import ProgressBar
from .router_statistics import RouterStatistics
from .run_folder import RunFolder
from .run_lock import RunLock
from .run_log import RunLog
from .step_log import StepLog
from .tensorboard import TensorBoard

__all__ = [
    "AdapterScaleSearch",
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "EpochReport",
    "EpochSummary",
    "FinalAdvice",
    "FitDomainGate",
    "KeepBest",
    "NonFiniteGuard",
    "ProgressBar",
    "RouterStatistics",
    "RunFolder",
    "RunLock",
    "RunLog",
    "StepLog",
    "StepReport",
    "TensorBoard",
    "default_callbacks",
]


def default_callbacks(config: Config) -> list[Callback]:
    """Return what hangs on a run's loop, in the order in which it is called."""
    training = config.training
    scales = [AdapterScaleSearch(training.adapter_scales)] if training.adapter_scales != [1.0] else []
    patience = training.early_stopping_patience
    return [
        RunLock(),
        RunLog(),
        RunFolder(),
        ProgressBar(),
        NonFiniteGuard(training.on_non_finite, training.max_skips),
        RouterStatistics(),
        StepLog(),
        TensorBoard(),
        EpochSummary(),
        KeepBest(),
        Checkpoints(training.save_every.steps, training.save_every.minutes, training.save_every.epochs),
        *([EarlyStopping(patience)] if patience is not None else []),
        *scales,
        FinalAdvice(),
        *([FitDomainGate()] if training.domain_gate else []),
    ]
