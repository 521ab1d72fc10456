"""The reference of all keys of the YAML, written from the schema: python -m tools.config_reference."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from src.config import Config, Section, one_line_yaml
from src.config.renames import ALIASES, RENAMED

OUTPUT = Path(__file__).parents[1] / "docs" / "config.md"

INTRODUCTION = """\
# Every key of the YAML

A run is described by one YAML file. Any key can be left out, and then has its default. A key that does not exist is
an error, which names the nearest one. On the command line `--set section.key=value` sets a single key, such as
`--set training.learning_rate=5e-4`.

This page is written from the schema in `src/config` by `python -m tools.config_reference`.
"""

FLAT = """\
The keys of the first domain may stand directly under `dataset`, and the keys of its splits in flat form:
`train_img_folder`, `train_ann_file`, `train_videos`, and the same with `val_` and `test_`. Further domains may then
stand in a list `more`. These two YAMLs are the same:

```yaml
dataset:
  name: cells
  train_img_folder: cells/train
  val_img_folder: cells/valid
  more:
    - {name: tissue, train_img_folder: tissue/train}
```

```yaml
dataset:
  domains:
    - {name: cells, train: {img_folder: cells/train}, val: {img_folder: cells/valid}}
    - {name: tissue, train: {img_folder: tissue/train}}
```

`--set dataset.train_img_folder=…` changes the first domain, in whichever form it is written.
"""

RENAMED_KEYS = """\
## Keys with other names

These names are still read. Names of earlier versions are noted in the log with their name today.

| name | name today |
|---|---|
"""


def reference() -> str:
    """Return the whole page, as Markdown."""
    parts = [INTRODUCTION, *_sections(Config, ""), RENAMED_KEYS + "\n".join(_renamed()) + "\n"]
    return "\n".join(parts)


def _renamed() -> Iterator[str]:
    for old, new in {**ALIASES, **RENAMED}.items():
        yield f"| `{old}` | `{new}` |"


def _sections(section: type[Section], prefix: str) -> Iterator[str]:
    """Yield the text of a section, then those of the sections in it."""
    inner = {name: found for name, info in section.model_fields.items() if (found := section_in(info)) is not None}
    if prefix:
        heading = "`, `".join(prefix.split("|"))
        yield f"{'##' if '.' not in prefix else '###'} `{heading}`\n\n{_one_paragraph(section.__doc__ or '')}\n"
    rows = [_row(name, info) for name, info in section.model_fields.items() if name not in inner or prefix]
    if rows:
        heading = "" if prefix else "Beside the sections below there is one key:\n\n"
        yield heading + "| key | type | default | description |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    if prefix == "dataset":
        yield FLAT
    for found in dict.fromkeys(inner.values()):
        names = [name for name, each in inner.items() if each is found]
        many = "[]" if get_origin(section.model_fields[names[0]].annotation) is list else ""
        yield from _sections(found, f"{prefix}.{'|'.join(names)}{many}".lstrip("."))


def _row(name: str, info: FieldInfo) -> str:
    return f"| `{name}` | {_type(info)} | {_default(info)} | {_one_paragraph(info.description or '')} |"


def _one_paragraph(text: str) -> str:
    """Return text on one line, as it can stand in a table; names in it as Markdown has them."""
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")


def section_in(info: FieldInfo) -> type[Section] | None:
    """Return the section that a key holds, alone or in a list; None for a plain value."""
    for kind in (info.annotation, *get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "as below"
    if isinstance(value, list) and value and isinstance(value[0], Section):
        return "the sample data"
    return f"`{one_line_yaml(value)}`"


def _type(info: FieldInfo) -> str:
    plain, *null = _kind(info.annotation).split(" or null")
    return f"{plain} {_bounds(info.metadata)}".strip() + (" or null" if null else "")


def _kind(annotation: Any) -> str:
    """Return what values of a type are called in the table."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{_kind(inner[0])} {_bounds(_flat(inner[1:]))}".strip()
    if origin is Literal:
        return ", ".join(f"`{one_line_yaml(value)}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _kind(kind) for kind in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"{_kind(inner[0])} → {_kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "section"}
    return names[annotation]


def _flat(metadata: tuple[Any, ...]) -> list[Any]:
    """Return the constraints of an annotation, those inside pydantic's own objects included."""
    return [each for item in metadata for each in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _bounds(metadata: list[Any]) -> str:
    """Return the bounds of a number, such as ``≥ 0, < 1``."""
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    found = [f"{sign} {getattr(item, name):g}" for item in metadata for kind, (sign, name) in signs.items()
             if isinstance(item, kind)]  # fmt: skip
    return ", ".join(found)


if __name__ == "__main__":
    OUTPUT.write_text(reference(), encoding="utf-8")
    print(f"written: {OUTPUT}")
