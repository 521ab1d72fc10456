"""The tables of an evaluation: base and adapted model side by side, as plain text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .image_results import IMAGE_SCORES, shown_prompts
from .intervals import DRAWS
from .metrics import MAIN_SCORES, STATISTICS, TABLE_SCORES
from .results import Comparison, Intervals

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
    headline = comparisons[0].base.headline
    names = [headline, *(name for name in TABLE_SCORES if name != headline)]
    rows: list[list[str]] = []
    for c in comparisons:
        ends = c.intervals()
        for model, values in _scores_by_model(c).items():
            counts = [c.domain.name, str(len(c.base.videos)), str(c.base.objects)] if model == "base" else [""] * 3
            cells = _cells(model, values, names)
            cells.insert(1, _interval_cell(ends[model], headline, model))
            rows.append([*counts, model, *cells])
    header = ["domain", "videos", "objects", "model", headline, f"{headline}, 95 %", *names[1:]]
    return aligned(header, rows, {0, 3}, markdown)


def intervals_table(comparisons: Sequence[Comparison]) -> str:
    """Return the 95 % intervals of the main scores, as Markdown."""
    rows = []
    for c in comparisons:
        for model, ends in c.intervals().items():
            if ends is not None:
                name = c.domain.name if model == "base" else ""
                rows.append([name, model, *(_interval_cell(ends, score, model) for score in MAIN_SCORES)])
    return aligned(["domain", "model", *MAIN_SCORES], rows, {0, 1}, markdown=True)


def statistics_table(comparisons: Sequence[Comparison]) -> str:
    """Return recall and decay, as Markdown."""
    rows = []
    for c in comparisons:
        for model, values in _scores_by_model(c).items():
            rows.append([c.domain.name if model == "base" else "", model, *_cells(model, values, STATISTICS)])
    return aligned(["domain", "model", *(name.replace("_", " ") for name in STATISTICS)], rows, {0, 1}, markdown=True)


def gate_table(comparisons: Sequence[Comparison], markdown: bool = False) -> str:
    """Return the scores with the domain gate deciding, and their difference from the base's."""
    rows = []
    for c in comparisons:
        if c.gated is not None:
            scores, base = c.gated.result.scores, c.base.scores
            pairs = ((f"{scores[name]:.3f}", f"{scores[name] - base[name]:+.3f}") for name in MAIN_SCORES)
            counts = [c.domain.name, str(len(c.base.videos)), str(c.gated.known)]
            rows.append([*counts, *(cell for pair in pairs for cell in pair)])
    header = ["domain", "videos", "known", *(title for name in MAIN_SCORES for title in (name, "change"))]
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
            rates[name] = sum(each.wrong for each in asked) / sum(len(each.result.videos) for each in asked)
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
            both = _with_change(base.scores(prompt), adapted.scores(prompt) if adapted else None)
            for model, values in both.items():
                head = [*counts, prompt] if model == "base" else [""] * 4
                rows.append([*head, model, *_cells(model, values, IMAGE_SCORES)])
    return aligned(["domain", "images", "objects", "prompt", "model", *IMAGE_SCORES], rows, {0, 3, 4}, markdown)


def _scores_by_model(c: Comparison) -> dict[str, Scores]:
    return _with_change(c.base.scores, c.adapted.scores if c.adapted else None)


def _with_change(base: Scores, adapted: Scores | None) -> dict[str, Scores]:
    if adapted is None:
        return {"base": base}
    return {"base": base, "adapted": adapted, "change": {name: adapted[name] - base[name] for name in base}}


def _cells(model: str, values: Scores, names: Sequence[str]) -> list[str]:
    return [f"{values[name]:{'+' if model == 'change' else ''}.3f}" for name in names]


def _interval_cell(ends: Intervals, score: str, model: str) -> str:
    if ends is None:
        return "-"
    low, high = (f"{end:{'+' if model == 'change' else ''}.2f}" for end in ends[score])
    return f"{low} to {high}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: set[int], markdown: bool) -> str:
    """Return columns of text, those in ``left`` flush left, the others flush right; plain, or as Markdown."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = [("-" * w if i in left else "-" * (w - 1) + ":") if markdown else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def legend(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what a reader of the table must know beside it, as lines."""
    lines = [f"95 %: bootstrap over videos, {DRAWS} draws; a change whose interval holds 0 may be chance"]
    for c in comparisons:
        if c.base.not_scored:
            counted = f"{c.base.not_scored} objects are" if c.base.not_scored > 1 else "1 object is"
            lines.append(f"{c.domain.name}: {counted} on no frame that counts, and left out")
    return lines
