"""The tables of an evaluation: base and adapted model side by side, as plain text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .image_results import IMAGE_SCORES, shown_prompts
from .intervals import DRAWS
from .results import Comparison, Intervals, with_change
from .score_names import ScoreNames
from .text_table import aligned

Scores = dict[str, float]

GATE_TITLE = "With the domain gate deciding: adapters on for videos of a domain it knows, the base for all others:"
IMAGES_TITLE = "Single images, prompted by ground truth (a box, or clicks on what is still wrong), nothing tracked:"


def results_text(comparisons: Sequence[Comparison], about: str) -> str:
    """Return all tables of an evaluation as plain text, for the screen.

    Args:
        comparisons: base and adapted model, domain by domain.
        about: what the scores mean, in one line.
    """
    lines = ["", about, "", table(comparisons), "", *legend(comparisons), ""]
    if any(c.gated for c in comparisons):
        lines += [GATE_TITLE, "", gate_table(comparisons), "", rates_line(comparisons), ""]
    if any(c.images for c in comparisons):
        lines += [IMAGES_TITLE, "", image_table(comparisons), ""]
    return "\n".join(lines)


def table(comparisons: Sequence[Comparison], markdown: bool = False) -> str:
    """Return the scores side by side, with their difference and the headline score's interval."""
    names = comparisons[0].base.names
    columns = [name for name in names.table if any(name in c.base.scores for c in comparisons)]
    rows: list[list[str]] = []
    for c in comparisons:
        ends = c.intervals()
        for model, values in c.scores_by_model().items():
            counts = [c.domain.name, str(c.base.size), str(c.base.parts)] if model == "base" else [""] * 3
            headline, *cells = _cells(names, model, values, [names.headline, *columns])
            rows.append([*counts, model, headline, _interval_cell(names, ends[model], names.headline, model), *cells])
    counted = [names.unit, names.parts]
    header = ["domain", *counted, "model", names.headline, f"{names.headline}, 95 %", *columns]
    return aligned(header, rows, {0, 3}, markdown)


def intervals_table(comparisons: Sequence[Comparison]) -> str:
    """Return the 95 % intervals of the main scores, as Markdown."""
    names, rows = comparisons[0].base.names, []
    for c in comparisons:
        for model, ends in c.intervals().items():
            if ends is not None:
                name = c.domain.name if model == "base" else ""
                rows.append([name, model, *(_interval_cell(names, ends, score, model) for score in names.main)])
    return aligned(["domain", "model", *names.main], rows, {0, 1}, markdown=True)


def gate_table(comparisons: Sequence[Comparison], markdown: bool = False) -> str:
    """Return the scores with the domain gate deciding, and their difference from the base's."""
    names, rows = comparisons[0].base.names, []
    for c in comparisons:
        if c.gated is not None:
            both = with_change(c.base.scores, c.gated.result.scores)
            cells = (_cells(names, model, both[model], names.main) for model in ("adapted", "change"))
            counts = [c.domain.name, str(c.base.size), str(c.gated.known)]
            rows.append([*counts, *(cell for pair in zip(*cells, strict=True) for cell in pair)])
    header = ["domain", names.unit, "known", *(title for name in names.main for title in (name, "change"))]
    return aligned(header, rows, {0}, markdown)


def gate_rates(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return how often the domain gate was wrong about a video.

    Returns:
        ``false_reject``: the share of learned domains' videos that it left to the base. ``false_accept``: the share of
        other domains' videos that it turned adapters on for. ``balanced_accuracy``: only where there are both kinds.
    """
    rates = {}
    for name, learned in (("false_reject", True), ("false_accept", False)):
        asked = [c.gated for c in comparisons if c.gated is not None and c.gated.learned == learned]
        if asked:
            rates[name] = sum(each.wrong for each in asked) / sum(each.result.size for each in asked)
    if len(rates) == 2:
        rates["balanced_accuracy"] = 1 - sum(rates.values()) / 2
    return rates


def decisions_table(comparisons: Sequence[Comparison]) -> str:
    """Return the domain gate's decision on every video, as Markdown."""
    rows = [
        [c.domain.name, video, decision.domain or "none: the base", *(f"{d:.2f}" for d in decision.distances.values())]
        for c in comparisons
        if c.gated is not None
        for video, decision in c.gated.decisions.items()
    ]
    known = next((list(d.distances) for c in comparisons if c.gated for d in c.gated.decisions.values()), [])
    return aligned(["domain", "video", "decision", *known], rows, {0, 1, 2}, markdown=True)


def rates_line(comparisons: Sequence[Comparison]) -> str:
    """Return :func:`gate_rates` as a line of text."""
    return "domain gate: " + ", ".join(
        f"{name.replace('_', ' ')} {rate:.3f}" for name, rate in gate_rates(comparisons).items()
    )


def image_table(comparisons: Sequence[Comparison], markdown: bool = False) -> str:
    """Return the scores on single images, prompt by prompt: COCO's AP, mean IoU and Dice."""
    rows = []
    for c in comparisons:
        if c.images is None:
            continue
        base, adapted = c.images
        for number, prompt in enumerate(shown_prompts(base.clicks)):
            counts = ["", "", ""] if number else [c.domain.name, str(base.images), str(len(base.objects))]
            scores = base.scores(prompt)
            both = {"base": scores} if adapted is None else with_change(scores, adapted.scores(prompt))
            for model, values in both.items():
                head = [*counts, prompt] if model == "base" else [""] * 4
                rows.append([*head, model, *_cells(c.base.names, model, values, IMAGE_SCORES)])
    return aligned(["domain", "images", "objects", "prompt", "model", *IMAGE_SCORES], rows, {0, 3, 4}, markdown)


def _cells(names: ScoreNames, model: str, values: Scores, shown: Sequence[str]) -> list[str]:
    """Return scores as text, "-" where the domain has no such score."""
    return [names.format(name, values[name], model == "change") if name in values else "-" for name in shown]


def _interval_cell(names: ScoreNames, ends: Intervals, score: str, model: str) -> str:
    if ends is None or score not in ends:
        return "-"
    low, high = (names.format(score, end, model == "change", fewer=1) for end in ends[score])
    return f"{low} to {high}"


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what a reader of the table must know beside it, as lines."""
    unit = comparisons[0].base.names.unit
    lines = [f"95 %: bootstrap over {unit}, {DRAWS} draws; a change whose interval holds 0 may be chance"]
    lines += [note for c in comparisons for note in c.base.notes(c.domain)]
    return lines + [note for c in comparisons if c.images for note in c.images[0].notes(c.domain.name)]
