"""A domain's result of concepts: named scores, intervals over images, tables, results.json, pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from src.data.records import ArrayFrame, VideoRecord
from src.evaluation.concepts.results import AGREEMENT, ConceptResult, ImageAnswers
from src.evaluation.report import results_json, write_report
from src.evaluation.results import Comparison
from src.evaluation.tables import intervals_table, legend, results_text, table
from src.tasks.final_scores import final_scores
from tests.evaluation.concepts.made import SIZE, drawn, found, true

SQUARE, OTHER = (0, 0, 10, 10), (20, 20, 30, 30)


@dataclass(frozen=True)
class Pictures:
    """Grey images."""

    name: str

    def record(self, image_id: str) -> tuple[VideoRecord, int]:
        return VideoRecord(image_id, SIZE, SIZE, [ArrayFrame(np.full((SIZE, SIZE, 3), 90, np.uint8))], []), 0


def by_image(predictions, truths, images) -> list[ImageAnswers]:
    return [
        ImageAnswers(image, [p for p in predictions if p.image_id == image], [t for t in truths if t.image_id == image])
        for image in images
    ]


def result(seed: int, **options) -> ConceptResult:
    return ConceptResult(by_image(*drawn(seed)), **options)


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    base = result(1)
    better = [
        replace(image, predictions=[found(image.image_id, t.phrase, [], []) for t in image.truths])
        for image in base.images
    ]
    alarms = [
        ImageAnswers(image, [found(image, "dog", [SQUARE] * n, [0.9] * n)], [true(image, "dog", [])])
        for image, n in (("a", 1), ("b", 0))
    ]
    false = ConceptResult(alarms, shown=("IL_FPR",))
    return [
        Comparison(Pictures("new"), base, replace(base, images=better)),
        Comparison(Pictures("new, foreign phrases"), false, false),
    ]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_table_has_a_row_for_each_question(comparisons):
    rows = cells(table(comparisons, markdown=True))
    assert rows[0] == [
        "domain", "images", "phrases", "model", "cgF1", "cgF1, 95 %", "AP", "AP50", "AP75", "pmF1", "IL_MCC", "IL_FPR",
    ]  # fmt: skip
    scores = comparisons[0].base.scores
    assert rows[2][:5] == ["new", "6", "3", "base", f"{scores['cgF1']:.1f}"]
    assert rows[2][6:8] == [f"{scores['AP']:.3f}", f"{scores['AP50']:.3f}"]
    assert rows[3][4:] == ["0.0", "0 to 0", "0.000", "0.000", "0.000", "0.000", "0.000", "0.000"]
    assert rows[5] == ["new, foreign phrases", "2", "1", "base", "-", "-", *["-"] * 5, "0.500"]
    assert max(len(line) for line in table(comparisons).splitlines()) <= 130
    assert "bootstrap over images" in legend(comparisons)[0]


def test_agreement_is_a_column_where_it_is_measured(comparisons):
    same = ConceptResult(comparisons[0].base.images[:1], shown=(AGREEMENT,))
    rows = cells(table([*comparisons, Comparison(Pictures("unlabelled"), same, None)], markdown=True))
    assert rows[0][-1] == "agreement"
    mean = np.mean([pair.f1 for pair in same.counts_by_image["image 0"]])
    assert rows[-1][-1] == f"{mean:.3f}"


def test_intervals_are_over_images(comparisons):
    """Each draw is the score of the images it takes, as often as it takes them."""
    base = comparisons[0].base
    draws = base.draws()
    assert draws.keys() == {"cgF1", "AP", "AP50", "AP75", "pmF1", "IL_MCC", "IL_FPR"}
    taken = np.random.default_rng(0).integers(6, size=6)
    again = [
        ImageAnswers(
            f"{n}",
            [replace(p, image_id=f"{n}") for p in base.images[i].predictions],
            [replace(t, image_id=f"{n}") for t in base.images[i].truths],
        )
        for n, i in enumerate(taken)
    ]
    expected = ConceptResult(again).scores
    assert {name: values[0] for name, values in draws.items()} == pytest.approx({n: expected[n] for n in draws})
    assert comparisons[0].intervals()["change"]["IL_MCC"][1] <= 1
    assert "new, foreign" in intervals_table(comparisons)
    assert ConceptResult(base.images[:1]).draws() is None


def test_results_have_the_form_of_tracking(comparisons):
    results = results_json(comparisons, {"about": "x"})
    assert results == json.loads(json.dumps(results)), "plain data"
    new, alarms = results["domains"].values()
    assert new.keys() == {
        "base", "adapted", "intervals", "per_video", "videos", "objects", "phrases", "pairs", "pairs_not_scored",
        "region",
    }  # fmt: skip
    assert {"AP", "AP50", "AP75", "cgF1", "pmF1", "IL_MCC", "IL_FPR"} <= new["base"].keys()
    assert alarms["base"] == {"IL_FPR": pytest.approx(0.5)}
    assert (new["videos"], new["pairs"], new["phrases"]) == (6, 18, 3)
    first = new["per_video"][0]
    assert [each["phrase"] for each in first["phrases"]] == ["crack", "rust", "leaf"]
    assert first["adapted"]["F1@50"] == np.mean([not each["adapted"]["present"] for each in first["phrases"]])


def test_pairs_that_nobody_labelled_are_left_out_and_counted(comparisons):
    base = comparisons[0].base
    image = base.images[0]
    half = replace(image, truths=[replace(image.truths[0], exhaustive=False), *image.truths[1:]])
    left = ConceptResult([half, *base.images[1:]])
    without = ConceptResult(
        [replace(image, predictions=image.predictions[1:], truths=image.truths[1:]), *base.images[1:]]
    )
    assert left.scores == without.scores
    assert legend([Comparison(Pictures("new"), left, None)])[1].startswith("new: 1 pair of image and phrase is not")
    assert [each["phrase"] for each in left.per_unit(left)[0]["phrases"]] == ["rust", "leaf"]


def test_what_no_phrase_can_show_is_no_zero():
    """IL_MCC and cgF1 compare present with absent phrases, pmF1 needs present ones, IL_FPR absent ones."""
    there = ImageAnswers("a", [found("a", "x", [SQUARE], [0.9])], [true("a", "x", [SQUARE])])
    absent = ImageAnswers("b", [found("b", "x", [OTHER], [0.9])], [true("b", "x", [])])
    assert {"pmF1", "AP"} <= ConceptResult([there]).defined().keys()
    assert not {"cgF1", "IL_MCC", "IL_FPR"} & ConceptResult([there]).defined().keys()
    assert ConceptResult([absent]).defined().keys() == {"IL_FPR"}
    assert ConceptResult([there, absent]).defined() == ConceptResult([there, absent]).scores
    assert any("every phrase is on every image" in n for n in ConceptResult([there]).notes(Pictures("new")))
    assert not ConceptResult([there, absent]).notes(Pictures("new"))


def test_a_report_shows_curves_phrases_and_the_best_and_worst_images(comparisons, tmp_path):
    write_report(tmp_path, comparisons, {"about": "x"}, "A title", overlays=1)
    text = (tmp_path / "results.md").read_text()
    assert "](precision_recall.png)" in text and (tmp_path / "precision_recall.png").stat().st_size > 1000
    assert "| new " in text.split("By phrase:")[1]
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == ["new_best1.png", "new_worst1.png"]
    picture = Image.open(tmp_path / "overlays/new_worst1.png")
    assert picture.width == 3 * 192 and picture.height % 192 == 0


def test_what_a_run_ends_with(comparisons):
    scores = final_scores(comparisons, ["new"])
    base = comparisons[0].base.scores["cgF1"]
    assert scores == pytest.approx({"final/cgF1/new": 0, "final/IL_FPR/new, foreign phrases": 0.5, "final/gain": -base})
    assert "cgF1" in results_text(comparisons, "about")
