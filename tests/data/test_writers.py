"""What is written is read back: masks with their numbers, and whole data sets in every format."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from src.data.writers import davis_palette, write_palette_png
from src.errors import UserError


class TestPalettePng:
    def test_numbers_are_palette_indices_in_the_colours_of_davis(self, tmp_path):
        ids = np.array([[0, 1, 2], [3, 20, 255]])
        write_palette_png(tmp_path / "deep" / "m.png", ids)
        with Image.open(tmp_path / "deep" / "m.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.array(image), ids)
            colours = np.array(image.convert("RGB"))
        # as published with the benchmark
        assert colours[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
        assert colours[1].tolist() == [[128, 128, 0], [0, 64, 128], [224, 224, 192]]

    def test_no_two_numbers_share_a_colour(self):
        assert len({tuple(colour) for colour in davis_palette().tolist()}) == 256

    def test_numbers_beyond_the_palette_become_16_bit(self, tmp_path):
        ids = np.array([[0, 1, 3002]], dtype=np.int64)
        write_palette_png(tmp_path / "m.png", ids)
        with Image.open(tmp_path / "m.png") as image:
            assert image.mode.startswith("I")
            assert np.array_equal(np.array(image), ids)

    @pytest.mark.parametrize("wrong", [-1, 65_536])
    def test_other_numbers_are_refused(self, tmp_path, wrong):
        with pytest.raises(UserError, match=rf"m\.png: object numbers .* not to {wrong}"):
            write_palette_png(tmp_path / "m.png", np.array([[0, wrong]]))
        assert list(tmp_path.iterdir()) == []
