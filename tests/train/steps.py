"""What a run wrote of its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Step by step, but for the time that they waited, which no two runs share."""
    lines = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "waiting_for_data"} for line in lines]
