"""A config from a YAML file and ``--set`` overrides, and messages that name every mistake."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..core.errors import UserError
from ..core.shipped import CONFIGS, find_config
from .run import Config
from .section import Section
from .yaml_text import MAX_YAML_CHARACTERS, parse_yaml

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a run's YAML, apply ``a.b=c`` overrides, and validate all of it at once.

    Raises:
        UserError: the file is missing or is not YAML, or values are wrong: every mistake, with its dotted key.
    """
    raw = read_yaml(path)
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_config(raw, str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of sections as plain data. Raises UserError if it is missing, not YAML, or something else."""
    path = find_config(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            raw = parse_yaml(file.read(MAX_YAML_CHARACTERS + 1))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{_near_files(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections such as 'model:' and 'training:', found {type(raw).__name__}")
    return raw


def parse_config(raw: dict[str, Any], origin: str) -> Config:
    """Validate a plain mapping; ``origin`` names it in messages. Raises UserError listing every mistake."""
    return parse_section(Config, raw, origin)


def parse_section(kind: type[AnySection], raw: dict[str, Any], origin: str) -> AnySection:
    """:func:`parse_config` for any section, such as one that another command's YAML is made of."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        mistakes = [_describe(e, kind) for e in error.errors(include_url=False)]
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise UserError(f"{origin}: {count}\n" + "\n".join(f"  {mistake}" for mistake in mistakes))


def set_key(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value by its dotted key. Raises UserError where a part of the key is a value, not a section."""
    keys = dotted.split(".")
    section: Any = raw
    for depth, key in enumerate(keys[:-1]):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise UserError(f"'{'.'.join(keys[: depth + 1])}' is a value, not a section")
    section[keys[-1]] = value


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: write it as section.key=value, such as training.learning_rate=5e-4")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}") from None
    try:
        set_key(raw, dotted.strip(), value)
    except UserError as error:
        raise UserError(f"--set {override}: {error}") from None


def _describe(error: Any, kind: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], kind)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{dotted}: {message[0].lower() + message[1:]} (found {error['input']!r:.80})"
        if not isinstance(error["input"], (dict, BaseModel))
        else f"{dotted}: {message[0].lower() + message[1:]}"
    )


def _known_keys(location: list[str], model: type[BaseModel]) -> list[str]:
    for part in location:
        if part not in model.model_fields:  # a place in a list, or a name that the user gave
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        candidates += [inner for each in candidates for inner in getattr(each, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)


def _near_files(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else CONFIGS
    names = [p.name for p in sorted(folder.glob("*.yaml"))]
    return f"; {folder} holds {', '.join(names)}" if names else ""
