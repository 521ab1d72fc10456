"""What an evaluation leaves behind: results.json, results.md, and pictures of best and worst cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ..core.files import write_text
from ..data.drawing import draw_masks
from ..data.records import RLE, VideoRecord
from .figures import save_figure
from .image_results import ImageResult, shown_prompts
from .metrics import ObjectScores, aggregate
from .results import GatedResult, VideoResult
from .tables import (
    GATE_TITLE,
    IMAGES_TITLE,
    Comparison,
    decisions_table,
    gate_rates,
    gate_table,
    image_table,
    intervals_table,
    legend,
    rates_line,
    statistics_table,
    table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_FRAMES = 4


def results_json(comparisons: list[Comparison], about: dict[str, Any]) -> dict[str, Any]:
    """All that was measured, as plain data: ``{"domains": {name: …}, **about}``, with a domain gate also its rates.

    A domain has ``base`` and ``adapted`` (the base's again where there is only the base), each score → value;
    ``videos``, ``objects`` and ``objects_not_scored``, counts; ``protocol``; ``intervals``, of ``base``, ``adapted``
    and ``change``: score → [low, high]; ``per_video``; with a domain gate ``gated``; and with clicks ``images``.
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
        "videos": len(c.base.videos),
        "objects": c.base.objects,
        "objects_not_scored": c.base.not_scored,
        "protocol": c.domain.protocol,
        "intervals": {
            model: None if of is None else {score: list(pair) for score, pair in of.items()}
            for model, of in ends.items()
        },
        "per_video": [
            _video_json(base, other) for base, other in zip(c.base.videos, adapted.videos, strict=True) if base.scores
        ],
        **({} if c.gated is None else {"gated": _gated_json(c.gated)}),
        **({} if c.images is None else {"images": _images_json(*c.images)}),
    }


def _gated_json(gated: GatedResult) -> dict[str, Any]:
    """Scores, how many videos were known, and for each video the domain or none, and how far it is from each."""
    decisions = {
        video: {"domain": decision.domain, "distances": decision.distances}
        for video, decision in gated.decisions.items()
    }
    return {**gated.result.scores, "known": gated.known, "decisions": decisions}


def _video_json(base: VideoResult, adapted: VideoResult) -> dict[str, Any]:
    """A video's scores, means over its objects, and each object's, means over its frames."""

    def of_object(scores: ObjectScores) -> dict[str, float]:
        return {"J": scores.J, "F": scores.F, "frames": len(scores.J_T)}

    def of_video(video: VideoResult) -> dict[str, float]:
        scores = aggregate(list(video.scores.values()))
        return {name: scores[name] for name in ("J", "F", "J&F")}

    return {
        "video": base.video_id,
        "base": of_video(base),
        "adapted": of_video(adapted),
        "objects": [
            {
                "object": object_id,
                "original_id": base.original_ids[object_id],
                "base": of_object(scores),
                "adapted": of_object(adapted.scores[object_id]),
            }
            for object_id, scores in base.scores.items()
        ],
    }


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


def write_report(folder: Path, comparisons: list[Comparison], about: dict[str, Any], title: str, overlays: int) -> None:
    """Write results.json, results.md, the overlays, and with clicks clicks.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[str] = []
    for comparison in comparisons:
        pictures += _write_overlays(folder / "overlays", comparison, overlays)
    write_text(folder / "results.json", json.dumps(results_json(comparisons, about), indent=2) + "\n")
    lines = [f"# {title}", "", about["about"], "", summary_markdown(comparisons), ""]
    if any(c.gated for c in comparisons):
        lines += ["What the gate said of each video, and how far it is from each domain (up to 1 is inside):", ""]
        lines += [decisions_table(comparisons), ""]
    lines += ["95 % intervals:", "", intervals_table(comparisons), ""]
    lines += ["Share of frames above 0.5 (recall), and first quarter less last quarter of the frames (decay):", ""]
    lines += [statistics_table(comparisons), ""]
    if any(c.images for c in comparisons):
        save_figure(click_curves(comparisons), folder / "clicks.png")
        lines += [IMAGES_TITLE, "", image_table(comparisons, markdown=True), "", "![IoU over clicks](clicks.png)", ""]
    lines += [f"![{name}](overlays/{name})" for name in pictures]
    write_text(folder / "results.md", "\n".join(lines) + "\n")


def summary_markdown(comparisons: Sequence[Comparison]) -> str:
    """The table, and with a domain gate its table and its rates."""
    shown = list(comparisons)
    lines = [table(shown, markdown=True), "", *legend(shown)]
    if any(c.gated for c in shown):
        lines += ["", GATE_TITLE, "", gate_table(shown, markdown=True), "", rates_line(shown)]
    return "\n".join(lines)


def click_curves(comparisons: list[Comparison]) -> Figure:
    """Mean IoU over the number of clicks, a plot for each domain with images."""
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
    """Draw the videos on which the (adapted) model is best and worst; returns the file names."""
    if not count:
        return []
    folder.mkdir(exist_ok=True)
    judged = comparison.adapted or comparison.base
    mean_J = {video.video_id: video.J for video in judged.videos if video.scores}
    ranked = sorted(mean_J, key=lambda video_id: (-mean_J[video_id], video_id))
    chosen = {video_id: f"best{rank}" for rank, video_id in enumerate(ranked[:count], 1)}
    worst = [video_id for video_id in ranked[::-1][:count] if video_id not in chosen]
    chosen |= {video_id: f"worst{rank}" for rank, video_id in enumerate(worst, 1)}
    base = {v.video_id: v.predicted for v in comparison.base.videos}
    adapted = {v.video_id: v.predicted for v in comparison.adapted.videos} if comparison.adapted else None
    names = []
    for video in comparison.domain.videos():
        if (label := chosen.get(video.video_id)) is None:
            continue
        rows = {"truth": true_masks(video), "base": base[video.video_id]}
        if adapted is not None:
            rows["adapted"] = adapted[video.video_id]
        name = f"{comparison.domain.name}_{label}.png"
        Image.fromarray(overlay_sheet(video, rows)).save(folder / name)
        names.append(name)
    return sorted(names)


def true_masks(video: VideoRecord) -> dict[int, list[RLE | None]]:
    """A video's true masks in the shape of predicted ones."""
    return {
        o.object_id: [s if s is None or isinstance(s, RLE) else RLE.encode(s.decode()) for s in o.segmentations]
        for o in video.objects
    }


def shown_frames(video: VideoRecord, frames: int = SHEET_FRAMES) -> list[int]:
    """The numbers of so many frames, spread over those that somebody annotated."""
    annotated = [t for t in range(len(video)) if video.is_annotated(t)]
    return [annotated[i] for i in np.linspace(0, len(annotated) - 1, min(frames, len(annotated))).round().astype(int)]


def overlay_sheet(video: VideoRecord, rows: dict[str, Any], frames: int = SHEET_FRAMES, cell: int = 192) -> np.ndarray:
    """Masks drawn over some frames of a video, a row for each set of masks.

    Args:
        video: where the frames come from.
        rows: label → object id → masks, one a frame (RLE or None).
        frames: how many frames (:func:`shown_frames`).
        cell: width of a frame in the sheet, in pixels.

    Returns:
        RGB uint8 (rows × height, frames × width, 3).
    """
    shown = shown_frames(video, frames)
    height = max(1, round(cell * video.height / video.width))
    sheet = []
    for label, masks in rows.items():
        cells = []
        for t in shown:
            picture = draw_masks(
                video.frames[t].read(), {i: m[t].decode() for i, m in masks.items() if m[t] is not None}
            )
            image = Image.fromarray(picture).resize((cell, height))
            ImageDraw.Draw(image).text((4, 3), f"{label}, frame {t}", fill="white", stroke_width=1, stroke_fill="black")
            cells.append(np.asarray(image))
        sheet.append(np.concatenate(cells, axis=1))
    return np.concatenate(sheet)
