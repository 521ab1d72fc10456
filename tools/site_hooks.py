"""Hooks of mkdocs: put the pages of the repository's root beside those of docs, and turn links to fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "LORA_IMPLEMENTATION_GUIDE.md": "guide.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "data/README.md": "data.md",
}
"""Pages that are kept outside docs, and what the site calls them."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are kept outside docs."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that hold in the repository into ones that hold on the site."""
    sources = {name: source for source, name in PAGES.items()}
    inside = page.file.src_uri not in sources
    folder = Path("docs", page.file.src_uri) if inside else Path(sources[page.file.src_uri])

    def turn(link: re.Match[str]) -> str:
        target, _, anchor = link[1].partition("#")
        if not target or "://" in target:
            return link[0]
        path = (ROOT / folder.parent / target).resolve()
        if not path.is_relative_to(ROOT):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        new = PAGES.get(name, name.removeprefix("docs/"))
        depth = len(Path(page.file.src_uri).parts) - 1
        return f"]({'../' * depth}{new}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", turn, markdown)
