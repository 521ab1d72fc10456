"""Exemplar boxes in mixed precision."""

import torch

from src.config import ModelConfig
from src.models.sam3.room import build_model, encode_images, encode_phrases, forward_concepts


def test_exemplar_boxes_are_asked_in_bfloat16(sam3_folder):
    model = build_model(ModelConfig(name="sam3_nano", checkpoint=str(sam3_folder)))
    boxes, labels = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), torch.ones(1, 1, dtype=torch.long)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = encode_images(model, torch.zeros(1, 168, 168, 3, dtype=torch.uint8))
        text = encode_phrases(model, ["red disc"])
        output = forward_concepts(model, features, torch.zeros(1, dtype=torch.long), text, boxes, labels)
    assert output.logits_LPQ.float().isfinite().all()
