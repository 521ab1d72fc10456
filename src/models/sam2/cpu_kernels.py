"""Fast CPU kernels for parts of SAM 2: the same numbers without copies, and dropout that a CPU draws faster.

A module becomes fast by taking a class derived from its own, so that names, weights and settings stay as they are. What
is compiled stays as SAM 2 has it: a compiler merges such steps itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .patches import FunctionOverride, take_classes

LEVELS = 2**16  # values of the random numbers that decide what is dropped
SCORES_AT_ONCE = 2**18  # so many, worked on one step after another, stay in a CPU's cache


def use_fast_cpu_kernels(model: nn.Module) -> None:
    """Spare copies that change no number: of positions for each frame, and of the encoder's learned positions."""
    take_classes(model, {PositionEmbeddingSine: SharedPositions, Hiera: CachedPositionsHiera})


def use_fast_dropout(model: nn.Module) -> None:
    """Draw dropout in ``nn.Dropout`` and in SAM 2's rotary attention from faster random numbers, on a CPU."""
    take_classes(model, {nn.Dropout: FastDropout, RoPEAttention: FastRoPEAttention})


def use_reference_kernels(model: nn.Module) -> None:
    """Undo both, so that a model is SAM 2's own again, to compare with."""
    take_classes(model, {type(m): type(m).__bases__[0] for m in model.modules() if type(m).__module__ == __name__})


class SharedPositions(PositionEmbeddingSine):
    """SAM 2's sine positions (N, C, h, w), all N as views of the same memory, where SAM 2 copies them."""

    def forward(self, x: Tensor) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(x)
        size = x.shape[-2], x.shape[-1]
        if size not in self.cache:
            with torch.inference_mode(False):  # what is kept may be used in training later
                super().forward(x.detach()[:1])
        return self.cache[size].to(x.device).expand(len(x), -1, -1, -1)


class CachedPositionsHiera(Hiera):
    """SAM 2's image encoder, which makes its learned positions for an image size once, while they do not change.

    On a CPU only, where comparing them takes nothing beside making them.
    """

    def _get_pos_embed(self, hw: tuple[int, int]) -> Any:
        sources = self.pos_embed, self.pos_embed_window
        trains = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        if trains or torch.compiler.is_compiling() or not all(source.is_cpu for source in sources):
            return super()._get_pos_embed(hw)
        kept, key = self.__dict__.setdefault("_cached_positions", {}), (*hw, self.pos_embed.dtype)
        if key not in kept or not all(map(torch.equal, kept[key][:-1], sources)):
            with torch.inference_mode(False), torch.no_grad():
                kept[key] = *(source.clone() for source in sources), super()._get_pos_embed(hw)
        return kept[key][-1]


class FastDropout(nn.Dropout):
    """``nn.Dropout``, which on a CPU drops with the multiple of 1 / 65,536 next to its probability.

    It keeps one byte for each number, and scales by what that probability asks for. Seeded by torch's generator.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or not x.is_cpu or self.inplace:
            return super().forward(x)
        dropped: Tensor = _Dropout.apply(x, _levels(self.p))
        return dropped


class FastRoPEAttention(RoPEAttention):
    """RoPEAttention, whose dropout in float32 on a CPU is that of :func:`attention_with_dropout`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Any:
        if not self.training or self.dropout_p in (0, 1) or not q.is_cpu:
            return super().forward(q, k, v, num_k_exclude_rope)
        with FunctionOverride(F.scaled_dot_product_attention, attention_with_dropout, _drops_in_float32):
            return super().forward(q, k, v, num_k_exclude_rope)


def attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """``F.scaled_dot_product_attention`` with dropout, in the time that a CPU takes for it without.

    Scores are normalised and dropped a few rows at a time, while they are in the cache. For the backward pass they are
    kept twice, with and without dropout. The probability is rounded as by :class:`FastDropout`.

    Args:
        q, k, v: (…, N, D), (…, M, D) and (…, M, O) with the same leading shape.
        dropout_p: probability for each of the N x M scores after the softmax, 0 ≤ dropout_p < 1.

    Returns:
        (…, N, O).
    """
    flat = (tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (q, k, v))
    out: Tensor = _Attention.apply(*flat, _levels(dropout_p))
    return out.view(*q.shape[:-1], v.shape[-1])


def _drops_in_float32(args: Any, kwargs: Any) -> bool:
    return bool(args[0].dtype == torch.float32 and set(kwargs) == {"dropout_p"})


class _Kept:
    """Draws which numbers dropout keeps, from numpy's fastest generator, seeded by torch's.

    Args:
        dropped: how many of 65,536 numbers are dropped.
    """

    def __init__(self, dropped: int) -> None:
        self.bits = np.random.SFC64(int(torch.randint(2**62, ())))
        self.least = dropped - LEVELS // 2

    def draw(self, shape: torch.Size) -> Tensor:
        """Return the next ones, bool."""
        raw = self.bits.random_raw(-(-shape.numel() // 4)).view(np.int16)
        return torch.from_numpy(raw)[: shape.numel()].view(shape) >= self.least


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        kept = _Kept(dropped).draw(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = _scale(dropped)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * ctx.saved_tensors[0]).mul_(ctx.scale), None


class _Attention(torch.autograd.Function):
    """Attention with dropout, of q (B, N, D), k (B, M, D) and v (B, M, O)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropped: int) -> Tensor:
        scores_BNM = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
        dropped_BNM = torch.empty_like(scores_BNM)
        kept = _Kept(dropped)
        for rows, dropped_rows in _few_rows(scores_BNM, dropped_BNM):
            torch.softmax(rows, dim=-1, out=rows)
            torch.mul(rows, kept.draw(rows.shape), out=dropped_rows)
        out = (dropped_BNM @ v).mul_(_scale(dropped))
        ctx.save_for_backward(q, k, v, scores_BNM, dropped_BNM, out)
        ctx.scale = _scale(dropped)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, scores_BNM, dropped_BNM, out = ctx.saved_tensors
        of_softmax = (grad * out).sum(dim=-1, keepdim=True)
        scaled = grad * ctx.scale
        of_scores_BNM = scaled @ v.transpose(1, 2)
        tensors = of_scores_BNM, dropped_BNM, scores_BNM, of_softmax
        for found, after_dropout, before, summed in _few_rows(*tensors):
            found.mul_(after_dropout).addcmul_(before, summed, value=-1)
        of_q = (of_scores_BNM @ k).mul_(q.shape[-1] ** -0.5)
        of_k = (of_scores_BNM.transpose(1, 2) @ q).mul_(q.shape[-1] ** -0.5)
        return of_q, of_k, dropped_BNM.transpose(1, 2) @ scaled, None


def _levels(p: float) -> int:
    """Return how many of the random numbers drop something; never all of them."""
    return min(round(p * LEVELS), LEVELS - 1)


def _scale(dropped: int) -> float:
    """Return the factor of numbers that are kept."""
    return LEVELS / (LEVELS - dropped)


def _few_rows(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut contiguous tensors (B, N, …) into views of the same rows, so few that they fit into the cache together."""
    rows = max(1, SCORES_AT_ONCE // first.shape[-1])
    return zip(*(tensor.view(-1, tensor.shape[-1]).split(rows) for tensor in (first, *others)), strict=True)
