"""The guide explains every key of the YAML."""

from __future__ import annotations

import re
from pathlib import Path

from src.config import Config, Section

GUIDE = Path(__file__).parents[1] / "LORA_IMPLEMENTATION_GUIDE.md"


def keys(section: type[Section]) -> set[str]:
    found = set()
    for name, info in section.model_fields.items():
        inner = [c for c in (info.annotation, *getattr(info.annotation, "__args__", ())) if isinstance(c, type)]
        sections = [c for c in inner if issubclass(c, Section)]
        found |= set().union(*(keys(c) for c in sections)) if sections else {name}
    return found


def test_the_guide_names_every_key() -> None:
    named = {part for quoted in re.findall(r"`([\w.]+)`", GUIDE.read_text()) for part in quoted.split(".")}
    assert keys(Config) - named == set()


def test_there_are_keys_to_look_for() -> None:
    assert {"rank", "null_expert", "degrees", "img_folder", "output_dir"} <= keys(Config)
