"""The section ``model``: which model, with which weights."""

from __future__ import annotations

import difflib
import json

from pydantic import Field, ValidationInfo, field_validator

from ..core.shipped import find_file
from ..models.spec import model_names, model_spec
from ..models.zoo import DEFAULT_MODEL
from .section import Section


class ModelConfig(Section):
    """Which model, with which weights."""

    name: str = Field(DEFAULT_MODEL, description="Name of the model: one that ships, or one that was registered.")
    checkpoint: str | None = Field(
        None,
        description="Base weights: the official `.pt`, safetensors, or for SAM 3 a folder of transformers. null: "
        "random weights.",
    )
    image_size: int | None = Field(
        None,
        gt=0,
        description="Side in pixels of the square images that the model sees. It is a multiple of the model's "
        "stride; null: the size in the checkpoint's `config.json`, or else the model's own.",
    )

    @field_validator("name")
    @classmethod
    def _is_known(cls, value: str) -> str:
        names = model_names()
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"no such model; {hint}known: {', '.join(names)}")
        return value

    @field_validator("image_size")
    @classmethod
    def _fits_the_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and "name" in info.data:  # a name that is wrong is a mistake of its own
            try:
                model_spec(info.data["name"]).check_image_size(value)
            except ValueError as error:
                own = [name for name in model_names() if model_spec(name).image_size == value]
                hint = f"; it is the size of {' and '.join(own)}: is one of them meant, by model.name?" if own else ""
                raise ValueError(f"{error}{hint}") from None
        return value


def image_size_of(config: ModelConfig) -> int:
    """Return the side, in pixels, of the square images that the model sees.

    Where the config does not say it, it is that of the checkpoint's ``config.json``, or else the model's own.
    """
    return config.image_size or _size_in_folder(config.checkpoint) or model_spec(config.name).image_size


def _size_in_folder(checkpoint: str | None) -> int | None:
    """Return the image size that a folder of weights names; None where it names none: the loader judges it."""
    file = find_file(checkpoint or "") / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        size = content.get("tracker_config", content).get("image_size")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return size if isinstance(size, int) else None
