"""Batches of images with noun phrases."""

import torch

from src.data.concepts.types import PADDING, ConceptBatch, join_concepts


def one_image(name: str, phrases: tuple[str, ...], exemplars: int) -> ConceptBatch:
    pairs = len(phrases)
    return ConceptBatch(
        images_BHWC=torch.zeros(1, 14, 14, 3, dtype=torch.uint8),
        image_of_pair=torch.zeros(pairs, dtype=torch.long),
        phrases=phrases,
        exemplars_PX4=torch.full((pairs, exemplars, 4), 0.5),
        exemplar_labels_PX=torch.ones(pairs, exemplars, dtype=torch.long),
        boxes=tuple(torch.rand(2, 4) for _ in phrases),
        masks=tuple(torch.ones(2, 14, 14, dtype=torch.bool) for _ in phrases),
        ignored=tuple(torch.zeros(0, 14, 14, dtype=torch.bool) for _ in phrases),
        names=(name,),
        keys=((0, len(name)),),
    )


def test_joined_images_keep_their_pairs_beside_each_other() -> None:
    first, second = one_image("a", ("crack", "rust"), exemplars=0), one_image("bb", ("cell",), exemplars=2)
    batch = join_concepts([first, second])
    assert batch.image_of_pair.tolist() == [0, 0, 1]
    assert batch.phrases == ("crack", "rust", "cell")
    assert batch.names == ("a", "bb") and batch.keys == ((0, 1), (0, 2))
    assert torch.equal(batch.boxes[2], second.boxes[0])


def test_pairs_without_exemplar_boxes_are_padded() -> None:
    batch = join_concepts([one_image("a", ("crack",), exemplars=0), one_image("b", ("cell",), exemplars=2)])
    assert batch.exemplars_PX4.shape == (2, 2, 4)
    assert batch.exemplar_labels_PX.tolist() == [[PADDING, PADDING], [1, 1]]
