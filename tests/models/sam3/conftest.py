"""A small SAM 3 with random weights that differ enough for every output to depend on every input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.core.errors import UserError
from src.data.concepts.types import ConceptBatch
from src.data.synthetic.words import WORDS, make_picture

try:
    from src.config import ModelConfig
    from src.models.sam3.build import build_model
except UserError:  # transformers is missing, or too old for SAM 3
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def model(sam3_folder: Any) -> Any:
    """The model of a folder with random weights, in eval mode."""
    return build_model(ModelConfig(name="sam3_nano", checkpoint=str(sam3_folder)))


@pytest.fixture(scope="session")
def concept_batch() -> ConceptBatch:
    """Three pictures, five phrases: with one, two, no, one and no instances; exemplars of four of them."""
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.8]])
    masks = torch.zeros(2, 168, 168, dtype=torch.bool)
    masks[0, 17:67, 17:67] = masks[1, 84:134, 84:151] = True
    counts = (1, 2, 0, 1, 0)
    torch.manual_seed(0)
    return ConceptBatch(
        images_BHWC=torch.stack([torch.from_numpy(make_picture(WORDS, seed).image_HWC) for seed in range(3)]),
        image_of_pair=torch.tensor([0, 0, 1, 2, 2]),
        phrases=("red disc", "striped blue star", "visual", "cyan ring", "foreign thing"),
        exemplars_PX4=torch.rand(5, 2, 4) * 0.3 + 0.3,
        exemplar_labels_PX=torch.tensor([[1, -10], [1, 0], [1, 1], [-10, -10], [0, 1]]),
        boxes=tuple(boxes[:n] for n in counts),
        masks=tuple(masks[:n] for n in counts),
        ignored=(torch.zeros(0, 168, 168, dtype=torch.bool),) * 5,
        names=("a", "b", "c"),
    )
