"""Values of a ``config.json`` that no model can have, though transformers loads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_COUNTS = ("_size", "_dim", "_layers", "_heads", "_channels", "_rate", "_stride", "num_maskmem", "num_queries")
"""Ends of keys whose values are whole numbers from 1."""


def impossible_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Describe what is out of range: sizes and counts below 1, rates of dropout outside [0, 1), numbers not finite.

    Args:
        values: a config of transformers as a dictionary, with its parts' dictionaries in it.
        prefix: what the keys of a part begin with.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from impossible_values(value, f"{name}.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            continue
        elif not math.isfinite(value):
            yield f"{name} is {value}, not a finite number"
        elif key.endswith("dropout"):
            if not 0 <= value < 1:
                yield f"{name} is {value}, not from 0 to below 1"
        elif key.endswith(_COUNTS) and (value < 1 or value != int(value)):
            yield f"{name} is {value}, not a whole number from 1"
