"""Tests of SAM 3's tracker need a transformers that Python 3.10 cannot have."""

from __future__ import annotations

from importlib.metadata import version

from src.models.sam2.transformers_format import is_older
from src.models.sam3_tracker.config import MINIMUM_VERSION

collect_ignore_glob = ["test_*.py"] if is_older(version("transformers"), MINIMUM_VERSION) else []
