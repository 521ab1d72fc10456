"""Choices laid back onto the picture: from rows of tokens, from windows, from decisions for a whole frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sam2.modeling.backbones.utils import window_partition
from torch import Tensor, nn

from src.demo.expert_maps import Choices, TokenGrid, draw_expert_map, mean_share, record_expert_maps
from src.lora.moe_layer import MoELoRALinear

GRID = TokenGrid(image_size=64, memory_stride=16, encoder_strides=(4, 8, 16, 32))  # 4 × 4 tokens of memory attention


class OneLayer(nn.Module):
    """A layer whose router sends token x to expert argmax(x), and to the one before it with the smaller weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = MoELoRALinear(nn.Linear(4, 4), num_experts=4, rank=1)
        self.layer.gate.weight.data = 3 * torch.eye(4) + torch.eye(4).roll(-1, 0)
        self.layer.gate.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def tokens(experts_hw: np.ndarray) -> Tensor:
    """An image of tokens, (1, h, w, 4), that are to go to these experts."""
    return torch.eye(4)[torch.from_numpy(experts_hw)][None]


def routed(model: OneLayer, *inputs: Tensor) -> dict[str, Choices]:
    with torch.no_grad(), record_expert_maps(model, GRID) as maps:
        for x in inputs:
            model(x)
        return maps.take()


@pytest.fixture
def wanted() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (4, 4))


class TestPlaces:
    def test_rows_of_tokens(self, wanted):
        choices = routed(OneLayer(), tokens(wanted).flatten(1, 2))["layer"]
        share = choices.share()
        assert choices.names == ["0", "1", "2", "3"]
        assert np.array_equal(share.argmax(-1), wanted)
        strong = float(torch.tensor([3.0, 1.0]).softmax(0)[0])
        assert np.allclose(np.sort(share, axis=-1), [0, 0, 1 - strong, strong], atol=1e-3)

    @pytest.mark.parametrize(("side", "window"), [(16, 8), (8, 3), (4, 4), (16, 5)])
    def test_windows_with_and_without_padding(self, side, window):
        wanted = np.random.default_rng(1).integers(0, 4, (side, side))
        windows, _ = window_partition(tokens(wanted), window)
        assert np.array_equal(routed(OneLayer(), windows)["layer"].share().argmax(-1), wanted)

    def test_calls_of_several_objects_are_averaged(self, wanted):
        calls = tokens(wanted).flatten(1, 2), tokens((wanted + 2) % 4).flatten(1, 2)
        share = routed(OneLayer(), *calls)["layer"].share()
        one, other = (routed(OneLayer(), call)["layer"].share() for call in calls)
        assert np.allclose(share, (one + other) / 2, atol=1e-3)

    def test_tokens_that_are_no_places_are_left_out(self):
        memories = torch.randn(1, 2 * 16 + 4, 4)
        assert routed(OneLayer(), memories) == {}
        assert routed(OneLayer(), torch.randn(5, 4)) == {}

    def test_what_was_taken_is_forgotten_and_hooks_are_removed(self, wanted):
        model = OneLayer()
        with torch.no_grad(), record_expert_maps(model, GRID) as maps:
            model(tokens(wanted).flatten(1, 2))
            assert maps.take() and not maps.take()
        assert not model.layer._forward_pre_hooks and not model.layer.gate.recorders

    def test_layers_of_other_sides_count_the_same_in_the_mean(self):
        coarse, fine = np.full((2, 2), 1), np.full((4, 4), 3)
        layers = {str(n): routed(OneLayer(), tokens(e))["layer"] for n, e in enumerate((coarse, fine))}
        mean = mean_share(layers)
        assert mean.shape == (4, 4, 4)
        assert np.allclose(mean.sum(-1), 1, atol=1e-3)
        assert np.allclose(mean[..., 1], mean[..., 3], atol=1e-3)


class TestPictures:
    @pytest.mark.parametrize("choice", [None, "1"])
    def test_a_heat_map_shows_the_place(self, choice):
        share = np.zeros((4, 4, 2), np.float32)
        share[..., 0] = 1
        share[0, 0] = (0, 1)
        picture = draw_expert_map(np.full((64, 64, 3), 128, np.uint8), share, ["0", "1"], choice)
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        plain = draw_expert_map(np.full((64, 64, 3), 128, np.uint8), share[::-1], ["0", "1"], choice)
        differs = np.argwhere((picture != plain).any(-1))
        assert len(differs) > 1000, "the place is elsewhere"
