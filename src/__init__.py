"""Fine-tune SAM 2 with small adapters, and measure what it forgets.

The names below are the public interface. Each is imported when it is first used, so that ``import sam2_mope`` is quick.
In a clone the package is called ``src``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import load_config
    from .evaluation.run import evaluate
    from .gating.domain_gate import DomainGate
    from .gating.fit import fit_gate
    from .lora.adapter_io import load_adapter, save_adapter
    from .lora.injection import inject_adapters
    from .lora.lora_layer import LoRALinear
    from .lora.moe_layer import MoELoRALinear
    from .models.build import build_model
    from .models.sam2.gate_hooks import gate_features
    from .models.sam2.memory_bank import MemoryBank
    from .models.sam2.predictors import build_sam2_moe, build_sam2_video_predictor_moe
    from .models.sam2.streaming import StreamingTracker
    from .train.trainer import Trainer

__version__ = "0.2.0"

__all__ = [
    "DomainGate",
    "LoRALinear",
    "MemoryBank",
    "MoELoRALinear",
    "StreamingTracker",
    "Trainer",
    "__version__",
    "build_model",
    "build_sam2_moe",
    "build_sam2_video_predictor_moe",
    "evaluate",
    "fit_gate",
    "gate_features",
    "inject_adapters",
    "load_adapter",
    "load_config",
    "save_adapter",
]

_MODULES = {
    "DomainGate": ".gating.domain_gate",
    "LoRALinear": ".lora.lora_layer",
    "MemoryBank": ".models.sam2.memory_bank",
    "MoELoRALinear": ".lora.moe_layer",
    "StreamingTracker": ".models.sam2.streaming",
    "Trainer": ".train.trainer",
    "build_model": ".models.build",
    "build_sam2_moe": ".models.sam2.predictors",
    "build_sam2_video_predictor_moe": ".models.sam2.predictors",
    "evaluate": ".evaluation.run",
    "fit_gate": ".gating.fit",
    "gate_features": ".models.sam2.gate_hooks",
    "inject_adapters": ".lora.injection",
    "load_adapter": ".lora.adapter_io",
    "load_config": ".config",
    "save_adapter": ".lora.adapter_io",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
