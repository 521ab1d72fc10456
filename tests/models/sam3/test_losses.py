"""Losses of concepts, against numbers computed by hand or by an independent definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from src.data.concepts.types import ConceptBatch
from src.models.sam3.forward import ConceptOutput
from src.models.sam3.losses import (
    ConceptTotals,
    Matches,
    box_losses,
    concept_losses,
    focal_loss,
    generalised_iou,
    mask_losses,
    match,
    presence_loss,
    score_loss,
)


class Weights:
    """Distinct weights."""

    score, presence, box, giou, mask, dice = 20.0, 10.0, 5.0, 2.0, 200.0, 7.0


def output_of(logits: list[list[float]], boxes: list[list[list[float]]]) -> ConceptOutput:
    """Return one layer's output of pairs."""
    return ConceptOutput(
        torch.tensor(logits)[None], torch.tensor(boxes)[None], torch.zeros(1, len(logits)), None, None, torch.zeros(0)
    )


def test_an_instance_gets_the_query_whose_box_and_score_fit() -> None:
    left, right = [0.0, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0]
    output = output_of([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], [[right, left, right], [left, right, right]])
    matches = match(output, [torch.tensor([left, right]), torch.zeros(0, 4)])
    assert list(zip(matches.pair.tolist(), matches.instance.tolist(), matches.query.tolist(), strict=True)) == [
        (0, 0, 1),
        (0, 1, 2),  # of two queries with its box, the surer one
    ] or sorted(zip(matches.instance.tolist(), matches.query.tolist(), strict=True)) == [(0, 1), (1, 2)]
    assert box_losses(output.boxes_LPQ4, matches)["box"] == 0
    assert box_losses(output.boxes_LPQ4, matches)["giou"].abs() < 1e-6


def test_generalised_iou_of_boxes_apart_and_nested() -> None:
    apart = generalised_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0]))
    nested = generalised_iou(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.5, 0.5]))
    assert apart.item() == pytest.approx(-1 / 3)
    assert nested.item() == pytest.approx(0.25)


def test_focal_loss_is_the_cross_entropy_scaled_by_doubt() -> None:
    logit = math.log(3)  # probability 0.75
    sure, wrong = focal_loss(torch.tensor([logit, logit]), torch.tensor([1.0, 0.0]), 2.0, 0.25).tolist()
    assert sure == pytest.approx(-0.25 * 0.25**2 * math.log(0.75), rel=1e-4)
    assert wrong == pytest.approx(-0.75 * 0.75**2 * math.log(0.25), rel=1e-4)


def test_absent_phrases_and_queries_in_ignored_areas_have_no_score_loss() -> None:
    logits = torch.tensor([[[2.0, -1.0, 0.5], [3.0, 3.0, 3.0]]])
    zero = torch.tensor([0])
    matches = Matches(zero, zero, zero, zero, torch.zeros(1, 4))
    left_out = torch.tensor([[False, True, False], [False, False, False]])
    expected = focal_loss(logits[0, 0, [0, 2]], torch.tensor([1.0, 0.0]), 2.0, 0.25).sum()
    assert score_loss(logits, matches, torch.tensor([1, 0]), left_out).item() == pytest.approx(expected.item())


def test_presence_is_not_asked_where_it_is_not_known() -> None:
    logits = torch.tensor([[1.0, -2.0, 5.0]])
    loss = presence_loss(logits, torch.tensor([2, 0, 0]), torch.tensor([False, False, True]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.exp(-2)), rel=1e-5)


def test_masks_are_not_compared_where_nothing_is_known() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    known = torch.ones(1, 8, 8)
    known[:, 4:] = 0
    points = (torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(0)) * 8).floor() / 8 + 1 / 16
    right = torch.where(mask > 0, 20.0, -20.0)
    wrong_below = right.clone()
    wrong_below[:, 4:] *= -1
    for logits in (right, wrong_below):
        losses = mask_losses(logits, mask, known, points)
        assert losses["mask"].item() < 1e-6
        assert losses["dice"].item() < 1e-6
    assert mask_losses(-right, mask, known, points)["dice"].item() > 0.9


def test_parts_of_a_batch_add_up_to_it(model: Any, concept_batch: ConceptBatch) -> None:
    totals = ConceptTotals.from_batch(concept_batch)
    assert totals == ConceptTotals(instances=4, pairs=5)
    whole = concept_losses(model, Weights(), concept_batch)
    parts = [concept_losses(model, Weights(), part(concept_batch, *rows), totals) for rows in ((0, 1), (1, 3))]
    for name, loss in whole.items():
        assert sum(each[name].item() for each in parts) == pytest.approx(loss.item(), rel=1e-3), name


def part(batch: ConceptBatch, first: int, last: int) -> ConceptBatch:
    """Return some images of a batch."""
    rows = [p for p, image in enumerate(batch.image_of_pair.tolist()) if first <= image < last]
    return ConceptBatch(
        batch.images_BHWC[first:last],
        batch.image_of_pair[rows] - first,
        tuple(batch.phrases[p] for p in rows),
        batch.exemplars_PX4[rows],
        batch.exemplar_labels_PX[rows],
        *(tuple(each[p] for p in rows) for each in (batch.boxes, batch.masks, batch.ignored)),
        names=batch.names[first:last],
    )


def test_the_total_is_the_weighted_sum_and_reaches_every_part_that_predicts(
    model: Any, concept_batch: ConceptBatch
) -> None:
    losses = concept_losses(model, Weights(), concept_batch)
    expected = sum(getattr(Weights, name) * loss for name, loss in losses.items() if name != "total")
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    losses["total"].backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None}
    unused = ("vision_encoder.neck.fpn_layers.3.", "text_encoder.text_projection.", "mask_decoder.semantic_projection.",
              "mask_decoder.pixel_decoder.conv_layers.2.", "mask_decoder.pixel_decoder.norms.2.")  # fmt: skip
    assert all(name.startswith(unused) for name in still), still


def test_without_segmentation_the_mask_head_is_not_run(model: Any, concept_batch: ConceptBatch) -> None:
    model.mask_decoder.register_forward_pre_hook(lambda *_: pytest.fail("the mask head ran"))
    losses = concept_losses(model, Weights(), concept_batch, enable_segmentation=False)
    assert set(losses) == {"total", "score", "presence", "box", "giou"}


def test_a_batch_of_absent_phrases_has_losses_that_are_numbers(model: Any, concept_batch: ConceptBatch) -> None:
    nothing = replace(
        concept_batch,
        boxes=tuple(each[:0] for each in concept_batch.boxes),
        masks=tuple(each[:0] for each in concept_batch.masks),
    )
    losses = concept_losses(model, Weights(), nothing)
    assert losses["presence"] > 0
    assert {name for name, loss in losses.items() if loss.item() == 0} == {"score", "box", "giou", "mask", "dice"}
    losses["total"].backward()


def test_an_ignored_area_answers_for_queries_inside_it(model: Any, concept_batch: ConceptBatch) -> None:
    everything = torch.ones(168, 168, dtype=torch.bool)
    crowded = replace(concept_batch, ignored=(everything,) * 5)
    losses, plain = (concept_losses(model, Weights(), batch) for batch in (crowded, concept_batch))
    assert losses["score"] < plain["score"]  # only what is matched is left
    assert losses["presence"] < plain["presence"]  # the two absent phrases are not known to be absent
    assert losses["mask"] == 0
