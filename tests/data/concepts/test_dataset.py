"""The training images of a run."""

from __future__ import annotations

import pytest
import torch

from src.config import AugmentationConfig, ConceptConfig
from src.core.errors import UserError
from src.data.concepts.dataset import ConceptDataset, ConceptOptions
from src.data.concepts.phrases import build_vocabulary
from src.data.concepts.types import ConceptBatch
from src.data.records import DataSet
from src.data.synthetic import CELLS, make_videos


@pytest.fixture(scope="module")
def cells() -> DataSet:
    return make_videos(CELLS, 4, 0, frames=1, side=56)


def images(data: DataSet, queries: int = 50, views: int | None = None) -> ConceptDataset:
    vocabulary = build_vocabulary(data.category_counts(), {}, ["car", "tree", "cup"])
    options = ConceptOptions(ConceptConfig(), 56, queries, augmentation=AugmentationConfig())
    return ConceptDataset([data], [1.0], 6, [vocabulary], options, seed=1, views=views)


def same(one: ConceptBatch, other: ConceptBatch) -> bool:
    tensors, others = ((*each.masks, *each.boxes, each.images_BHWC) for each in (one, other))
    return one.phrases == other.phrases and all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_an_image_is_drawn_from_its_key_alone(cells):
    data, again = images(cells), images(cells)
    again[0, 3]
    assert same(data[2, 1], again[2, 1])
    assert not same(data[2, 1], data[3, 1])
    assert data[2, 1].keys == ((2, 1),)


def test_views_return(cells):
    data = images(cells, views=2)
    key = data.sample_key(5, 0)
    assert key != (5, 0) and same(data[5, 0], data[key])


def test_pixels_are_read_again_where_they_were_left_out(cells):
    data = images(cells)
    without = data[1, 2, False]
    assert not without.has_pixels
    assert same(data.with_pixels(without), data[1, 2])


def test_images_of_which_nothing_can_be_asked_are_passed_over(cells):
    counts = [len(video.objects) for video in cells.videos]
    most = max(counts)
    assert min(counts) < most
    limited = images(cells, queries=most - 1)
    limited.vocabularies = [build_vocabulary(["cell"], {})]
    names = {limited[0, index].names[0] for index in range(6)}
    assert names == {video.video_id for video, count in zip(cells.videos, counts, strict=True) if count < most}


def test_an_error_says_that_nothing_can_be_asked_at_all(cells):
    limited = images(cells, queries=0)
    limited.vocabularies = [build_vocabulary(["cell"], {})]
    error = limited[0, 0]
    assert isinstance(error, UserError) and error.code == "concepts.nothing-to-ask"
