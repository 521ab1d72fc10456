"""The files of an evaluation: results.json, results.md, and pictures of best and worst cases."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ..core.files import write_text
from ..data.drawing import draw_masks
from ..data.records import RLE, VideoRecord
from .figures import save_figure
from .image_results import ImageResult, shown_prompts
from .metrics import MAIN_SCORES, ObjectScores
from .results import Comparison, GatedResult, VideoResult
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
    statistics_table,
    table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_FRAMES = 4


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
        "videos": len(c.base.videos),
        "objects": c.base.objects,
        "objects_not_scored": c.base.not_scored,
        "protocol": c.domain.protocol,
        "intervals": {
            model: None if by_score is None else {score: list(pair) for score, pair in by_score.items()}
            for model, by_score in ends.items()
        },
        "per_video": [
            _video_json(base, other) for base, other in zip(c.base.videos, adapted.videos, strict=True) if base.scores
        ],
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


def _video_json(base: VideoResult, adapted: VideoResult) -> dict[str, Any]:
    """Return a video's scores, means over its objects, and each object's, means over its frames."""

    def of_object(scores: ObjectScores) -> dict[str, float]:
        return {"J": scores.J, "F": scores.F, "frames": len(scores.J_T)}

    def of_video(video: VideoResult) -> dict[str, float]:
        means = video.means()
        return {name: means[name] for name in MAIN_SCORES}

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


def write_report(
    folder: Path, comparisons: Sequence[Comparison], about: dict[str, Any], title: str, overlays: int
) -> None:
    """Write results.json, results.md, the overlays, and with clicks clicks.png into a folder.

    Args:
        folder: created if missing.
        comparisons: base and adapted model, domain by domain.
        about: further keys of results.json; ``about`` says in one line what the scores mean.
        title: heading of results.md.
        overlays: pictures of best and of worst videos, each, for every domain.
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
    lines += ["Share of frames above 0.5 (recall), and first quarter less last quarter of the frames (decay):", ""]
    lines += [statistics_table(comparisons), ""]
    if any(c.images for c in comparisons):
        save_figure(click_curves(comparisons), folder / "clicks.png")
        lines += [IMAGES_TITLE, "", image_table(comparisons, markdown=True), "", "![IoU over clicks](clicks.png)", ""]
    lines += [f"![{name}](overlays/{name})" for name in pictures]
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
    """Draw the videos on which the (adapted) model is best and worst; return the file names."""
    if not count:
        return []
    folder.mkdir(exist_ok=True)
    judged = comparison.adapted or comparison.base
    means = {video.video_id: video.means()[judged.headline] for video in judged.videos if video.scores}
    ranked = sorted(means, key=lambda video_id: (-means[video_id], video_id))
    chosen = {video_id: f"best{rank}" for rank, video_id in enumerate(ranked[:count], 1)}
    worst = [video_id for video_id in ranked[::-1][:count] if video_id not in chosen]
    chosen |= {video_id: f"worst{rank}" for rank, video_id in enumerate(worst, 1)}
    base = {v.video_id: v.predicted for v in comparison.base.videos}
    adapted = {v.video_id: v.predicted for v in comparison.adapted.videos} if comparison.adapted else None
    names = []
    for video in comparison.domain.videos():
        if (label := chosen.get(video.video_id)) is None:
            continue
        rows: dict[str, Mapping[int, Sequence[RLE | None]]] = {
            "truth": true_masks(video),
            "base": base[video.video_id],
        }
        if adapted is not None:
            rows["adapted"] = adapted[video.video_id]
        name = f"{comparison.domain.name}_{label}.png"
        Image.fromarray(overlay_sheet(video, rows)).save(folder / name)
        names.append(name)
    return sorted(names)


def true_masks(video: VideoRecord) -> dict[int, list[RLE | None]]:
    """Return a video's true masks in the form of predicted ones."""
    return {
        o.object_id: [s if s is None or isinstance(s, RLE) else RLE.encode(s.decode()) for s in o.segmentations]
        for o in video.objects
    }


def shown_frames(video: VideoRecord, frames: int = SHEET_FRAMES) -> list[int]:
    """Return the numbers of up to ``frames`` frames, spread evenly over the annotated ones."""
    annotated = [t for t in range(len(video)) if video.is_annotated(t)]
    return [annotated[i] for i in np.linspace(0, len(annotated) - 1, min(frames, len(annotated))).round().astype(int)]


def overlay_sheet(
    video: VideoRecord,
    rows: Mapping[str, Mapping[int, Sequence[RLE | None]]],
    frames: int = SHEET_FRAMES,
    cell: int = 192,
) -> np.ndarray:
    """Draw masks over some frames of a video, a row for each set of masks.

    Args:
        video: source of the frames.
        rows: label → object id → masks, one a frame (RLE or None).
        frames: number of frames (:func:`shown_frames`).
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
            visible = {i: mask.decode() for i, of_object in masks.items() if (mask := of_object[t]) is not None}
            picture = draw_masks(video.frames[t].read(), visible)
            image = Image.fromarray(picture).resize((cell, height))
            ImageDraw.Draw(image).text((4, 3), f"{label}, frame {t}", fill="white", stroke_width=1, stroke_fill="black")
            cells.append(np.asarray(image))
        sheet.append(np.concatenate(cells, axis=1))
    return np.concatenate(sheet)
