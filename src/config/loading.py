"""A config from a YAML file and ``--set`` overrides, and messages that name every mistake."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..core.errors import UserError
from ..core.shipped import CONFIGS, find_config
from ..models.spec import model_spec
from ..models.zoo import DEFAULT_MODEL
from .renames import OTHER_SECTIONS, RENAMED, drop_renamed, former_keys, modernize
from .run import Config
from .section import REMOVED_KEY, Section
from .yaml_text import MAX_YAML_CHARACTERS, parse_yaml

logger = logging.getLogger(__name__)

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a run's YAML, apply ``a.b=c`` overrides, and validate all of it at once.

    Keys with the names of earlier versions are accepted, and each is logged with its name today.

    Raises:
        UserError: the file is missing or is not YAML, or values are wrong: every mistake, with its dotted key.
    """
    raw = read_yaml(path)
    renamed = _modernize(raw, str(path))
    for override in overrides or []:
        renamed |= _apply_override(raw, override)
    for old in filter(RENAMED.__contains__, renamed):
        logger.info(f"{path}: {old} is now called {RENAMED[old]}")
    without_model = _add_model(raw)
    config = _validate(Config, raw, str(path), renamed)
    if without_model:
        logger.info(
            f"{path}: no model is named, so it is {config.model.name} with its bundled weights, "
            f"{config.model.checkpoint}; set model.name and model.checkpoint for another, such as sam3"
        )
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return a YAML file of sections as plain data.

    Raises:
        UserError: the file is missing, is not YAML, or holds something else than sections.
    """
    path = find_config(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            raw = parse_yaml(file.read(MAX_YAML_CHARACTERS + 1))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{_near_files(path)}", "config.missing") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a YAML file{_near_files(path / 'x')}", "config.unreadable") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "config.unreadable") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8: {error.reason}", "config.unreadable") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}", "config.not-yaml") from None
    raw = {} if raw is None else _plain_copy(raw)
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: expected sections such as 'model:' and 'training:', found {type(raw).__name__}",
            "config.not-sections",
        )
    return raw


def parse_config(raw: dict[str, Any], origin: str) -> Config:
    """Validate a plain mapping, which may have keys of earlier versions.

    Args:
        raw: sections by name; it stays as it is.
        origin: where it comes from, for messages.

    Raises:
        UserError: values are wrong: every mistake, with its dotted key.
    """
    content = _plain_copy(raw)
    return _validate(Config, content, origin, _modernize(content, origin))


def parse_section(kind: type[AnySection], raw: dict[str, Any], origin: str) -> AnySection:
    """Validate a mapping as a section, such as one that another command's YAML is made of."""
    return _validate(kind, raw, origin, {})


def set_key(raw: dict[str, Any], dotted: str, value: Any) -> dict[str, str]:
    """Set a value by its dotted key, or by one of an earlier version, in place.

    Returns:
        As :func:`~src.config.renames.modernize`.

    Raises:
        UserError: a part of the key is a value, not a section.
    """
    renamed = _modernize(raw, dotted)  # or a flat name of the first domain would win over the value to be set
    drop_renamed(raw, dotted)
    *sections, key = dotted.split(".")
    section: Any = raw
    for depth, part in enumerate(sections):
        if isinstance(section, dict) and section.get(part) is None:
            section[part] = {}
        section = _inside(section, part)
        if not isinstance(section, (dict, list)):
            raise UserError(f"'{'.'.join(sections[: depth + 1])}' is a value, not a section", "config.not-a-section")
    if isinstance(section, list):
        if _inside(section, key) is None:
            raise UserError(f"'{'.'.join(sections)}' is a list of {len(section)}", "config.not-a-section")
        section[int(key)] = value
    else:
        section[key] = value
    return renamed | _modernize(raw, dotted)


def _inside(section: Any, key: str) -> Any:
    """Return what a section, or a list by an entry's number, has under a key; None where there is nothing."""
    if isinstance(section, dict):
        return section.get(key)
    return section[int(key)] if key.isdecimal() and int(key) < len(section) else None


def _add_model(raw: dict[str, Any]) -> bool:
    """Name the default model with its bundled weights, in place, where neither is named; return whether that was so."""
    model = raw.get("model")
    if model is not None and (not isinstance(model, dict) or model.keys() & {"name", "checkpoint"}):
        return False
    raw["model"] = {**(model or {}), "name": DEFAULT_MODEL, "checkpoint": model_spec(DEFAULT_MODEL).checkpoint}
    return True


def _validate(kind: type[AnySection], raw: dict[str, Any], origin: str, renamed: Mapping[str, str]) -> AnySection:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        written = {new: old for old, new in renamed.items()}
        mistakes = [_describe(e, kind, written) for e in error.errors(include_url=False)]
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise UserError(f"{origin}: {count}\n" + "\n".join(f"  {mistake}" for mistake in mistakes), "config.mistakes")


def _modernize(raw: dict[str, Any], origin: str) -> dict[str, str]:
    try:
        return modernize(raw)
    except ValueError as error:
        raise UserError(f"{origin}: {error}", "config.two-values") from None


def _plain_copy(value: Any) -> Any:
    """Return a copy of plain data in which nothing stands in two places, as YAML's aliases do."""
    if isinstance(value, dict):
        return {key: _plain_copy(each) for key, each in value.items()}
    return [_plain_copy(each) for each in value] if isinstance(value, list) else value


def _apply_override(raw: dict[str, Any], override: str) -> dict[str, str]:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(
            f"--set {override}: write it as section.key=value, such as training.learning_rate=5e-4", "config.override"
        )
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}", "config.override") from None
    try:
        return set_key(raw, dotted.strip(), _plain_copy(value))
    except UserError as error:
        raise UserError(f"--set {override}: {error}", error.code) from None


def _describe(error: Any, kind: type[BaseModel], written: Mapping[str, str]) -> str:
    location = [str(part) for part in error["loc"]]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == REMOVED_KEY:
        location.append(error["ctx"]["key"])
        message = message.removeprefix(f"{location[-1]}: ")
    elif error["type"] == "model_type":
        message = f"must be a section with {_some(_known_keys(location, kind))}"
    dotted = _as_written(".".join(location), written) or "config"
    if error["type"] == "extra_forbidden":
        return f"{dotted}: unknown key; {_nearest_key(location, kind)}"
    found = "" if isinstance(error["input"], (dict, BaseModel)) else f" (found {error['input']!r:.80})"
    return f"{dotted}: {message[0].lower() + message[1:]}{found}"


def _some(keys: list[str]) -> str:
    """Return keys for a message, the first ones of many."""
    return ", ".join(keys) if len(keys) <= 8 else f"keys such as {', '.join(keys[:5])}"


def _as_written(dotted: str, written: Mapping[str, str]) -> str:
    """Return a dotted key as the user wrote it."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if (start := ".".join(parts[:length])) in written:
            return ".".join([written[start], *parts[length:]])
    return dotted


def _nearest_key(location: list[str], kind: type[BaseModel]) -> str:
    """Return a hint at the key that was meant; names of earlier versions count, and lead to today's."""
    *sections, key = location
    if kind is Config and key in OTHER_SECTIONS and not sections:
        return OTHER_SECTIONS[key]
    known = _known_keys(sections, kind)
    former = former_keys(".".join(sections)) if kind is Config else {}
    near = difflib.get_close_matches(key, [*known, *former], n=1, cutoff=0.5)
    if not near:
        return f"known keys here: {', '.join(known)}"
    today = former.get(near[0], near[0])
    return f"did you mean '{near[0]}'" + ("?" if today == near[0] else f", which is now called {today}?")


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
    names = [p.name for p in sorted(folder.glob("[!.]*.yaml"))]
    listed = f"; {folder} holds {', '.join(names)}" if names else ""
    near = difflib.get_close_matches(path.name, [p.name for p in sorted(CONFIGS.glob("*.yaml"))])
    if not near or folder == CONFIGS:
        return listed
    return f"{listed}; with the program ship {', '.join(near)}"
