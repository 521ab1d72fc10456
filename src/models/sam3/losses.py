"""Losses of concepts: boxes and scores on every decoder layer, masks on the last.

Queries are matched with instances one to one, layer by layer (DETR, Carion et al. 2020). Every function returns sums
that :func:`concept_losses` divides by totals of the whole batch, so that parts of a batch add up to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import Sam3Model

from ...data.concepts.types import ConceptBatch
from ..protocols import Features
from .forward import ConceptOutput, encode_images, encode_phrases, forward_concepts, to_centres

MOST_POINTS = 12544
"""Points at which a mask's loss is computed, at most: 112 × 112, as in Mask2Former."""

OVERSAMPLED, UNCERTAIN = 3, 0.75
"""Points drawn for each one that is used, and the share of those used where the mask is least sure (PointRend)."""


class LossWeights(Protocol):
    """The weights of a run's losses."""

    score: float
    presence: float
    box: float
    giou: float
    mask: float
    dice: float


@dataclass(frozen=True)
class ConceptTotals:
    """What a part of a batch needs to know of the whole batch: its instances and its pairs."""

    instances: int
    pairs: int

    @classmethod
    def from_batch(cls, batch: ConceptBatch) -> ConceptTotals:
        """Return those of a batch that is in one part."""
        return cls(sum(map(len, batch.boxes)), len(batch.phrases))


@dataclass(frozen=True)
class Matches:
    """K matched queries: int64 (K,) layer, pair, query and instance each, with the instance's box (K, 4)."""

    layer: Tensor
    pair: Tensor
    query: Tensor
    instance: Tensor
    boxes_K4: Tensor


def concept_losses(
    model: Sam3Model,
    weights: LossWeights,
    batch: ConceptBatch,
    totals: ConceptTotals | None = None,
    features: Features | None = None,
    enable_segmentation: bool = True,
) -> dict[str, Tensor]:
    """Run the training forward and the losses.

    Args:
        model: transformers' own, with adapters or without.
        weights: of the parts in the total.
        batch: images, phrases and what they mean.
        totals: of the whole batch where this is a part of it.
        features: of :func:`~src.models.sam3.forward.encode_images`, where they are kept.
        enable_segmentation: False leaves out masks and the mask head.

    Returns:
        ``total`` with graph, and its parts ``score, presence, box, giou, mask, dice`` without weight, detached.
    """
    totals = totals or ConceptTotals.from_batch(batch)
    features = encode_images(model, batch.images_BHWC) if features is None else features
    text = encode_phrases(model, batch.phrases)
    counts_P = torch.tensor([len(boxes) for boxes in batch.boxes])
    output = forward_concepts(
        model,
        features,
        batch.image_of_pair,
        text,
        batch.exemplars_PX4,
        batch.exemplar_labels_PX,
        masks=torch.nonzero(counts_P).squeeze(1) if enable_segmentation else False,
    )
    boxes = [each.to(output.boxes_LPQ4.device) for each in batch.boxes]
    matches = match(output, boxes)
    left_out_PQ, unknown_P = _left_out(output, batch, counts_P)
    instances, pairs = max(1, totals.instances), max(1, totals.pairs)
    parts = {
        "score": score_loss(output.logits_LPQ, matches, counts_P, left_out_PQ) / instances,
        "presence": presence_loss(output.presence_LP, counts_P, unknown_P) / pairs,
        **{name: loss / instances for name, loss in box_losses(output.boxes_LPQ4, matches).items()},
    }
    if enable_segmentation:
        parts |= {name: loss / instances for name, loss in _mask_losses(output, matches, batch, counts_P).items()}
    factors = {
        "score": weights.score, "presence": weights.presence, "box": weights.box, "giou": weights.giou,
        "mask": weights.mask, "dice": weights.dice,
    }  # fmt: skip
    total = torch.stack([factors[name] * loss for name, loss in parts.items()]).sum()
    return {"total": total, **{name: loss.detach() for name, loss in parts.items()}}


@torch.no_grad()
def match(
    output: ConceptOutput, boxes: list[Tensor], score: float = 2.0, l1: float = 5.0, giou: float = 2.0
) -> Matches:
    """Give each instance the query of least cost, layer by layer (Hungarian matching; weights of Deformable DETR).

    Args:
        output: what was found.
        boxes: of each pair's instances, (n, 4) corners in 0–1, no more than there are queries.
        score, l1, giou: weights of probability, distance of boxes, and generalised IoU in the cost.
    """
    device = output.boxes_LPQ4.device
    layers, pairs, queries, instances, targets = [], [], [], [], []
    for pair, target_n4 in enumerate(boxes):
        if not len(target_n4):
            continue
        found_LQ4 = output.boxes_LPQ4[:, pair].float()
        distance = (to_centres(found_LQ4)[:, :, None] - to_centres(target_n4)).abs().sum(-1)
        overlap = generalised_iou(found_LQ4[:, :, None], target_n4)
        cost_LQn = l1 * distance - giou * overlap - score * output.logits_LPQ[:, pair, :, None].float().sigmoid()
        for layer, cost_Qn in enumerate(torch.nan_to_num(cost_LQn, nan=1e6).cpu().numpy()):
            query, instance = linear_sum_assignment(cost_Qn)
            layers += [layer] * len(query)
            pairs += [pair] * len(query)
            queries += query.tolist()
            instances += instance.tolist()
            targets.append(target_n4[instance])
    numbers = [torch.tensor(each, dtype=torch.long, device=device) for each in (layers, pairs, queries, instances)]
    found_K4 = torch.cat(targets) if targets else torch.zeros(0, 4, device=device)
    return Matches(numbers[0], numbers[1], numbers[2], numbers[3], found_K4)


def score_loss(
    logits_LPQ: Tensor, matches: Matches, counts_P: Tensor, left_out_PQ: Tensor | None = None,
    alpha: float = 0.25, gamma: float = 2.0,
) -> Tensor:  # fmt: skip
    """Return the focal loss of whether queries are instances (Lin et al. 2017), of phrases that are there.

    A query's score is given that the phrase is there; whether it is, is for presence to say (SAM 3, Carion et al.
    2025). So absent phrases take no part.
    """
    logits = logits_LPQ.float()
    target = torch.zeros_like(logits)
    target[matches.layer, matches.pair, matches.query] = 1
    weight_PQ = (counts_P > 0).to(logits)[:, None].expand(-1, logits.shape[-1])
    if left_out_PQ is not None:
        weight_PQ = weight_PQ * (~left_out_PQ)
    weight = torch.where(target > 0, torch.ones_like(target), weight_PQ)
    return (focal_loss(logits, target, gamma, alpha) * weight).sum()


def presence_loss(presence_LP: Tensor, counts_P: Tensor, unknown_P: Tensor | None = None) -> Tensor:
    """Return the cross entropy of whether phrases are there (SAM 3), without those of which it is not known."""
    logits = presence_LP.float()
    target = (counts_P > 0).to(logits).expand_as(logits)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses if unknown_P is None else losses * (~unknown_P).to(losses)).sum()


def box_losses(boxes_LPQ4: Tensor, matches: Matches) -> dict[str, Tensor]:
    """Return L1 of centre and size (DETR) and 1 - generalised IoU (Rezatofighi et al. 2019) of matched boxes."""
    found = boxes_LPQ4[matches.layer, matches.pair, matches.query].float()
    return {
        "box": (to_centres(found) - to_centres(matches.boxes_K4)).abs().sum(),
        "giou": (1 - generalised_iou(found, matches.boxes_K4)).sum(),
    }


def mask_losses(logits_Khw: Tensor, masks_KHW: Tensor, known_KHW: Tensor, points_KN2: Tensor) -> dict[str, Tensor]:
    """Return focal and dice loss (Milletari et al. 2016) of masks at points (Mask2Former, Cheng et al. 2022).

    Args:
        logits_Khw: of masks.
        masks_KHW: what they should be, float.
        known_KHW: float, 0 where nothing is known.
        points_KN2: x and y in 0–1, where they are compared.
    """
    logits_KN = sample(logits_Khw.float(), points_KN2)
    target_KN, known_KN = sample(masks_KHW, points_KN2), (sample(known_KHW, points_KN2) > 0.5).float()
    number_K = known_KN.sum(1).clamp(min=1)
    found_KN, wanted_KN = logits_KN.sigmoid() * known_KN, target_KN * known_KN
    overlap_K = (2 * (found_KN * wanted_KN).sum(1) + 1) / (found_KN.sum(1) + wanted_KN.sum(1) + 1)
    return {
        "mask": ((focal_loss(logits_KN, target_KN, 2.0, 0.25) * known_KN).sum(1) / number_K).sum(),
        "dice": (1 - overlap_K).sum(),
    }


@torch.no_grad()
def draw_points(logits_hw: Tensor, generator: torch.Generator) -> Tensor:
    """Return points (N, 2) at which a mask is compared: three of four where it is least sure (PointRend).

    They are drawn on the CPU, so that every device has the same ones.
    """
    number = min(MOST_POINTS, logits_hw.numel())
    drawn = torch.rand(OVERSAMPLED * number, 2, generator=generator).to(logits_hw.device)
    doubt = -sample(logits_hw[None].float(), drawn[None])[0].abs()
    chosen = doubt.topk(int(UNCERTAIN * number)).indices
    rest = torch.rand(number - len(chosen), 2, generator=generator).to(logits_hw.device)
    return torch.cat([drawn[chosen], rest])


def _mask_losses(output: ConceptOutput, matches: Matches, batch: ConceptBatch, counts_P: Tensor) -> dict[str, Tensor]:
    """Return mask losses of the last layer's matched queries; points depend on the image, phrase and instance alone."""
    if output.masks_KQhw is None:
        zero = output.logits_LPQ.sum() * 0.0
        return {"mask": zero, "dice": zero}
    last = (matches.layer == len(output.logits_LPQ) - 1).nonzero().squeeze(1)
    row_of_pair = (torch.cumsum(counts_P > 0, 0) - 1).to(last.device)
    sums: dict[str, Tensor] = {}
    for k in last.tolist():
        pair, instance = int(matches.pair[k]), int(matches.instance[k])
        logits_hw = output.masks_KQhw[row_of_pair[pair], matches.query[k]]
        mask_HW = batch.masks[pair][instance].to(logits_hw.device).float()
        area = batch.ignored[pair].to(logits_hw.device)
        known_HW = (~area).float() if len(area) else torch.ones_like(mask_HW)
        points_N2 = draw_points(logits_hw, _generator(batch, pair, instance))
        for name, loss in mask_losses(logits_hw[None], mask_HW[None], known_HW[None], points_N2[None]).items():
            sums[name] = sums[name] + loss if name in sums else loss
    return sums


def _generator(batch: ConceptBatch, pair: int, instance: int) -> torch.Generator:
    """Return a generator on the CPU that depends on what is asked of which sample, and not on the rest of a batch."""
    image = int(batch.image_of_pair[pair])
    key = (batch.keys[image] if batch.keys else (), batch.names[image], batch.phrases[pair], instance)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@torch.no_grad()
def _left_out(output: ConceptOutput, batch: ConceptBatch, counts_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return which queries lie in ignored areas, bool (P, Q), and of which phrases presence is not known, bool (P,).

    A query is left out if most of its last box is ignored. A phrase that only an ignored area shows is neither there
    nor absent.
    """
    boxes_PQ4 = output.boxes_LPQ4[-1].float().clamp(0, 1)
    left_out_PQ = torch.zeros(boxes_PQ4.shape[:2], dtype=torch.bool, device=boxes_PQ4.device)
    unknown_P = torch.zeros(len(counts_P), dtype=torch.bool, device=boxes_PQ4.device)
    for pair, area in enumerate(batch.ignored):
        if not len(area) or not bool(area.any()):
            continue
        summed = F.pad(area.to(boxes_PQ4.device).double().cumsum(0).cumsum(1), (1, 0, 1, 0))
        side = torch.tensor([area.shape[1], area.shape[0]] * 2, device=boxes_PQ4.device)
        x0, y0, x1, y1 = (boxes_PQ4[pair] * side).round().long().unbind(-1)
        inside = summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0]
        left_out_PQ[pair] = inside > 0.5 * ((x1 - x0) * (y1 - y0)).clamp(min=1)
        unknown_P[pair] = counts_P[pair] == 0
    return left_out_PQ, unknown_P


def focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the cross entropy weighted by (1 - p)^gamma, p being what the right answer got, and by alpha."""
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    right = probability * target + (1 - probability) * (1 - target)
    return losses * (1 - right) ** gamma * (alpha * target + (1 - alpha) * (1 - target))


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised IoU of boxes (…, 4) of corners, whose shapes broadcast."""
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(0)
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    shared, hull = inner.prod(-1), outer.clamp(0).prod(-1)
    union = sum((each[..., 2:] - each[..., :2]).clamp(0).prod(-1) for each in (first, second)) - shared
    least = torch.finfo(union.dtype).eps
    return shared / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def sample(images_KHW: Tensor, points_KN2: Tensor) -> Tensor:
    """Return bilinear samples (K, N) of images at points, x and y in 0–1."""
    grid = 2 * points_KN2[:, :, None] - 1
    return nn.functional.grid_sample(images_KHW[:, None], grid, align_corners=False, padding_mode="border")[:, 0, :, 0]
