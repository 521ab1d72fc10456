"""The files of an evaluation: results.json, results.md, and pictures of best and worst cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from ..core.files import write_text
from ..core.streams import in_markdown
from .figures import save_figure
from .image_results import ImageResult, shown_prompts
from .results import Comparison, GatedResult
from .tables import (
    GATE_TITLE,
    IMAGES_TITLE,
    decisions_table,
    gate_rates,
    gate_table,
    image_table,
    intervals_table,
    legend,
    rates_line,
    table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def results_json(comparisons: Sequence[Comparison], about: dict[str, Any]) -> dict[str, Any]:
    """Return all results as plain data: ``{"domains": {name: …}, **about}``, with a domain gate also its rates.

    A domain has these keys:

    - ``base`` and ``adapted``: score → value; without an adapted model both are the base's.
    - ``videos``, ``objects``, ``objects_not_scored``: counts. ``protocol``.
    - ``intervals``: ``base``, ``adapted`` and ``change``, score → [low, high].
    - ``per_video``; with a domain gate ``gated``; with clicks ``images``.
    """
    rates = gate_rates(comparisons)
    return {
        "domains": {c.domain.name: _domain_json(c) for c in comparisons},
        **({"domain_gate": rates} if rates else {}),
        **about,
    }


def _domain_json(c: Comparison) -> dict[str, Any]:
    adapted = c.adapted or c.base
    ends = c.intervals()
    return {
        "base": c.base.scores,
        "adapted": adapted.scores,
        **c.base.counts(c.domain),
        "intervals": {
            model: None if by_score is None else {score: list(pair) for score, pair in by_score.items()}
            for model, by_score in ends.items()
        },
        "per_video": c.base.per_unit(adapted),
        **({} if c.gated is None else {"gated": _gated_json(c.gated)}),
        **({} if c.images is None else {"images": _images_json(*c.images)}),
    }


def _gated_json(gated: GatedResult) -> dict[str, Any]:
    """Return the scores, the number of known videos, and each video's domain (or none) and distances."""
    decisions = {
        video: {"domain": decision.domain, "distances": decision.distances}
        for video, decision in gated.decisions.items()
    }
    return {**gated.result.scores, "known": gated.known, "decisions": decisions}


def _images_json(base: ImageResult, adapted: ImageResult | None) -> dict[str, Any]:
    def of_model(result: ImageResult) -> dict[str, Any]:
        scores = {prompt: result.scores(prompt) for prompt in shown_prompts(result.clicks)}
        return {**scores, "mIoU_by_clicks": result.click_curve()}

    return {
        "images": base.images,
        "objects": len(base.objects),
        "base": of_model(base),
        "adapted": of_model(adapted or base),
        "per_object": [
            {
                "image": o.image,
                "object": o.object_id,
                "original_id": o.original_id,
                "base": {prompt: found.iou for prompt, found in o.found.items()},
                "adapted": {prompt: found.iou for prompt, found in other.found.items()},
            }
            for o, other in zip(base.objects, (adapted or base).objects, strict=True)
        ],
    }


def write_report(
    folder: Path, comparisons: Sequence[Comparison], about: dict[str, Any], title: str, overlays: int
) -> None:
    """Write results.json, results.md, the overlays, and with clicks clicks.png into a folder.

    Args:
        folder: created if missing.
        comparisons: base and adapted model, domain by domain.
        about: further keys of results.json; ``about`` says in one line what the scores mean.
        title: heading of results.md.
        overlays: pictures of best and of worst cases, each, for every domain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[str] = []
    for comparison in comparisons:
        pictures += _write_overlays(folder / "overlays", comparison, overlays)
    write_text(folder / "results.json", json.dumps(results_json(comparisons, about), indent=2) + "\n")
    lines = [f"# {title}", "", about["about"], "", summary_markdown(comparisons), ""]
    if any(c.gated for c in comparisons):
        lines += ["The gate's decision on each video, and the distances to each domain (up to 1 is inside):", ""]
        lines += [decisions_table(comparisons), ""]
    lines += ["95 % intervals:", "", intervals_table(comparisons), ""]
    lines += comparisons[0].base.sections(folder, comparisons)
    if any(c.images for c in comparisons):
        save_figure(click_curves(comparisons), folder / "clicks.png")
        lines += [IMAGES_TITLE, "", image_table(comparisons, markdown=True), "", "![IoU over clicks](clicks.png)", ""]
    lines += [f"![{in_markdown(name)}](overlays/{quote(name)})" for name in pictures]
    write_text(folder / "results.md", "\n".join(lines) + "\n")


def summary_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the table, and with a domain gate its table and its rates, as Markdown."""
    lines = [table(comparisons, markdown=True), "", *legend(comparisons)]
    if any(c.gated for c in comparisons):
        lines += ["", GATE_TITLE, "", gate_table(comparisons, markdown=True), "", rates_line(comparisons)]
    return "\n".join(lines)


def click_curves(comparisons: Sequence[Comparison]) -> Figure:
    """Plot mean IoU over the number of clicks, for each domain with images."""
    from matplotlib.figure import Figure

    shown = [(c.domain.name, c.images) for c in comparisons if c.images is not None]
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    for axes, (name, models) in zip(figure.subplots(1, len(shown), squeeze=False).flat, shown, strict=True):
        for label, result in zip(("base", "adapted"), models, strict=True):
            if result is not None:
                curve = result.click_curve()
                axes.plot(range(1, len(curve) + 1), curve, marker="o", label=label)
        axes.set(title=name, xlabel="clicks", ylabel="mean IoU", ylim=(0, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure


def _write_overlays(folder: Path, comparison: Comparison, count: int) -> list[str]:
    """Draw the units on which the (adapted) model is best and worst; return the file names."""
    if not count:
        return []
    folder.mkdir(exist_ok=True)
    means = (comparison.adapted or comparison.base).ranking()
    ranked = sorted(means, key=lambda unit: (-means[unit], unit))
    chosen = {unit: f"best{rank}" for rank, unit in enumerate(ranked[:count], 1)}
    worst = [unit for unit in ranked[::-1][:count] if unit not in chosen]
    chosen |= {unit: f"worst{rank}" for rank, unit in enumerate(worst, 1)}
    names = []
    for unit, sheet in comparison.base.sheets(comparison.domain, comparison.adapted, list(chosen)).items():
        name = f"{comparison.domain.name}_{chosen[unit]}.png"
        Image.fromarray(sheet).save(folder / name)
        names.append(name)
    return sorted(names)
