"""What DAVIS and SA-V score, written down once more from the definitions: pixel by pixel, from files, no shortcuts.

Perazzi et al., 2016, and Pont-Tuset et al., 2017, for the measures; for what the papers leave open (which neighbours
make an outline, the radius of the disk, the bins of decay, which objects and frames count) the behaviour of
davis2017-evaluation and of SA-V's sav_evaluator.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image


def outline(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pixels unlike the one to the right, below, or below to the right; in the last row and column, of those there are
    but the diagonal one; never the last corner."""
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            neighbours = []
            if x + 1 < width:
                neighbours.append((y, x + 1))
            if y + 1 < height:
                neighbours.append((y + 1, x))
            if len(neighbours) == 2:
                neighbours.append((y + 1, x + 1))
            if any(mask[y, x] != mask[neighbour] for neighbour in neighbours):
                found.add((y, x))
    return found


def dilated(pixels: set[tuple[int, int]], radius: int) -> set[tuple[int, int]]:
    reach = range(-radius, radius + 1)
    disk = [(dy, dx) for dy in reach for dx in reach if dy * dy + dx * dx <= radius * radius]
    return {(y + dy, x + dx) for y, x in pixels for dy, dx in disk}


def j(predicted: np.ndarray, true: np.ndarray, void: np.ndarray | None = None) -> float:
    inside, outside = 0, 0
    for at in np.ndindex(true.shape):
        if void is None or not void[at]:
            inside += bool(predicted[at] and true[at])
            outside += bool(predicted[at] or true[at])
    return inside / outside if outside else 1.0


def f(predicted: np.ndarray, true: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008) -> float:
    if void is not None:
        predicted, true = predicted & ~void, true & ~void
    radius = math.ceil(tolerance * math.sqrt(true.shape[0] ** 2 + true.shape[1] ** 2))
    found, wanted = outline(predicted), outline(true)
    if not found and not wanted:
        return 1.0
    if not found or not wanted:
        return 0.0
    precision = len(found & dilated(wanted, radius)) / len(found)
    recall = len(wanted & dilated(found, radius)) / len(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: list[float]) -> tuple[float, float, float]:
    """Mean, recall and decay of a series of frames."""
    recall = sum(value > 0.5 for value in values) / len(values)
    edges = [round(1 + (len(values) - 1) * i / 4 + 1e-10) - 1 for i in range(5)]
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return sum(values) / len(values), recall, sum(first) / len(first) - sum(last) / len(last)


def davis(truth: Path, predicted: Path) -> dict[str, float]:
    """The semi-supervised table of a data set: a folder a video, a PNG of object numbers a frame."""
    rows = []
    for video in sorted(truth.iterdir()):
        files = sorted(path.name for path in video.iterdir())
        numbers = {file: np.array(Image.open(video / file)) for file in files}
        answers = {file: np.array(Image.open(predicted / video.name / file)) for file in files}
        for number in range(1, int(numbers[files[0]].max()) + 1):
            pairs = [(answers[file] == number, numbers[file] == number) for file in files[1:-1]]
            rows.append((statistics([j(*pair) for pair in pairs]), statistics([f(*pair) for pair in pairs])))
    return table(rows)


def sav(truth: Path, predicted: Path) -> dict[str, float]:
    """SA-V's table: a folder a video, in it a folder an object, in it a PNG a frame."""
    rows = []
    for video in sorted(truth.iterdir()):
        for obj in sorted(video.iterdir()):
            pairs, met, there = [], False, False
            for file in sorted(path.name for path in obj.iterdir())[1:-1]:
                expected = np.array(Image.open(obj / file)) > 0
                found = np.array(Image.open(predicted / video.name / obj.name / file)) > 0
                met, there = met or expected.any() or found.any(), there or expected.any()
                if met:
                    pairs.append((found, expected))
            if there:
                rows.append((statistics([j(*pair) for pair in pairs]), statistics([f(*pair) for pair in pairs])))
    return table(rows)


def table(rows: list[tuple[tuple[float, float, float], tuple[float, float, float]]]) -> dict[str, float]:
    """Means over all objects of all videos."""
    (J, J_recall, J_decay), (F, F_recall, F_decay) = np.array(rows).mean(axis=0).tolist()
    return {
        "J": J, "F": F, "J&F": (J + F) / 2, "J_recall": J_recall, "J_decay": J_decay, "F_recall": F_recall,
        "F_decay": F_decay,
    }  # fmt: skip
