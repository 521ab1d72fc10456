"""How well a nano SAM 3 answers phrases about fresh pictures of the world of words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from src import cli
from src.config import ModelConfig
from src.data.records import RLE
from src.data.synthetic import HELD_OUT_SEED
from src.data.synthetic.words import WORDS, Concept, WordPicture, ask, make_picture
from src.evaluation.concepts.average_precision import average_precision, match_phrases
from src.evaluation.concepts.matching import count_pair
from src.evaluation.concepts.records import ConceptPrediction, ConceptTruth
from src.evaluation.concepts.scores import image_counts, micro_scores, presence_auroc
from src.models.sam3.build import build_model
from src.models.sam3.forward import encode_images, encode_phrases, forward_concepts
from tools.nano_sam3_data import box_of

LEAST_SCORE = 0.02
TESTED, EMPTY = HELD_OUT_SEED + 200_000, HELD_OUT_SEED + 300_000
"""First seeds of the pictures that scores are of, and of those among which empty ones are looked for."""

COLUMNS = ("cgF1@50", "cgF1", "IL_MCC", "IL_FPR", "AUROC", "pmF1@50", "AP50", "pairs")


@dataclass(frozen=True)
class Asked:
    """A phrase about a picture, its instances, and the exemplar box that asks with it or for it."""

    phrase: str
    hits: list[int]
    kind: str
    exemplar: int | None = None


Ask = Callable[[WordPicture, np.random.Generator], list[Asked]]


def ask_words(picture: WordPicture, rng: np.random.Generator) -> list[Asked]:
    """Return four phrases as pre-training asks them, one of three of them absent."""
    asked = []
    for _ in range(4):
        concept, hits = ask(WORDS, picture, rng)
        kind = "+".join(key for key in ("texture", "colour", "shape") if getattr(concept, key)) or "thing"
        asked.append(Asked(concept.phrase(WORDS, rng), hits, kind))
    return asked


def ask_exemplars(picture: WordPicture, rng: np.random.Generator) -> list[Asked]:
    """Return a box around each thing, which asks for all of its colour and shape."""
    asked = []
    for number, thing in enumerate(picture.things):
        concept = Concept(thing.colour, thing.shape)
        asked.append(Asked("visual", [n for n, t in enumerate(picture.things) if concept.matches(t)], "box", number))
    return asked


def ask_unseen(picture: WordPicture, rng: np.random.Generator) -> list[Asked]:
    """Return pairs of colour and shape that were held out: two that are there, two that share a word with a thing."""
    shown = {(str(t.colour), str(t.shape)) for t in picture.things}
    others = sorted(WORDS.held_out - shown)
    near = [pair for pair in others if any(t.colour == pair[0] or t.shape == pair[1] for t in picture.things)]
    asked = []
    for pairs in (sorted(shown & WORDS.held_out), near):
        for _ in range(2 if pairs else 0):
            concept = Concept(*pairs[int(rng.integers(len(pairs)))])
            hits = [number for number, thing in enumerate(picture.things) if concept.matches(thing)]
            asked.append(Asked(concept.phrase(WORDS, rng), hits, "unseen"))
    return asked


def known_pictures(number: int, first_seed: int) -> list[WordPicture]:
    """Return fresh pictures of pairs that pre-training saw."""
    return [make_picture(WORDS, first_seed + i) for i in range(number)]


def unseen_pictures(number: int, first_seed: int) -> list[WordPicture]:
    """Return fresh pictures, in each of them one of the pairs that were held out."""
    pairs = sorted(WORDS.held_out)
    return [make_picture(WORDS, first_seed + i, wanted=pairs[i % len(pairs)]) for i in range(number)]


@torch.no_grad()
def answer(model: Any, picture: WordPicture, asked: list[Asked], name: str) -> list[ConceptPrediction]:
    """Return what the model finds."""
    image = torch.from_numpy(picture.image_HWC)[None]
    boxes = torch.zeros(len(asked), 1, 4)
    labels = torch.full((len(asked), 1), -10)
    for row, each in enumerate(asked):
        if each.exemplar is not None:
            x0, y0, x1, y1 = box_of(picture.mask(each.exemplar))
            boxes[row, 0] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            labels[row, 0] = 1
    text = encode_phrases(model, [each.phrase for each in asked])
    pairs = torch.zeros(len(asked), dtype=torch.long)
    output = forward_concepts(model, encode_images(model, image), pairs, text, boxes, labels)
    found = []
    for row, each in enumerate(asked):
        chosen = output.scores_PQ[row] > LEAST_SCORE
        assert output.masks_KQhw is not None
        masks = F.interpolate(output.masks_KQhw[row][None], picture.owner_HW.shape, mode="bilinear")[0, chosen] > 0
        found.append(
            ConceptPrediction(
                f"{name}/{row}",
                each.phrase,
                output.scores_PQ[row, chosen].double().numpy(),
                (output.boxes_LPQ4[-1, row, chosen] * len(picture.owner_HW)).double().numpy(),
                [RLE.encode(mask) for mask in masks.numpy()],
                float(output.presence_LP[-1, row].sigmoid()),
            )
        )
    return found


def collect(
    model: Any, pictures: list[WordPicture], ask_about: Ask, seed: int = 1
) -> tuple[list[ConceptPrediction], list[ConceptTruth], list[str]]:
    """Return predictions, truths and kinds of phrases about pictures."""
    predictions: list[ConceptPrediction] = []
    truths: list[ConceptTruth] = []
    kinds: list[str] = []
    for number, picture in enumerate(pictures):
        asked = ask_about(picture, np.random.default_rng((seed, number)))
        if asked:
            predictions += answer(model, picture, asked, str(number))
            kinds += [each.kind for each in asked]
            truths += [
                ConceptTruth(f"{number}/{row}", each.phrase, 1, [RLE.encode(picture.mask(hit)) for hit in each.hits])
                for row, each in enumerate(asked)
            ]
    return predictions, truths, kinds


def scores(predictions: list[ConceptPrediction], truths: list[ConceptTruth]) -> dict[str, float]:
    """Return cgF1 and its parts, AUROC of presence, and AP50 of all pairs as one concept."""
    counts = [count_pair(*pair) for pair in zip(predictions, truths, strict=True)]
    images = [truth.image_id for truth in truths]
    found = {name: float(value[0]) for name, value in micro_scores(image_counts(counts, images).sum(0)[None]).items()}
    as_one = [[type(each)(**{**each.__dict__, "phrase": "any"}) for each in every] for every in (predictions, truths)]
    matches = match_phrases(as_one[0], as_one[1], images)  # type: ignore[arg-type]
    found["AP50"] = float(average_precision(matches)["AP50"][0])
    return {**found, "AUROC": presence_auroc(counts), "pairs": len(truths)}


def report(model: Any, pictures: int, first_seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """Return scores of phrases about fresh pictures."""
    found = scores(*collect(model, known_pictures(pictures, first_seed), ask_words)[:2])
    return {name: round(value, 3) for name, value in found.items()}


def tables(model: Any, pictures: int) -> Iterator[str]:
    """Yield the lines of the full report, in Markdown."""
    yield f"| phrases about fresh pictures | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    drawn = known_pictures(pictures, TESTED)
    predictions, truths, kinds = collect(model, drawn, ask_words)
    yield _row("known words", predictions, truths)
    for kind in sorted(set(kinds)):
        yield _row(f"… {kind}", *_chosen(predictions, truths, [each == kind for each in kinds]))
    for name, least, most in (("one instance", 1, 1), ("two", 2, 2), ("three or more", 3, 9)):
        yield _row(f"… {name}", *_chosen(predictions, truths, [least <= len(t.masks) <= most for t in truths]))
    yield _row("exemplar boxes, no words", *collect(model, drawn, ask_exemplars)[:2])
    unseen = unseen_pictures(pictures, TESTED)
    yield _row("pairs never seen, half of them absent", *collect(model, unseen, ask_unseen)[:2])
    empty = [picture for picture in known_pictures(25 * max(8, pictures // 10), EMPTY) if not picture.things]
    yield _row("pictures without anything", *collect(model, empty, ask_words)[:2])


def _row(name: str, predictions: list[ConceptPrediction], truths: list[ConceptTruth]) -> str:
    found = scores(predictions, truths)
    present, absent = (any(bool(t.masks) == there for t in truths) for there in (True, False))
    shown = {**found, "IL_MCC": found["IL_MCC"] if present and absent else math.nan}
    if not (present and absent):
        shown |= {"cgF1": math.nan, "cgF1@50": math.nan}
    if not present:
        shown |= dict.fromkeys(("pmF1@50", "AP50"), math.nan)
    if not absent:
        shown["IL_FPR"] = math.nan
    cells = [shown[column] for column in COLUMNS]
    formats = [".0f" if c == "pairs" else ".1f" if c.startswith("cgF1") else ".3f" for c in COLUMNS]
    return f"| {name} | " + " | ".join(
        "–" if math.isnan(cell) else format(cell, form) for cell, form in zip(cells, formats, strict=True)
    ) + " |"  # fmt: skip


def _chosen(
    predictions: list[ConceptPrediction], truths: list[ConceptTruth], chosen: list[bool]
) -> tuple[list[ConceptPrediction], list[ConceptTruth]]:
    return list(compress(predictions, chosen)), list(compress(truths, chosen))


def main(arguments: argparse.Namespace) -> None:
    model = build_model(ModelConfig(name="sam3_nano", checkpoint=arguments.model))
    for line in tables(model, arguments.pictures):
        print(line, flush=True)


if __name__ == "__main__":
    arguments = cli.parser(__doc__.splitlines()[0], "python -m tools.nano_sam3_report --pictures 100")
    arguments.add_argument("--model", default="checkpoints/sam3_nano", help="folder of the model")
    arguments.add_argument("--pictures", type=int, default=400, help="fresh pictures (default: 400)")
    cli.run(main, arguments)
