"""The tables of an evaluation: base and adapted model side by side, as plain text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .domains import Domain
from .image_results import ImageResult, shown_prompts
from .intervals import DRAWS, bootstrap, change, intervals
from .metrics import ObjectScores
from .results import DomainResult, GatedResult

Scores = dict[str, float]
Intervals = dict[str, tuple[float, float]] | None

SCORES = ("J", "F", "J&F", "mIoU", "Dice")
GATE_TITLE = "With the domain gate deciding: adapters on for videos of a domain it knows, the base for all others:"
IMAGES_TITLE = "Single images, prompted by ground truth (a box, or clicks on what is still wrong), nothing tracked:"


@dataclass(frozen=True)
class Comparison:
    """The base and the adapted model on one domain; ``adapted`` is None where there is only the base.

    ``images`` are the same two on its single images, None where they were not asked for; ``gated`` is the adapted model
    with its domain gate deciding, None without a gate.
    """

    domain: Domain
    base: DomainResult
    adapted: DomainResult | None
    images: tuple[ImageResult, ImageResult | None] | None = None
    gated: GatedResult | None = None

    def intervals(self) -> dict[str, Intervals]:
        """The 95 % intervals of base, adapted and change; None for those that there are none of."""
        base = bootstrap(_by_video(self.base))
        adapted = bootstrap(_by_video(self.adapted)) if self.adapted is not None else None
        return {
            "base": intervals(base),
            "adapted": intervals(adapted),
            "change": intervals(change(base, adapted)),
        }


def _by_video(result: DomainResult) -> list[list[ObjectScores]]:
    return [list(video.scores.values()) for video in result.videos]


def table(comparisons: list[Comparison], markdown: bool = False) -> str:
    """The scores side by side, with their difference and J's interval; plain text of aligned columns, or Markdown."""
    rows: list[list[str]] = []
    for c in comparisons:
        ends = c.intervals()
        for model, values in _base_adapted_change(c.base.scores, c.adapted.scores if c.adapted else None).items():
            counts = [c.domain.name, str(len(c.base.videos)), str(c.base.objects)] if model == "base" else [""] * 3
            cells = _cells(model, values, SCORES)
            cells.insert(1, _interval_cell(ends[model], "J", model))
            rows.append([*counts, model, *cells])
    return aligned(["domain", "videos", "objects", "model", "J", "J, 95 %", *SCORES[1:]], rows, {0, 3}, markdown)


def intervals_table(comparisons: list[Comparison]) -> str:
    """The 95 % intervals of J, F and J&F, as Markdown."""
    rows = []
    for c in comparisons:
        for model, of in c.intervals().items():
            if of is not None:
                name = c.domain.name if model == "base" else ""
                rows.append([name, model, *(_interval_cell(of, score, model) for score in ("J", "F", "J&F"))])
    return aligned(["domain", "model", "J", "F", "J&F"], rows, {0, 1}, markdown=True)


def statistics_table(comparisons: list[Comparison]) -> str:
    """Recall and decay of J and F, as Markdown."""
    names = ("J_recall", "J_decay", "F_recall", "F_decay")
    rows = []
    for c in comparisons:
        for model, values in _base_adapted_change(c.base.scores, c.adapted.scores if c.adapted else None).items():
            rows.append([c.domain.name if model == "base" else "", model, *_cells(model, values, names)])
    return aligned(["domain", "model", *(name.replace("_", " ") for name in names)], rows, {0, 1}, markdown=True)


def gate_table(comparisons: list[Comparison], markdown: bool = False) -> str:
    """The scores with the domain gate deciding, and their distance from the base's."""
    rows = []
    for c in comparisons:
        if c.gated is not None:
            scores, base = c.gated.result.scores, c.base.scores
            pairs = ((f"{scores[name]:.3f}", f"{scores[name] - base[name]:+.3f}") for name in ("J", "F", "J&F"))
            counts = [c.domain.name, str(len(c.base.videos)), str(c.gated.known)]
            rows.append([*counts, *(cell for pair in pairs for cell in pair)])
    header = ["domain", "videos", "known", "J", "change", "F", "change", "J&F", "change"]
    return aligned(header, rows, {0}, markdown)


def gate_rates(comparisons: list[Comparison]) -> dict[str, float]:
    """How often the domain gate was wrong about a video.

    Returns:
        ``false_reject``: the share of videos of learned domains that it left to the base; ``false_accept``: the share
        of other domains' videos that it turned adapters on for; and where there are both kinds ``balanced_accuracy``.
    """
    rates = {}
    for name, learned in (("false_reject", True), ("false_accept", False)):
        asked = [c.gated for c in comparisons if c.gated is not None and c.gated.learned == learned]
        if asked:
            rates[name] = sum(each.wrong for each in asked) / sum(len(each.result.videos) for each in asked)
    if len(rates) == 2:
        rates["balanced_accuracy"] = 1 - sum(rates.values()) / 2
    return rates


def decisions_table(comparisons: list[Comparison]) -> str:
    """Markdown: the gate's word on every video."""
    rows = [
        [c.domain.name, video, decision.domain or "none: the base", *(f"{d:.2f}" for d in decision.distances.values())]
        for c in comparisons
        if c.gated is not None
        for video, decision in c.gated.decisions.items()
    ]
    known = next((list(d.distances) for c in comparisons if c.gated for d in c.gated.decisions.values()), [])
    return aligned(["domain", "video", "decision", *known], rows, {0, 1, 2}, markdown=True)


def rates_line(comparisons: list[Comparison]) -> str:
    """:func:`gate_rates` as a line of text."""
    return "domain gate: " + ", ".join(
        f"{name.replace('_', ' ')} {rate:.3f}" for name, rate in gate_rates(comparisons).items()
    )


def image_table(comparisons: list[Comparison], markdown: bool = False) -> str:
    """What became of single images, prompt by prompt: COCO's AP, mean IoU and Dice."""
    names = ("AP", "AP50", "AP75", "mIoU", "Dice")
    rows = []
    for c in comparisons:
        if c.images is None:
            continue
        base, adapted = c.images
        for place, prompt in enumerate(shown_prompts(base.clicks)):
            counts = ["", "", ""] if place else [c.domain.name, str(base.images), str(len(base.objects))]
            both = _base_adapted_change(base.scores(prompt), adapted.scores(prompt) if adapted else None)
            for model, values in both.items():
                head = [*counts, prompt] if model == "base" else [""] * 4
                rows.append([*head, model, *_cells(model, values, names)])
    return aligned(["domain", "images", "objects", "prompt", "model", *names], rows, {0, 3, 4}, markdown)


def _base_adapted_change(base: Scores, adapted: Scores | None) -> dict[str, Scores]:
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


def aligned(header: list[str], rows: list[list[str]], left: set[int], markdown: bool) -> str:
    """Columns of text, those in ``left`` flush left, the others flush right; plain, or as Markdown."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = [("-" * w if i in left else "-" * (w - 1) + ":") if markdown else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def legend(comparisons: list[Comparison]) -> list[str]:
    """What a reader of the table must know beside it, as lines."""
    lines = [f"95 %: bootstrap over videos, {DRAWS} draws; a change whose interval holds 0 may be chance"]
    for c in comparisons:
        if c.base.not_scored:
            counted = f"{c.base.not_scored} objects are" if c.base.not_scored > 1 else "1 object is"
            lines.append(f"{c.domain.name}: {counted} on no frame that counts, and left out")
    return lines
