"""The number formats that a run computes in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import TrainingConfig


@dataclass(frozen=True)
class Precision:
    """Mixed precision, or float32 throughout.

    Attributes:
        device_type: ``cuda``, ``cpu`` or ``mps``.
        dtype: the format of mixed precision.
        mixed: whether it is used.
    """

    device_type: str
    dtype: torch.dtype
    mixed: bool

    @classmethod
    def from_config(cls, training: TrainingConfig, device: torch.device) -> Precision:
        """Return what ``training.use_amp`` and ``training.amp_dtype`` ask for on a device."""
        mixed = device.type == "cuda" if training.use_amp == "auto" else bool(training.use_amp)
        return cls(device.type, getattr(torch, training.amp_dtype), mixed)

    @property
    def name(self) -> str:
        """``bfloat16``, ``float16`` or ``float32``."""
        return str(self.dtype).removeprefix("torch.") if self.mixed else "float32"

    def training(self) -> torch.autocast:
        """Autocast for the forward pass of a step."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.mixed)

    def validation(self) -> torch.autocast:
        """Autocast for validation: predictors may keep memories in bfloat16, which float16 refuses: then float32."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.mixed and self.dtype != torch.float16)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler that float16 needs; for other formats it does nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.mixed and self.dtype == torch.float16)
