"""Plain data from and to YAML, safely: bounded in size, numbers as people write them, no key twice."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as a number (YAML 1.1 wants ``1.0e-4``) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


MAX_YAML_CHARACTERS, MAX_YAML_VALUES = 10_000_000, 1_000_000
"""A longer text, or one with more values once its aliases are written out, is no config."""


def parse_yaml(text: str) -> Any:
    """What YAML says, read by a safe loader.

    Raises:
        ValueError: it is not YAML, or too long, too deep, or too much with its aliases written out.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"it is longer than {MAX_YAML_CHARACTERS} characters")
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that no YAML may hold
        raise ValueError(_one_line(error)) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MAX_YAML_VALUES:
            raise ValueError(f"its aliases make more than {MAX_YAML_VALUES} values of it")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # a tag on a value that it does not fit makes a constructor raise nearly anything
        raise ValueError(_one_line(error) or type(error).__name__) from None
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds, each alias counted as what it stands for; too many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # as long as it is being counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        held = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in pairs for each in pair]
        known[id(node)] = 1 + sum(_count_values(each, known) for each in held)
    return known[id(node)]


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes text which :class:`_Loader` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def one_line_yaml(value: Any) -> str:
    """A value as it stands behind a key of the YAML, on one line; :func:`load_config` reads it back."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.strip()[1:-1]


def dump_yaml(value: Any) -> str:
    """Return plain data as YAML text that :func:`parse_yaml` reads back to equal data."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
