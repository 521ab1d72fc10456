"""SAM 3's concept model from a folder that transformers reads, with every key accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, Sam3Config, Sam3Model
from transformers.utils import logging as transformers_logging

from ...config import ModelConfig
from ...core.errors import UserError
from ...core.shipped import find_file
from ..config_values import impossible_values
from ..sam3_tracker.weights import open_weights
from .weights import detector_weights, is_meta

TYPES = ("sam3", "sam3_video")
"""Of folders that hold the model: alone, or beside SAM 3's tracker as in ``facebook/sam3``."""

WHAT = {
    "missing_keys": "keys missing",
    "unexpected_keys": "unknown keys",
    "mismatched_keys": "shapes differ",
    "error_msgs": "errors",
}


def build_model(config: ModelConfig) -> Sam3Model:
    """Build a model on the CPU, in eval mode, with the folder or file ``model.checkpoint`` loaded strictly.

    A file is Meta's ``sam3.pt``. Beside it is the tokenizer, and, where it is not of official size, a config.json.

    Without a checkpoint its weights are random, its size is the official one, and it has no tokenizer. Its attribute
    ``tokenizer`` is what :func:`~src.models.sam3.forward.encode_phrases` uses. Weights are widened to float32.

    Raises:
        UserError: the folder is missing, damaged, or of another model.
    """
    if config.checkpoint is None:
        architecture = Sam3Config()
        if config.image_size:
            architecture.image_size = config.image_size
        model = Sam3Model(architecture).eval()
        model.tokenizer = None
        return model
    path = find_file(config.checkpoint)
    if path.suffix == ".pt":
        return _build_from_meta(path, config)
    folder = path
    architecture = read_config(folder, config.name)
    if config.image_size:
        architecture.image_size = config.image_size
    model = load_strictly(Sam3Model, folder, architecture, config.name)
    model.tokenizer = load_tokenizer(folder)
    ready: Sam3Model = model.eval()
    return ready


def _build_from_meta(path: Path, config: ModelConfig) -> Sam3Model:
    """Build a model from Meta's ``sam3.pt``."""
    found = open_weights(path)
    if not is_meta(found):
        raise UserError(
            f"{path}: not Meta's sam3.pt, whose names begin with detector. or tracker.", "base.other-format"
        )
    beside = (path.parent / "config.json").is_file()
    architecture = read_config(path.parent, config.name) if beside else Sam3Config()
    if config.image_size:
        architecture.image_size = config.image_size
    model = Sam3Model(architecture).eval()
    weights, own = detector_weights(found), model.state_dict()
    report = {
        "missing_keys": own.keys() - weights.keys(),
        "unexpected_keys": weights.keys() - own.keys(),
        "mismatched_keys": [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape],
    }
    _refuse_problems(report, path, config.name)
    model.load_state_dict(weights)
    model.tokenizer = load_tokenizer(path.parent)
    return model


def _refuse_problems(report: Mapping[str, Any], path: Path, name: str) -> None:
    problems = [f"{len(report[key])} {what}: {_first(report[key])}" for key, what in WHAT.items() if report.get(key)]
    if problems:
        raise UserError(f"{path} does not fit model.name {name}: {'; '.join(problems)}", "base.other-model")


def save_folder(model: Sam3Model, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that :func:`build_model` and transformers read: config, weights, tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_config(folder: Path, name: str) -> Sam3Config:
    """Return the detector's config in a folder of transformers.

    Raises:
        UserError: there is none, or it is damaged or of another model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.checkpoint: {folder} is no folder with config.json, model.safetensors and a tokenizer, as "
            f"transformers writes it; model.name {name} reads such folders",
            "base.missing",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises nearly anything at values that do not fit
        raise UserError(f"{folder / 'config.json'}: damaged: {_line(error)}", "base.damaged") from None
    if config.model_type not in TYPES:
        raise UserError(
            f"{folder}: of a model of type {config.model_type}; model.name {name} needs type {' or '.join(TYPES)}",
            "base.other-model",
        )
    found: Sam3Config = getattr(config, "detector_config", config)
    if problems := list(impossible_values(found.to_dict())):
        raise UserError(
            f"{folder / 'config.json'}: no architecture that can be built: {'; '.join(problems)}", "base.unsupported"
        )
    return found


def load_strictly(kind: Any, folder: Path, architecture: Any, name: str) -> Any:
    """Return a model in float32 of a class of transformers, with a folder's weights.

    Args:
        kind: the class.
        folder: with model.safetensors.
        architecture: the config.
        name: what the YAML calls the model, for messages.

    Raises:
        UserError: keys are missing, unknown or of another shape, or the file is damaged.
    """
    model, report = _load(kind, folder, architecture)
    _refuse_problems(report, folder, name)
    return model


def _load(kind: Any, folder: Path, architecture: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model and what transformers says of keys; what it prints of them is left to the error."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            folder,
            config=architecture,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype="float32",
        )
    except Exception as error:
        raise UserError(f"{folder}: damaged, or without model.safetensors: {_line(error)}", "base.damaged") from None
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
    return loaded


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return a folder's tokenizer. Raises UserError where there is none, or it is damaged."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"{folder}: no tokenizer, which tokenizer.json or vocab.json holds: the hub's folder has it; put it there",
            "base.no-tokenizer",
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder}: the tokenizer cannot be read: {_line(error)}", "base.no-tokenizer") from None
    return tokenizer


def _first(keys: Any, number: int = 3) -> str:
    names = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in keys)
    return ", ".join(names[:number]) + (" …" if len(names) > number else "")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
