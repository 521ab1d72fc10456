"""Heat maps, one or several, with readable labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..core.files import write_atomically

if TYPE_CHECKING:  # matplotlib takes seconds to import, so functions import it when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 120
COLOURS = "viridis"  # even steps look even, also without colours
EMPTY = "lightgrey"  # what has no value
CELL = 0.34  # inches
CELL_WITH_NUMBER = 0.5
LETTER = 0.085  # inches a letter of a label takes
SHORT = 4  # letters; of labels this short, such as numbers, some may be left out
PIXELS = (40, 18)  # width and height of a cell of :func:`cell_image`
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
WIDE = 7.0  # inches; cells may take these to keep labels horizontal


@dataclass(frozen=True)
class Table:
    """Numbers with the names of their rows and columns; NaN where there is no number.

    Attributes:
        values_RC: (R, C).
        rows: R names.
        columns: C names.
    """

    values_RC: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]


def heat_map(
    values_RC: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    decimals: int | None = None,
    colours: str = COLOURS,
    row_title: str = "",
    column_title: str = "",
) -> Figure:
    """Draw a matrix as coloured cells with a scale beside it, as large as its labels and cells need.

    Args:
        values_RC: (R, C); NaN is an empty cell, in grey.
        row_labels: R names, from the top.
        column_labels: C names; where there is no room for all, some are left out.
        title: above it.
        unit: what the numbers are, beside the scale.
        limits: the values at the ends of the scale; None: the smallest and the largest value.
        decimals: write each number into its cell, with this many decimals; None: colours only.
        colours: a matplotlib colour map, such as ``RdBu`` for changes in both directions.
        row_title, column_title: titles of the axes.
    """
    from matplotlib.figure import Figure

    side = CELL if decimals is None else CELL_WITH_NUMBER
    level = _width_of_labels(column_labels)
    cells = max(level, side * len(column_labels)) if level <= WIDE else side * len(column_labels)
    width = max(2.2 + LETTER * max(map(len, row_labels)) + cells, LETTER * len(title) + 1)
    height = 1.3 + (0 if level <= cells else LETTER * max(map(len, column_labels))) + CELL * len(row_labels)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    table = Table(values_RC, row_labels, column_labels)
    image = _draw(axes, table, limits or _limits([table]), colours, decimals, cells)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=column_title, ylabel=row_title)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.9)
    return figure


def heat_maps(
    tables: Mapping[str, Table],
    title: str,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    row_title: str = "",
    column_title: str = "",
    across: int = 4,
) -> Figure:
    """Draw several matrices under their names, ``across`` side by side, on one scale; see :func:`heat_map`."""
    from matplotlib.figure import Figure

    columns = min(across, len(tables))
    rows = math.ceil(len(tables) / columns)
    widest = max(len(table.columns) for table in tables.values())
    tallest = max(len(table.rows) for table in tables.values())
    width, height = min(6.0, max(2.4, 0.6 + 0.22 * widest)), max(1.4, 0.7 + 0.17 * tallest)
    figure = Figure(figsize=(columns * width + 1.2, rows * height + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(tables) :]:
        axes.remove()
    shared = limits or _limits(list(tables.values()))
    for axes, (name, table) in zip(grid.flat, tables.items(), strict=False):
        image = _draw(axes, table, shared, COLOURS, None, width - 0.6)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(column_title, fontsize=9)
    figure.supylabel(row_title, fontsize=9)
    figure.colorbar(image, ax=list(grid.flat[: len(tables)]), label=unit, shrink=0.8 if rows > 1 else 1.0, aspect=30)
    return figure


def cell_image(
    values_RC: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    limits: tuple[float, float],
) -> np.ndarray:
    """Draw a matrix as coloured cells with their numbers; plainer than :func:`heat_map`, and at once.

    Args:
        values_RC: (R, C), finite.
        row_labels: R names, from the top.
        column_labels: C names.
        title: above it.
        limits: the values at the ends of the colour scale.

    Returns:
        uint8 (H, W, 3).
    """
    lowest, highest = limits
    shares_RC = ((values_RC - lowest) / (highest - lowest)).clip(0, 1)
    stops = np.linspace(0, 1, len(VIRIDIS))
    colours_RC3 = np.stack([np.interp(shares_RC, stops, stop) for stop in zip(*VIRIDIS, strict=True)], -1)
    font, measure = ImageFont.load_default(), ImageDraw.Draw(Image.new("L", (1, 1)))
    margin = 8 + int(max(measure.textlength(label, font) for label in row_labels))
    width, height = PIXELS
    size = (
        max(margin + width * len(column_labels), 8 + int(measure.textlength(title, font))),
        height * (2 + len(row_labels)),
    )
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.text((4, height // 2), title, "black", font, anchor="lm")
    for column, label in enumerate(column_labels):
        pen.text((margin + width * (column + 0.5), 1.5 * height), label, "black", font, anchor="mm")
    for row, label in enumerate(row_labels):
        top = height * (2 + row)
        pen.text((margin - 4, top + height / 2), label, "black", font, anchor="rm")
        for column, (value, colour) in enumerate(zip(values_RC[row], colours_RC3[row], strict=True)):
            left = margin + width * column
            pen.rectangle((left, top, left + width - 1, top + height - 1), tuple(colour.round().astype(int).tolist()))
            ink = "white" if shares_RC[row, column] < 0.6 else "black"
            pen.text((left + width / 2, top + height / 2), f"{value:.2f}", ink, font, anchor="mm")
    return np.asarray(picture)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all; its folder is made if missing."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


def _draw(
    axes: Axes, table: Table, limits: tuple[float, float], colours: str, decimals: int | None, width: float
) -> AxesImage:
    """Draw into axes that are about ``width`` inches wide."""
    values_RC: np.ma.MaskedArray = np.ma.array(table.values_RC, float, mask=~np.isfinite(table.values_RC))
    axes.set_facecolor(EMPTY)
    image = axes.imshow(values_RC, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set_yticks(range(len(table.rows)), table.rows)
    step, upright = _ticks(table.columns, width)
    labelled = range(0, len(table.columns), step)
    axes.set_xticks(labelled, [table.columns[i] for i in labelled], rotation=90 if upright else 0)
    axes.tick_params(length=0)
    if decimals is not None:
        colours_RC4 = image.to_rgba(values_RC)
        for row, column in np.argwhere(~values_RC.mask).tolist():
            ink, value = _ink(colours_RC4[row, column]), values_RC[row, column]
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=8, color=ink)
    return image


def _width_of_labels(labels: Sequence[str]) -> float:
    """Return the inches that horizontal labels take side by side."""
    return (LETTER * max(map(len, labels)) + 0.1) * len(labels)


def _ticks(labels: Sequence[str], width: float) -> tuple[int, bool]:
    """Return the columns between labels, and whether labels stand upright, so that none covers another."""
    level = _width_of_labels(labels)
    if level <= width:
        return 1, False
    if max(map(len, labels)) <= SHORT:
        return math.ceil(level / width), False
    return math.ceil(0.18 * len(labels) / width), True


def _ink(colour_4: np.ndarray) -> str:
    """Return black for light cells, white for dark ones, by the luma of ITU-R BT.601."""
    return "black" if colour_4[:3] @ (0.299, 0.587, 0.114) > 0.5 else "white"


def _limits(tables: Sequence[Table]) -> tuple[float, float]:
    """Return the smallest and the largest number; 0 and 1 where there is none."""
    values_N = np.concatenate([np.asarray(table.values_RC, float).ravel() for table in tables])
    finite = values_N[np.isfinite(values_N)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
