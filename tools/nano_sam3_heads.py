"""Heads that only pre-training has: dense questions, answered by every cell, which teach looks and words quickly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.nano_sam3_data import MOST, PictureBatch

OUTLINE = 7
"""Foreground of a cell is asked for on so many points a side."""


class TrainingHeads(nn.Module):
    """What each cell shows (after the ViT), whether it fits a phrase (before and after fusion), and of which box."""

    def __init__(self, vit_width: int, width: int, grid: int, looks: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid, self.looks = grid, looks
        self.cell = nn.Sequential(nn.LayerNorm(vit_width), nn.Linear(vit_width, 1 + sum(looks) + 4))
        self.outlines = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(vit_width), nn.Linear(vit_width, OUTLINE**2)) for _ in range(2)
        )
        self.cell_query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.phrase_key = nn.Linear(width, width)
        self.phrase_bias = nn.Linear(width, 1)
        self.fits = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.box = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))

    def cell_losses(self, states_BNC: Tensor, batch: PictureBatch, coverage_BMN: Tensor) -> dict[str, Tensor]:
        """Return losses of what each cell shows: something or nothing, its looks, its thing's box."""
        answers = self.cell(states_BNC)
        covered = coverage_BMN.transpose(1, 2)
        losses = {"something": F.binary_cross_entropy_with_logits(answers[..., 0], covered.sum(-1).clamp(0, 1))}
        most, thing = covered.max(-1)
        shown = most > 0.25
        picture = torch.arange(len(thing))[:, None].expand_as(thing)[shown]
        answers, looks, boxes = (
            answers[shown],
            batch.looks_BM3[picture, thing[shown]],
            batch.boxes_BM4[picture, thing[shown]],
        )
        start = 1
        for number, (name, count) in enumerate(zip(("colour", "shape", "texture"), self.looks, strict=True)):
            losses[name] = F.cross_entropy(answers[:, start : start + count], looks[:, number])
            start += count
        target = self._offsets(boxes, torch.nonzero(shown)[:, 1])
        losses["cell_box"] = 5 * F.l1_loss(answers[:, start:], target)
        return losses

    def outline_losses(self, states: list[Tensor], batch: PictureBatch) -> Tensor:
        """Return the loss of each cell's foreground, on 7 × 7 points, after two of the ViT's layers."""
        side = batch.owners_BHW.shape[1] // (self.grid * OUTLINE)
        something = (batch.owners_BHW > 0).float()
        parts = something.view(-1, self.grid, OUTLINE, side, self.grid, OUTLINE, side).mean((3, 6))
        target = parts.permute(0, 1, 3, 2, 4).reshape(len(something), self.grid**2, OUTLINE**2)
        losses = [
            F.binary_cross_entropy_with_logits(head(state), target)
            for head, state in zip(self.outlines, states, strict=True)
        ]
        return torch.stack(losses).sum()

    def word_loss(
        self, cells_BND: Tensor, image_of_pair: Tensor, words_PTD: Tensor, mask_PT: Tensor, target_PN: Tensor
    ) -> Tensor:
        """Return the loss of how well each cell fits each phrase, as a dot product before any fusion."""
        mask = mask_PT.float()[..., None]
        phrase_PD = (words_PTD * mask).sum(1) / mask.sum(1)
        query_PND = self.cell_query(cells_BND)[image_of_pair]
        fit_PN = torch.einsum("pnd,pd->pn", query_PND, self.phrase_key(phrase_PD)) * 2 / query_PND.shape[-1] ** 0.5
        return F.binary_cross_entropy_with_logits(fit_PN + self.phrase_bias(phrase_PD), target_PN)

    def encoder_losses(
        self, encoded_PND: Tensor, target_PN: Tensor, boxes_PM4: Tensor, coverage_PMN: Tensor
    ) -> dict[str, Tensor]:
        """Return losses after the DETR encoder: whether a cell fits the phrase, and the box of its thing."""
        losses = {"fits": F.binary_cross_entropy_with_logits(self.fits(encoded_PND).squeeze(-1), target_PN)}
        most, thing = coverage_PMN.max(1)
        pair, cell = torch.nonzero(most > 0.25, as_tuple=True)
        target = self._offsets(boxes_PM4[pair, thing[pair, cell]], cell)
        losses["encoder_box"] = (self.box(encoded_PND[pair, cell]) - target).abs().sum() / max(1, 4 * len(pair))
        return losses

    def _offsets(self, boxes_K4: Tensor, cells_K: Tensor) -> Tensor:
        """Return boxes as centre relative to the cell's, width and height: (K, 4)."""
        at = torch.stack([cells_K % self.grid, cells_K // self.grid], 1)
        centre = (boxes_K4[:, :2] + boxes_K4[:, 2:]) / 2 - (at + 0.5) / self.grid
        return torch.cat([centre, boxes_K4[:, 2:] - boxes_K4[:, :2]], 1)


def coverage_of(owners_BHW: Tensor, grid: int) -> Tensor:
    """Return the share of each cell that each thing covers: (B, M, N)."""
    numbers = torch.arange(1, MOST + 1, dtype=owners_BHW.dtype)
    each = (owners_BHW[:, None] == numbers[:, None, None]).float()
    return F.avg_pool2d(each, owners_BHW.shape[1] // grid).flatten(2)
