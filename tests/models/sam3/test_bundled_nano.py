"""The nano SAM 3 that ships answers to its words."""

from __future__ import annotations

import numpy as np
import torch

from src.config import ModelConfig
from src.data.synthetic import HELD_OUT_SEED
from src.data.synthetic.words import WORDS, Concept, make_picture
from src.models.sam3.build import build_model
from src.models.sam3.forward import encode_images, encode_phrases, forward_concepts


@torch.no_grad()
def test_it_finds_what_is_there_and_nothing_else() -> None:
    model = build_model(ModelConfig(name="sam3_nano", checkpoint="checkpoints/sam3_nano"))
    right, errors, boxes = 0, 0, []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 12):
        picture = make_picture(WORDS, seed)
        concepts = [Concept(t.colour, t.shape) for t in picture.things] + [Concept("cyan", "bar")]
        phrases = [*(concept.phrase(WORDS) for concept in concepts), "crack"]
        image = encode_images(model, torch.from_numpy(picture.image_HWC)[None])
        pairs = torch.zeros(len(phrases), dtype=torch.long)
        output = forward_concepts(model, image, pairs, encode_phrases(model, phrases))
        for row, concept in enumerate([*concepts, None]):
            numbers = [n for n, t in enumerate(picture.things) if concept is not None and concept.matches(t)]
            found = (output.scores_PQ[row] >= 0.5).nonzero()[:, 0]
            right += len(found) == len(numbers)
            errors += len(found) != len(numbers)
            if len(found) == len(numbers) == 1:
                rows, columns = np.nonzero(picture.mask(numbers[0]))
                centre = output.boxes_LPQ4[-1, row, found[0]].view(2, 2).mean(0) * 168
                boxes.append(float(np.hypot(centre[0] - columns.mean(), centre[1] - rows.mean())))
    assert right / (right + errors) > 0.75
    assert len(boxes) > 10
    assert np.median(boxes) < 6  # pixels between the box's centre and the thing's


def test_it_is_no_larger_than_what_ships_may_be() -> None:
    from src.core.shipped import find_file

    assert sum(file.stat().st_size for file in find_file("checkpoints/sam3_nano").iterdir()) <= 15e6
