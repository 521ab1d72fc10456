"""Links that hold in the repository hold on the documentation's site, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tools.site_hooks import PAGES, ROOT, on_page_markdown


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("index.md", "docs/metrics.md", "metrics.md"),
        ("index.md", "LORA_IMPLEMENTATION_GUIDE.md#lora", "guide.md#lora"),
        ("index.md", "docs/images/sample_masks.png", "images/sample_masks.png"),
        ("index.md", "data/README.md", "data.md"),
        ("training.md", "../LORA_IMPLEMENTATION_GUIDE.md", "guide.md"),
        ("training.md", "config.md", "config.md"),
        ("howto/video.md", "../measurements.md", "../measurements.md"),
        ("howto/video.md", "../../README.md", "../index.md"),
        ("training.md", "https://arxiv.org/abs/1606.09282", "https://arxiv.org/abs/1606.09282"),
        ("training.md", "#many-gpus", "#many-gpus"),
    ],
)
def test_links_are_turned(page, link, turned):
    where = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert on_page_markdown(f"[words]({link})", page=where) == f"[words]({turned})"


def test_pages_outside_docs_are_there():
    assert [page for page in PAGES if not (ROOT / page).is_file()] == []
