"""Heat maps show every number, leave empty what has none, and name rows and columns without covering a name."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from src.evaluation.figures import EMPTY, PIXELS, VIRIDIS, Table, cell_image, heat_map, heat_maps, save_figure


def cell_colours(figure: Figure) -> np.ndarray:
    """What is drawn into the first axes' cells, RGBA."""
    (image,) = figure.axes[0].images
    return image.to_rgba(image.get_array())


def test_cells_without_a_number_are_empty_and_not_zero():
    values = np.array([[0.0, np.nan], [1.0, 0.5]])
    figure = heat_map(values, ["a", "b"], ["x", "y"], "t", decimals=1)
    colours = cell_colours(figure)
    assert colours[0, 1, 3] == 0, "transparent: the background shows"
    assert colours[0, 0, 3] == 1
    assert figure.axes[0].get_facecolor()[:3] == pytest.approx([0.827, 0.827, 0.827], abs=0.01), EMPTY
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.0", "1.0", "0.5"]


def test_numbers_are_legible_on_dark_and_light_cells():
    figure = heat_map(np.array([[0.0, 1.0]]), ["a"], ["x", "y"], "t", decimals=1)
    assert [text.get_color() for text in figure.axes[0].texts] == ["white", "black"]


def test_all_numbers_missing(tmp_path):
    save_figure(heat_map(np.full((2, 3), np.nan), ["a", "b"], ["x", "y", "z"], "t"), tmp_path / "new" / "empty.png")
    assert Image.open(tmp_path / "new" / "empty.png").width > 100


@pytest.mark.parametrize(
    ("columns", "upright"), [([str(t) for t in range(300)], 0), ([f"a long name {i}" for i in range(20)], 90)]
)
def test_labels_cover_no_other_label(columns, upright):
    figure = heat_map(np.zeros((2, len(columns))), ["a", "b"], columns, "t")
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert {label.get_rotation() for label in labels} == {upright}
    names = figure.axes[0].get_yticklabels()
    assert all(name.get_window_extent().x0 >= 0 for name in names)


def test_several_maps_share_one_scale_and_may_differ_in_shape():
    tables = {
        "p": Table(np.array([[0.2, 0.3]]), ["a"], ["x", "y"]),
        "q": Table(np.array([[0.9], [np.nan]]), ["a", "b"], ["x"]),
        "r": Table(np.array([[0.1]]), ["a"], ["x"]),
    }
    figure = heat_maps(tables, "t", across=2)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in maps] == ["p", "q", "r"]
    assert {axes.images[0].get_clim() for axes in maps} == {(0.1, 0.9)}


def test_an_image_of_cells_has_the_scales_ends_where_the_values_are():
    image = cell_image(np.array([[0.0, 0.5], [0.25, 0.9]]), ["first", "second"], ["x", "y"], "t", (0, 0.5))
    width, height = PIXELS
    corners = {
        (row, column): tuple(image[height * (2 + row) + 1, column * width - 2 * width + 1])
        for row in (0, 1)
        for column in (0, 1)
    }
    assert corners[0, 0] == VIRIDIS[0]
    assert corners[1, 0] == VIRIDIS[2], "half of the scale"
    assert corners[0, 1] == corners[1, 1] == VIRIDIS[-1], "and above its end"
