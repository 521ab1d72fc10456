"""Columns of text, aligned."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.streams import in_markdown, one_line


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: set[int], markdown: bool) -> str:
    """Return columns of text, those in ``left`` flush left, the others flush right; plain, or as Markdown."""
    shown = in_markdown if markdown else one_line  # names come from data
    header, rows = [shown(cell) for cell in header], [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = [("-" * w if i in left else "-" * (w - 1) + ":") if markdown else "-" * w for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])
