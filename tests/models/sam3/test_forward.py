"""The shared forward gives transformers' own numbers, for one image and many phrases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from src.config import LoraConfig
from src.data.concepts.types import PADDING, ConceptBatch
from src.lora.injection import apply_method
from src.models.sam3.forward import encode_images, encode_phrases, forward_concepts, has_frozen_text


def stock(model: Any, batch: ConceptBatch, boxes: Tensor | None = None, labels: Tensor | None = None) -> Any:
    """Return what ``Sam3Model.forward`` says, with an image a pair."""
    pixels = batch.images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
    text = encode_phrases(model, batch.phrases)
    return model(
        pixel_values=pixels[batch.image_of_pair],
        text_embeds=type("Text", (), {"pooler_output": text.words_PTD})(),
        attention_mask=text.mask_PT.long(),
        input_boxes=boxes,
        input_boxes_labels=labels,
    )


@torch.no_grad()
@pytest.mark.parametrize("with_boxes", [False, True])
def test_outputs_are_those_of_transformers_bit_for_bit(
    model: Any, concept_batch: ConceptBatch, with_boxes: bool
) -> None:
    labels = concept_batch.exemplar_labels_PX.clone()
    labels[3, 0] = 1  # transformers asks every pair with boxes, or none
    asked = (concept_batch.exemplars_PX4, labels) if with_boxes else (None, None)
    features, text = encode_images(model, concept_batch.images_BHWC), encode_phrases(model, concept_batch.phrases)
    ours = forward_concepts(model, features, concept_batch.image_of_pair, text, *asked)
    theirs = stock(model, concept_batch, *asked)
    assert torch.equal(ours.logits_LPQ[-1], theirs.pred_logits)
    assert torch.equal(ours.boxes_LPQ4[-1], theirs.pred_boxes)
    assert torch.equal(ours.presence_LP[-1], theirs.presence_logits[:, 0])
    assert torch.equal(ours.masks_KQhw, theirs.pred_masks)
    assert torch.equal(ours.semantic_Khw, theirs.semantic_seg[:, 0])


@torch.no_grad()
def test_text_is_transformers_own_whatever_it_is_padded_to(model: Any) -> None:
    phrases = ["red disc", "striped blue star", "crack"]
    tokens = model.tokenizer(phrases, padding="max_length", max_length=32, return_tensors="pt")
    theirs = model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    ours = encode_phrases(model, phrases)
    assert ours.mask_PT.sum(1).tolist() == [4, 5, 7]  # "crack" is spelled
    for number, length in enumerate(ours.mask_PT.sum(1).tolist()):
        torch.testing.assert_close(ours.words_PTD[number, :length], theirs[number, :length], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_pair_does_not_depend_on_the_exemplars_of_others(model: Any, concept_batch: ConceptBatch) -> None:
    features, text = encode_images(model, concept_batch.images_BHWC), encode_phrases(model, concept_batch.phrases)
    pairs, boxes = concept_batch.image_of_pair, concept_batch.exemplars_PX4
    beside = forward_concepts(model, features, pairs, text, boxes, concept_batch.exemplar_labels_PX)
    alone = forward_concepts(
        model, features, pairs, text, boxes, torch.full_like(concept_batch.exemplar_labels_PX, PADDING)
    )
    torch.testing.assert_close(beside.logits_LPQ[:, 3], alone.logits_LPQ[:, 3], atol=1e-5, rtol=1e-5)
    assert (beside.logits_LPQ[:, 1] - alone.logits_LPQ[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_masks_are_made_for_the_pairs_that_are_asked_for(model: Any, concept_batch: ConceptBatch) -> None:
    features, text = encode_images(model, concept_batch.images_BHWC), encode_phrases(model, concept_batch.phrases)
    every = forward_concepts(model, features, concept_batch.image_of_pair, text)
    some = forward_concepts(model, features, concept_batch.image_of_pair, text, masks=torch.tensor([1, 3]))
    none = forward_concepts(model, features, concept_batch.image_of_pair, text, masks=False)
    torch.testing.assert_close(some.masks_KQhw, every.masks_KQhw[[1, 3]], atol=1e-4, rtol=1e-4)
    assert none.masks_KQhw is None
    assert torch.equal(none.logits_LPQ, every.logits_LPQ)


def test_text_is_encoded_once_until_the_encoder_changes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.requires_grad_(False)
    calls = []
    encode = type(model).get_text_features
    monkeypatch.setattr(type(model), "get_text_features", lambda *a, **k: calls.append(1) or encode(*a, **k))
    first = encode_phrases(model, ["red disc", "red disc", "blue star"])
    again = encode_phrases(model, ["blue star", "red disc"])
    assert len(calls) == 2
    assert torch.equal(again.words_PTD, first.words_PTD[[2, 0]])
    model.text_projection.weight.mul_(2)
    assert not torch.equal(encode_phrases(model, ["red disc"]).words_PTD, first.words_PTD[:1])


def test_text_of_an_encoder_that_trains_has_a_graph_and_is_not_kept(model: Any) -> None:
    model.requires_grad_(False)
    apply_method(model, LoraConfig(method="lora", target_modules=["text_encoder.*.q_proj"]))
    assert not has_frozen_text(model)
    assert encode_phrases(model, ["red disc"]).words_PTD.requires_grad
