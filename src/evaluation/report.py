"""The table of an evaluation: on the screen, as results.json and results.md, with pictures of best and worst cases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from src.data.drawing import draw_masks
from src.data.records import RLE, VideoRecord
from src.evaluation.forgetting import Domain, DomainResult
from src.files import write_text

SCORES = ("J", "F", "J&F", "mIoU", "Dice")


@dataclass(frozen=True)
class Comparison:
    """The base and the adapted model on one domain; ``adapted`` is None where there is only the base."""

    domain: Domain
    base: DomainResult
    adapted: DomainResult | None


def results_json(comparisons: list[Comparison], about: dict[str, Any]) -> dict[str, Any]:
    """All that was measured, as plain data: ``{"domains": {name: {"base", "adapted", "videos", "objects"}}}``."""
    return {
        "domains": {
            c.domain.name: {
                "base": c.base.scores,
                "adapted": (c.adapted or c.base).scores,
                "videos": len(c.base.videos),
                "objects": c.base.objects,
            }
            for c in comparisons
        },
        **about,
    }


def table(comparisons: list[Comparison], markdown: bool = False) -> str:
    """The scores side by side, with their difference; plain text of aligned columns, or Markdown."""
    header = ["domain", "videos", "objects", "model", *SCORES]
    rows: list[list[str]] = []
    for c in comparisons:
        counts = [c.domain.name, str(len(c.base.videos)), str(c.base.objects)]
        rows.append([*counts, "base", *(f"{c.base.scores[s]:.3f}" for s in SCORES)])
        if c.adapted is not None:
            rows.append(["", "", "", "adapted", *(f"{c.adapted.scores[s]:.3f}" for s in SCORES)])
            change = (f"{c.adapted.scores[s] - c.base.scores[s]:+.3f}" for s in SCORES)
            rows.append(["", "", "", "change", *change])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [
            f"{c:<{w}}" if i in (0, 3) else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = [("-" * w if i in (0, 3) else "-" * (w - 1) + ":") if markdown else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def write_report(folder: Path, comparisons: list[Comparison], about: dict[str, Any], title: str, overlays: int) -> None:
    """Write results.json, results.md and the overlays into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[str] = []
    for comparison in comparisons:
        pictures += _write_overlays(folder / "overlays", comparison, overlays)
    write_text(folder / "results.json", json.dumps(results_json(comparisons, about), indent=2) + "\n")
    lines = [f"# {title}", "", about["about"], "", table(comparisons, markdown=True), ""]
    lines += [f"![{name}](overlays/{name})" for name in pictures]
    write_text(folder / "results.md", "\n".join(lines) + "\n")


def _write_overlays(folder: Path, comparison: Comparison, count: int) -> list[str]:
    """Draw the videos on which the (adapted) model is best and worst; returns the file names."""
    if not count:
        return []
    folder.mkdir(exist_ok=True)
    judged = comparison.adapted or comparison.base
    mean_J = {v.video_id: float(np.mean(list(v.J_per_object.values()))) for v in judged.videos if v.J_per_object}
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


def overlay_sheet(
    video: VideoRecord, rows: dict[str, Any], frames: int = 4, cell: int = 192
) -> np.ndarray:  # fmt: skip
    """Masks drawn over some frames of a video, a row for each set of masks.

    Args:
        video: where the frames come from.
        rows: label → object id → masks, one a frame (RLE or None).
        frames: how many frames, spread over the video.
        cell: width of a frame in the sheet, in pixels.

    Returns:
        RGB uint8 (rows × height, frames × width, 3).
    """
    shown = np.unique(np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int))
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
