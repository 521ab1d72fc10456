"""Single images: simulated clicks, prompts through the stock image predictor, and COCO's AP against hand-made cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.config import ModelConfig, MotionConfig
from src.data.decode.masks import bounding_box, centre_point
from src.data.records import RLE, DataSet, VideoRecord
from src.data.synthetic import SOURCE, make_video
from src.evaluation.domains import Domain
from src.evaluation.image_results import ImageObject, ImageResult, Segmented, average_precision, shown_prompts
from src.evaluation.metrics import dice, region_similarity
from src.models.sam2.build import build_model
from src.models.sam2.predictors import image_predictor
from src.tasks.tracking import images as images_module
from src.tasks.tracking.images import evaluate_images, next_click

WEIGHTS = Path(__file__).parents[3] / "checkpoints/sam2_nano.safetensors"
CLICKS = 4


def block(x0: int, x1: int, y0: int = 0, y1: int = 20) -> np.ndarray:
    mask = np.zeros((20, 60), bool)
    mask[y0:y1, x0:x1] = True
    return mask


class TestClicks:
    def test_the_first_is_on_the_deepest_pixel(self):
        assert next_click(block(0, 0), block(10, 19, 3, 12)) == ((14.0, 7.0), 1)

    def test_the_next_is_where_most_is_missing_or_too_much(self):
        true = block(10, 40)
        assert next_click(block(10, 35), true) == ((37.0, 2.0), 1)
        assert next_click(block(10, 47), true) == ((43.0, 3.0), 0)
        assert next_click(block(5, 31), true)[1] == 1, "9 columns are missing, 5 too much"
        assert next_click(block(1, 37), true)[1] == 0, "3 columns are missing, 9 too much"

    def test_depth_decides_not_area(self):
        """A strip of one row has more pixels than the block, but none is deep inside."""
        true = block(0, 60, 0, 10)
        mask = (true | block(0, 60, 19, 20)) & ~block(5, 11, 3, 9)
        assert next_click(mask, true)[1] == 1

    def test_what_is_right_needs_no_click(self):
        assert next_click(block(3, 9), block(3, 9))[1] == -1
        assert next_click(block(0, 0), block(0, 0))[1] == -1

    def test_prompts_of_the_table(self):
        assert shown_prompts(1) == ["box", "1 click"]
        assert shown_prompts(5) == ["box", "1 click", "3 clicks", "5 clicks"]
        assert shown_prompts(8) == ["box", "1 click", "3 clicks", "8 clicks"]


def image_object(truth: np.ndarray, mask: np.ndarray, score: float, image: str = "a", category: str = "x", i: int = 1):
    found = Segmented(RLE.encode(mask), score, region_similarity(mask, truth), dice(mask, truth))
    return ImageObject(image, i, None, category, RLE.encode(truth), {"box": found})


class TestAveragePrecision:
    def test_perfect_masks(self):
        objects = [image_object(block(0, 10), block(0, 10), 0.9), image_object(block(20, 30), block(20, 30), 0.2, i=2)]
        assert average_precision(objects, "box") == {"AP": 1, "AP50": 1, "AP75": 1}

    def test_one_of_two_is_found_up_to_an_iou(self):
        """IoU 18 / 25 = 0.72 counts at 0.50 to 0.70; above, recall is 1/2: 51 of COCO's 101 points have precision 1."""
        good, fair = image_object(block(0, 10), block(0, 10), 0.9), image_object(block(20, 45), block(20, 38), 0.5, "b")
        expected = {"AP": (5 + 5 * 51 / 101) / 10, "AP50": 1, "AP75": 51 / 101}
        assert average_precision([good, fair], "box") == pytest.approx(expected)

    def test_the_predicted_iou_ranks(self):
        """Where the miss is surer than the hit, precision is 1/2 up to recall 1/2."""
        hit, miss = image_object(block(0, 10), block(0, 10), 0.1), image_object(block(20, 30), block(50, 60), 0.9, "b")
        assert average_precision([hit, miss], "box")["AP"] == pytest.approx(51 / 101 / 2)
        hit = replace(hit, found={"box": replace(hit.found["box"], score=0.95)})
        assert average_precision([hit, miss], "box")["AP"] == pytest.approx(51 / 101)

    def test_categories_count_alike(self):
        good = [image_object(block(0, 10), block(0, 10), 0.9, f"image {k}", "many", k) for k in range(3)]
        bad = image_object(block(0, 10), block(50, 60), 0.9, "b", "few")
        assert average_precision([*good, bad], "box")["AP"] == pytest.approx(1 / 2)

    def test_an_image_of_more_than_100_objects(self):
        cells = [block(x, x + 2, y, y + 2) for x in range(0, 60, 3) for y in range(0, 20, 3)]
        assert len(cells) > 100
        objects = [image_object(cell, cell, 0.5, i=k) for k, cell in enumerate(cells)]
        assert average_precision(objects, "box")["AP"] == 1

    def test_a_result_gathers_them(self):
        objects = [image_object(block(0, 10), block(0, 5), 0.9), image_object(block(20, 30), block(20, 30), 0.2, "b")]
        result = ImageResult(objects, clicks=1)
        assert result.images == 2
        scores = result.scores("box")
        assert (scores["mIoU"], scores["Dice"]) == pytest.approx((0.75, (2 / 3 + 1) / 2))


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(checkpoint=str(WEIGHTS)))


@pytest.fixture(scope="module")
def still() -> VideoRecord:
    video = make_video(SOURCE, 4, 1, 96)
    objects = [replace(o, original_id=f"ann {o.object_id}", category="shape") for o in video.objects]
    assert len(objects) > 1
    return replace(video, objects=objects)


def images_of(model, *videos: VideoRecord, max_objects: int = 9, clicks: int = CLICKS) -> ImageResult:
    return evaluate_images(model, Domain("d", DataSet("d", list(videos)), 3, max_objects, 99, MotionConfig()), clicks)


@pytest.fixture(scope="module")
def result(model, still) -> ImageResult:
    return images_of(model, still)


def by_hand(model, still: VideoRecord, true: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """One object through the stock predictor's public interface, prompt by prompt."""
    predictor = image_predictor(model)
    predictor.set_image(still.frames[0].read())
    masks, scores, _ = predictor.predict(box=np.array(bounding_box(true), np.float32), multimask_output=False)
    found = {"box": (masks[0] > 0, scores[0])}
    masks, scores, logits = predictor.predict(np.array([centre_point(true)]), np.array([1]), multimask_output=True)
    best = scores.argmax()
    found["1 click"] = (masks[best] > 0, scores[best])
    (x, y), label = next_click(masks[best] > 0, true)
    masks, scores, _ = predictor.predict(
        np.array([centre_point(true), (x, y)]), np.array([1, label]), mask_input=logits[[best]], multimask_output=False
    )
    found["2 clicks"] = (masks[0] > 0, scores[0])
    return found


def test_prompts_are_those_of_the_stock_predictor(model, still, result):
    """Objects are decoded together, which may turn a pixel on the edge."""
    for obj in result.objects:
        true = obj.truth.decode()
        for prompt, (mask, score) in by_hand(model, still, true).items():
            found = obj.found[prompt]
            assert region_similarity(found.mask.decode(), mask) > 0.99
            assert found.score == pytest.approx(score, abs=1e-3)
            assert found.iou == pytest.approx(region_similarity(found.mask.decode(), true))
            assert found.dice == pytest.approx(dice(found.mask.decode(), true))


def test_what_a_result_holds(result, still):
    assert {(o.object_id, o.original_id, o.category) for o in result.objects} == {
        (o.object_id, f"ann {o.object_id}", "shape") for o in still.objects
    }
    assert all(list(o.found) == ["box", "1 click", "2 clicks", "3 clicks", "4 clicks"] for o in result.objects)
    assert result.objects[0].truth.rle["size"] == [96, 96]
    curve = result.click_curve()
    assert len(curve) == CLICKS
    assert curve[0] == pytest.approx(np.mean([o.found["1 click"].iou for o in result.objects]))
    assert result.scores("box")["mIoU"] > 0.7, "the bundled base segments its own domain from a box"


def test_a_small_batch_changes_nothing_but_the_time(model, still, result, monkeypatch):
    monkeypatch.setattr(images_module, "PIXELS_AT_ONCE", 1)
    for one, together in zip(images_of(model, still, clicks=2).objects, result.objects, strict=True):
        assert one.found["2 clicks"].iou == pytest.approx(together.found["2 clicks"].iou, abs=0.01)


def test_the_largest_objects_of_a_still_are_taken(model, still):
    (largest,) = images_of(model, still, max_objects=1, clicks=1).objects
    assert largest.truth.area() == max(mask.sum() for mask in still.masks(0).values())


def test_objects_of_a_video_are_taken_where_they_are_first_seen(model):
    video = make_video(SOURCE, 4, 3, 64)
    late = replace(video.objects[0], segmentations=[None, *video.objects[0].segmentations[1:]])
    video = replace(video, video_id="v", objects=[late, video.objects[1]])
    found = {o.object_id: o for o in images_of(model, video, max_objects=1, clicks=1).objects}
    assert found[late.object_id].image == "v/00001"
    assert found[late.object_id].truth == late.segmentations[1]
    assert found[video.objects[1].object_id].image == "v/00000"


def test_the_void_does_not_count(model, still):
    half = np.zeros((96, 96), bool)
    half[:, :48] = True
    for obj in images_of(model, replace(still, void={0: RLE.encode(half)}), clicks=1).objects:
        assert not obj.truth.decode()[half].any()
        assert not obj.found["box"].mask.decode()[half].any()
    assert not images_of(model, replace(still, void={0: RLE.encode(~half | half)}), clicks=1).objects


def test_a_mask_that_is_right_is_left_alone(monkeypatch, still):
    """Of two objects one is right after a click: it keeps its mask while the other is mended."""
    truths = np.stack([block(0, 20), block(30, 60)])
    answers = iter([(truths & block(0, 45), [[0.9], [0.5]]), (np.stack([block(0, 0), truths[1]]), [[0.1], [0.8]])])
    asked = []

    def predict(_, **prompts):
        asked.append(prompts["point_labels"].tolist())
        masks, scores = next(answers)
        return masks[:, None], np.array(scores), np.zeros((2, 1, 8, 8))

    monkeypatch.setattr(images_module, "_predict", predict)
    steps = list(images_module._from_clicks(None, truths, np.ones((20, 60), bool), clicks=4))
    assert [np.array_equal(masks, truths) for masks, _ in steps] == [False, True, True, True]
    assert steps[-1][1].tolist() == [0.9, 0.8]
    assert asked == [[[1], [1]], [[1, -1], [1, 1]]], "nothing is asked once all is right"
