"""Masks drawn into pictures."""

from __future__ import annotations

import numpy as np

from src.data.drawing import draw_masks


def test_masks_are_tinted_and_the_rest_is_left_alone():
    picture = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = draw_masks(picture, {1: mask})
    assert (drawn[~mask] == 100).all()
    assert (drawn[mask] != 100).any(axis=-1).all()
    assert not np.array_equal(drawn[5, 5], drawn[10, 10]), "the outline stands out"
    assert not np.array_equal(draw_masks(picture, {2: mask})[5, 5], drawn[5, 5]), "objects differ in colour"
    assert (picture == 100).all()
