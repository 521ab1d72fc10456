"""What a run wrote of its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """What ``steps.jsonl`` says, step by step."""
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
