"""What all sections share: how strict they are, and the names that several of them use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..data.formats import format_names

Prompt = Literal["mask", "box", "point"]
Protocol = Literal["after_prompt", "davis", "sav"]
Split = Literal["train", "valid", "test"]
DomainName = Annotated[str, Field(min_length=1, pattern=r"^[^/\\]*[^/\\. ]$")]
"""A name for files and tables: without slashes, and not ending in a dot or a space."""

GATE_MODES = ("auto", "on", "off")
"""Modes of the domain gate, which also takes a domain's name."""

TAKEN_NAMES = ("source", *GATE_MODES)
"""Names that no domain may have; ``source`` is the domain that the bundled base was trained on."""


REMOVED_KEY = "removed_key"
"""The type of pydantic's error for a key that is gone; the error's context names it as ``key``."""


def _check_format(name: str) -> str:
    known = ["auto", *format_names()]
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return name


Format = Annotated[str, AfterValidator(_check_format)]
"""The name of a format that data sets come in, or ``auto``."""


class Section(BaseModel):
    """A section of the YAML: unknown keys are mistakes, values are coerced only where nothing is lost."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())
