"""What is asked of a training image, and how the image is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.config import AugmentationConfig, ConceptConfig
from src.data.concepts.draw import boxes_of, draw_image, draw_questions
from src.data.concepts.labels import Question
from src.data.concepts.phrases import build_vocabulary
from src.data.concepts.types import VISUAL
from src.data.records import RLE, ArrayFrame, ObjectTrack, VideoRecord

HEIGHT, WIDTH = 40, 60


def area(x0: int, y0: int, x1: int, y1: int) -> RLE:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return RLE.encode(mask)


def still(*categories: str | None, **known) -> VideoRecord:
    """An image with objects side by side, 8 pixels wide, each on its own grey."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    objects = []
    for number, category in enumerate(categories):
        x0 = 2 + 10 * number
        pixels[10:20, x0 : x0 + 8] = 50 + 40 * number
        objects.append(ObjectTrack(number + 1, [area(x0, 10, x0 + 8, 20)], category))
    return VideoRecord("still", HEIGHT, WIDTH, [ArrayFrame(pixels)], objects, **known)


VOCABULARY = build_vocabulary(["crack", "rust", "red leaf", "green leaf"], {"crack": ["crack", "fissure"]}, ["car"])
ALL = ConceptConfig(positives=9, negatives=9, hard_negatives=9, exemplars=0)


def asked(video: VideoRecord, config: ConceptConfig = ALL, queries: int = 10, seed: int = 0) -> dict[str, Question]:
    questions = draw_questions(video, 0, VOCABULARY, config, queries, np.random.default_rng(seed))
    return {question.phrase: question for question in questions}


def test_every_instance_of_a_phrase_is_asked_for():
    found = asked(still("rust", "crack", "rust"))
    assert len(found["rust"].shown) == 2
    assert {len(found[phrase].shown) for phrase in ("car", "red leaf", "green leaf")} == {0}


def test_one_of_several_phrases_of_a_category_is_drawn():
    drawn = {phrase for seed in range(10) for phrase in asked(still("crack"), seed=seed)}
    assert {"crack", "fissure"} <= drawn
    assert all(not {"crack", "fissure"} <= asked(still("crack"), seed=seed).keys() for seed in range(10))


def test_hard_negatives_share_a_word_with_what_is_shown():
    found = asked(still("red leaf"), ConceptConfig(positives=1, negatives=0, hard_negatives=1, exemplars=0))
    assert found.keys() == {"red leaf", "green leaf"}


@pytest.mark.parametrize(
    "known",
    [
        {"unsure": frozenset({"rust"})},
        {"absent": frozenset({"red leaf"})},
        {"crowds": [ObjectTrack(1, [area(0, 30, 60, 40)], "rust")]},
    ],
    ids=["not all labelled", "not known to be absent", "a crowd"],
)
def test_what_may_be_there_is_no_negative(known):
    assert "rust" in asked(still("crack"))
    assert "rust" not in asked(still("crack", **known))


def test_a_phrase_with_more_instances_than_queries_is_not_asked():
    assert asked(still("rust", "rust", "rust", "crack"), queries=2).keys().isdisjoint({"rust"})


def test_where_not_all_are_labelled_only_the_labelled_ones_count():
    video = still("rust", "crack", unsure=frozenset({"rust"}))
    batch = draw_image(video, 0, [asked(video)["rust"]], 56, np.random.default_rng(0))
    assert torch.equal(batch.ignored[0], ~batch.masks[0].any(0))


def test_crowds_and_objects_without_a_category_are_ignored():
    video = still("rust", None, crowds=[ObjectTrack(1, [area(0, 30, 60, 40)], "rust")])
    found = asked(video)
    batch = draw_image(video, 0, [found["rust"], found["car"]], 60, np.random.default_rng(0))
    of_rust, of_car = (mask.numpy() for mask in batch.ignored)
    assert of_rust[50:, :].all() and not of_car[50:, :].any()  # the crowd
    assert of_rust[20, 15] and of_car[20, 15]  # the other object


def test_boxes_are_around_masks_in_shares_of_the_side():
    video = still("rust")
    batch = draw_image(video, 0, [asked(video)["rust"]], 120, np.random.default_rng(0))
    assert batch.boxes[0].tolist() == [pytest.approx([2 / 60, 10 / 40, 10 / 60, 20 / 40])]
    assert abs(int(batch.masks[0].sum()) - 16 * 30) <= 4  # corners are rounded
    assert batch.images_BHWC.shape == (1, 120, 120, 3)


def test_an_example_is_one_of_the_instances():
    config = ALL.model_copy(update={"exemplars": 1.0})
    for seed in range(6):
        video = still("rust", "rust")
        question = next(q for q in asked(video, config, seed=seed).values() if q.shown)
        batch = draw_image(video, 0, [question], 60, np.random.default_rng(0))
        x, y, width, height = batch.exemplars_PX4[0, 0].tolist()
        assert [x - width / 2, y - height / 2, x + width / 2, y + height / 2] in [
            pytest.approx(box) for box in batch.boxes[0].tolist()
        ]
        assert batch.exemplar_labels_PX.tolist() == [[1]]
        assert question.phrase in ("rust", VISUAL)


def test_a_view_moves_picture_and_masks_alike():
    video = still("rust", "crack")
    questions = list(asked(video).values())
    augmentation = AugmentationConfig(brightness=0, contrast=0, degrees=20)
    batch = draw_image(video, 0, questions, 120, np.random.default_rng(3), augmentation)
    plain = draw_image(video, 0, questions, 120, np.random.default_rng(3))
    place = [question.phrase for question in questions].index("rust")
    inside = batch.images_BHWC[0, ..., 0][batch.masks[place][0]].float()
    assert abs(float(inside.median()) - 50) <= 1
    assert not torch.equal(batch.masks[place], plain.masks[place])
    assert torch.equal(boxes_of(batch.masks[place]), batch.boxes[place])


@pytest.mark.parametrize("phrase", ["left leaf", "upright leaf"])
def test_no_view_contradicts_a_phrase(phrase):
    video = still("leaf")
    question = Question(phrase, (area(2, 10, 10, 20),))
    augmentation = AugmentationConfig(flip=1.0, degrees=0 if "left" in phrase else 25, shear=0, grey=1.0)
    drawn = draw_image(video, 0, [question], 60, np.random.default_rng(1), augmentation)
    mask = drawn.masks[0][0]
    turned = mask if "left" in phrase else mask.flip(1)
    assert torch.equal(turned, draw_image(video, 0, [question], 60, np.random.default_rng(1)).masks[0][0])


def test_without_pixels_all_else_is_the_same():
    video = still("rust", "crack")
    questions = list(asked(video).values())
    with_pixels, without = (
        draw_image(video, 0, questions, 60, np.random.default_rng(5), AugmentationConfig(), pixels=pixels)
        for pixels in (True, False)
    )
    assert without.images_BHWC.shape == (1, 60, 60, 0) and not without.has_pixels
    assert all(torch.equal(a, b) for a, b in zip(with_pixels.masks, without.masks, strict=True))


def test_an_instance_thinner_than_a_pixel_is_not_lost():
    thin = replace(still("rust"), objects=[ObjectTrack(1, [area(5, 5, 6, 6)], "rust")])
    batch = draw_image(thin, 0, [asked(thin)["rust"]], 14, np.random.default_rng(0), AugmentationConfig())
    assert batch.masks[0].any() and len(batch.boxes[0]) == 1


def test_no_masks_where_they_are_not_trained():
    video = still("rust")
    batch = draw_image(video, 0, [asked(video)["rust"]], 28, np.random.default_rng(0), masks=False)
    assert batch.masks[0].shape == (0, 28, 28) and len(batch.boxes[0]) == 1
