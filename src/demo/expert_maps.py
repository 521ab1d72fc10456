"""Expert maps: the routers' selections, drawn over the picture whose tokens they routed.

    with record_expert_maps(model, grid) as maps:
        prediction, bank = tracker.step(frame, bank, prompts)
        chosen = maps.take()                        # layer → its selections on this frame
    share_hw = chosen[layer].share()[..., expert]

A layer has a map where its tokens are those of a feature map. That is all of memory attention but the keys and values
of memories, and the image encoder, whose windows are joined again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..data.drawing import COLOURS
from ..evaluation.expert_utilization import choice_names
from ..lora.moe_layer import MoELoRALinear
from ..lora.recording import RouterCall, RoutingRecord, record_routing


@dataclass(frozen=True)
class TokenGrid:
    """Where a model's tokens are on its image.

    Attributes:
        image_size: the image's side in pixels.
        memory_stride: pixels between tokens of memory attention; None without memory.
        encoder_strides: pixels between tokens of the encoder's feature maps, finest first.
    """

    image_size: int
    memory_stride: int | None
    encoder_strides: tuple[int, ...]


@dataclass(frozen=True)
class Choices:
    """One layer's selections on a frame, in C calls: one an object in memory attention.

    Attributes:
        names: names of the E* choices: the experts' numbers, and ``null``.
        chosen_ChwK: uint8, the K experts selected at each place.
        weights_ChwK: float16, their weights, which sum to 1.
    """

    names: list[str]
    chosen_ChwK: np.ndarray
    weights_ChwK: np.ndarray

    def share(self) -> np.ndarray:
        """Return each choice's weight at each place, (h, w, E*), the mean over calls."""
        share_ChwE = np.zeros((*self.chosen_ChwK.shape[:3], len(self.names)), np.float32)
        np.put_along_axis(share_ChwE, self.chosen_ChwK.astype(np.int64), self.weights_ChwK.astype(np.float32), axis=-1)
        return np.asarray(share_ChwE.mean(axis=0))


class ExpertMapRecorder:
    """Collects selections while a model runs; made by :func:`record_expert_maps`."""

    def __init__(self, routing: RoutingRecord, layers: Mapping[str, MoELoRALinear], grid: TokenGrid) -> None:
        self._routing, self._layers, self._grid = routing, layers, grid
        self._shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in layers}

    def note_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Note the shape (…, D) of an input that a layer is about to route."""
        self._shapes[name].append(shape[:-1])

    def take(self) -> dict[str, Choices]:
        """Return the selections since the last call, by layer name without group, in the model's order.

        Layers that did not run, or whose tokens are not places on the image, are left out.
        """
        found = {}
        for name, layer in self._layers.items():
            calls = zip(self._shapes[name], self._routing.calls[name], strict=True)
            grids = [on_grid for shape, call in calls if (on_grid := _as_grids(shape, call, self._grid))]
            if grids:
                chosen, weights = (np.concatenate(parts) for parts in zip(*grids, strict=True))
                found[name.partition(".groups.")[0]] = Choices(choice_names(layer.gate), chosen, weights)
            self._shapes[name].clear()
        self._routing.clear()
        return found


@contextmanager
def record_expert_maps(model: nn.Module, grid: TokenGrid) -> Iterator[ExpertMapRecorder]:
    """Record where the routers of a model select which experts, while the block runs."""
    with record_routing(model) as routing, ExitStack() as stack:
        layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELoRALinear)}
        maps = ExpertMapRecorder(routing, layers, grid)
        for name, layer in layers.items():

            def note(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                if module.enabled:
                    maps.note_shape(name, tuple(inputs[0].shape))

            stack.callback(layer.register_forward_pre_hook(note).remove)
        yield maps


def mean_share(layers: Mapping[str, Choices]) -> np.ndarray:
    """Return the mean of the layers' shares, (h, w, E*) of the finest; all have the same number of choices."""
    shares = [choices.share() for choices in layers.values()]
    side = max(len(share) for share in shares)
    scaled = [np.kron(share, np.ones((side // len(share), side // len(share), 1))) for share in shares]
    return np.asarray(np.mean(scaled, axis=0))


def draw_expert_map(frame_HWC: np.ndarray, share_hwE: np.ndarray, names: list[str], choice: str | None) -> np.ndarray:
    """Draw a frame with a heat map of one choice's share over it, or coloured by the largest share.

    Args:
        frame_HWC: RGB, uint8.
        share_hwE: shares as of :func:`mean_share`.
        names: names of the E* choices.
        choice: one of them; None for the largest.

    Returns:
        RGB uint8, with a scale or a legend beside the picture.
    """
    height, width = frame_HWC.shape[:2]
    figure = Figure(figsize=(7.2, max(2.4, min(9.0, 6.0 * height / width))), dpi=100, layout="constrained")
    axes = figure.subplots()
    grey_HW = frame_HWC.mean(axis=-1)
    axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    if choice is None:
        _draw_largest(axes, share_hwE, names, (0, width, height, 0))
    else:
        image = axes.imshow(
            share_hwE[..., names.index(choice)], cmap="inferno", vmin=0, vmax=1, alpha=0.6, extent=(0, width, height, 0)
        )
        figure.colorbar(image, ax=axes, label=f"share of expert {choice}", shrink=0.9)
    axes.set_axis_off()
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its methods without types
    canvas.draw()
    picture_HWC: np.ndarray = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture_HWC


def _draw_largest(
    axes: Axes, share_hwE: np.ndarray, names: list[str], extent: tuple[float, float, float, float]
) -> None:
    largest_hw = share_hwE.argmax(axis=-1)
    colours = ListedColormap(_distinct(len(names)))
    axes.imshow(largest_hw, cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, alpha=0.55, extent=extent)
    for number in np.unique(largest_hw).tolist():
        part = (largest_hw == number).mean()
        axes.scatter([], [], marker="s", color=colours(number), label=f"{names[number]}  {part:.0%}")
    axes.legend(title="expert, part of the picture", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _as_grids(shape: tuple[int, ...], call: RouterCall, grid: TokenGrid) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a call's selections and weights as (B, h, w, K); None where its tokens are not places on the image."""
    side = grid.image_size // grid.memory_stride if grid.memory_stride else 0
    if side and len(shape) == 2 and shape[1] == side * side:
        windows, inner, shape = 1, side, (shape[0], side, side)
    elif len(shape) == 3:
        # the encoder's windows are of one image; padding is below and to the right
        windows = math.isqrt(shape[0])
        sides = (grid.image_size // stride for stride in grid.encoder_strides)
        inner = max((side for side in sides if side <= windows * shape[1]), default=0)
    else:
        return None
    chosen_NK = call.selected_NK()
    weights_NK = call.logits_NE.gather(1, chosen_NK).softmax(dim=1)
    return (
        _on_grid(chosen_NK.to(torch.uint8), shape, windows)[:, :inner, :inner],
        _on_grid(weights_NK.half(), shape, windows)[:, :inner, :inner],
    )


def _on_grid(values_NK: Tensor, shape: tuple[int, ...], windows: int) -> np.ndarray:
    """Return values of tokens as (B, h, w, K); an image has ``windows`` to each side."""
    _, height, width = shape
    values = values_NK.reshape(-1, windows, windows, height, width, values_NK.shape[-1])
    return values.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2).cpu().numpy()


def _distinct(count: int) -> np.ndarray:
    """Return ``count`` colours, (count, 3) in 0–1: those of the masks first, then darker ones."""
    rounds = math.ceil(count / len(COLOURS))
    return np.concatenate([COLOURS / 255 * 0.65**n for n in range(rounds)])[:count]
