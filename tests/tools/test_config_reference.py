"""The reference of the YAML's keys is the schema's, and describes every key in short sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from src.config import Config, Section
from tools.config_reference import OUTPUT, reference, section_in


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        yield prefix + name, info
        if (inner := section_in(info)) is not None:
            yield from fields(inner, f"{prefix}{name}.")


def test_the_page_is_up_to_date():
    assert OUTPUT.read_text(encoding="utf-8") == reference(), "run: python -m tools.config_reference"


def test_every_key_is_described_in_short_sentences():
    found = dict(fields(Config))
    assert {"lora.rank", "dataset.domains.train.img_folder", "training.save_every.steps", "output_dir"} <= found.keys()
    for key, info in found.items():
        assert info.description, key
        sentences = re.split(r"(?<=[.:;])\s", info.description)
        assert max(len(sentence.split()) for sentence in sentences) <= 25, key
        assert info.description.endswith("."), key
