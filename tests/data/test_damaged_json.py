"""Whatever a JSON file holds, it is read, with issues, or refused in words; nothing else is raised."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import UserError
from src.data.records import DataSet
from src.data.synthetic import SOURCE, make_videos
from tests.sources import open_sav, open_ytvis
from tests.writers import write_sav, write_tracked_coco, write_ytvis

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7.5,
    1e300,
    float("nan"),
    "",
    "x",
    "../x",
    "\0",
    "9" * 400,
    [],
    [[]],
    {},
    [None],
]
"""What may stand where something else should."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    data = DataSet("x", make_videos(SOURCE, 2, 0, frames=5, side=32).videos)
    folder = tmp_path_factory.mktemp("sets")
    for name, write in {"tracks": write_ytvis, "images": write_tracked_coco, "sav": write_sav}.items():
        write(folder / name, data)
    return folder


def damaged(content: Any, seed: int) -> Any:
    """One to three values of a JSON, anywhere in it, replaced or taken out."""
    draw = random.Random(seed)
    content = copy.deepcopy(content)
    for _ in range(draw.randint(1, 3)):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(at[key], (dict, list)) and at[key] and draw.random() < 0.8:
                at = at[key]
                continue
            if draw.random() < 0.2:
                del at[key]
            else:
                at[key] = draw.choice(ODD)
            break
    return content


@pytest.mark.parametrize("kind", ["tracks", "images", "sav"])
@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 3000), marks=pytest.mark.slow)])
def test_nothing_but_user_errors_and_findings(kind, seeds, sets, tmp_path):
    for seed in seeds:
        check(kind, seed, sets, tmp_path)


def check(kind: str, seed: int, sets: Path, tmp_path: Path) -> None:
    folder = sets / kind
    file = sorted(folder.glob("*.json"))[0]
    changed = tmp_path / file.name
    changed.write_text(json.dumps(damaged(json.loads(file.read_text()), seed)))
    try:
        source = (open_sav if kind == "sav" else open_ytvis)(folder, changed)
    except UserError as error:
        assert str(changed) in str(error)
        return
    for index in range(len(source)):
        record, issues = source.read(index)
        assert record is not None or issues
        assert all("\n" not in str(issue) and len(str(issue)) < 1000 for issue in [*source.issues, *issues])
        if record is not None:
            for t in range(len(record)):
                assert all(mask.shape == (record.height, record.width) for mask in record.masks(t).values())
