"""SAM 2 and SAM 2.1: the one place that imports the packages ``sam2`` and ``training``."""

from .gate_hooks import gate_features, to_pixels

__all__ = ["gate_features", "to_pixels"]
