"""Writing what a run trained in a form that others read: the model's own, transformers', PEFT's, an adapter folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..config import Config, LoraConfig, image_size_of
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..core.files import write_atomically, write_text
from ..core.shipped import find_file
from ..lora.adapter import iter_adapter_layers
from ..lora.adapter_io import Configs, read_adapter_config, save_adapter
from ..lora.lora_layer import LoRALinear
from .checkpoint import load_summary, load_trained, read_checkpoint, saved_gate
from .spec import ModelSpec, model_spec

logger = logging.getLogger(__name__)

NOTICE = "NOTICE"  # states the licence of the base's weights, in what is written or beside it

# what can be written of each method; the first is what --format auto takes
FORMATS = {
    "lora": ("official", "adapter", "peft", "transformers"),
    "full": ("official", "transformers"),
    "decoder": ("official", "transformers"),
    "mope": ("adapter", "transformers"),
}
WHY_NOT = {
    "mope": "experts behind a router (method mope) cannot be merged or given to peft, because which of them add to the "
    "weight depends on the input; their form is the adapter folder: --format adapter, or beside the base in "
    "transformers' form: --format transformers",
    "full": "method full has no adapters, it changed the weights themselves: --format official or transformers",
    "decoder": "method decoder has no adapters, it changed the weights themselves: --format official or transformers",
}


def export(config: Config, trained: Path, form: str, output: Path) -> Path:
    """Write a run's adapters or weights.

    Args:
        config: the run's, which names the base.
        trained: the run's checkpoint or adapter folder.
        form: ``official``, ``transformers``, ``adapter``, ``peft``, or ``auto`` for what suits the method best.
        output: the file (official) or folder (all others) to write; must not exist.

    Returns:
        What was written: ``output``, for a folder without the ending ``.pt``.

    Raises:
        UserError: the form does not suit the method, something exists already or does not fit, or the written file does
            not compute what the adapted model computes.
    """
    lora = trained_config(trained)
    chosen = choose_form(lora, form, trained)
    if form == "auto" and chosen == "official" and is_folder(config.model.checkpoint):
        chosen = "transformers"  # as the base is
    room = model_spec(config.model.name).load()
    if chosen != "official" and output.suffix == ".pt":
        output = output.with_suffix("")
    if output.exists():
        raise UserError(f"{output} exists already; name another --output, or delete it first", "export.exists")
    if form == "auto" and chosen == "adapter":
        if isinstance(lora, LoraConfig) and lora.method == "mope":
            logger.info("experts behind a router cannot be merged, as which add to the weight depends on the input:")
        logger.info(f"writing the adapter folder {output}")

    torch.manual_seed(config.training.seed)  # the random weights of a run without a checkpoint
    model = room.build_model(config.model).eval()
    gate = saved_gate(model, trained)
    load_trained(model, trained)
    logger.info(load_summary(model, config.model.checkpoint, trained))
    about = {"model_name": config.model.name, "image_size": image_size_of(config.model)}
    if chosen == "official":
        room.write_official(model, config.model, output)
        logger.info(room.how_to_load(config.model, output))
    elif chosen == "transformers":
        room.write_transformers(model, config.model, lora, about, gate, output)
    elif chosen == "adapter":
        save_adapter(model, output, lora, about)
        if gate is not None:
            gate.save(output)
    else:
        assert isinstance(lora, LoraConfig)
        write_peft(model, lora, config.model.name, output, room.stock_name)
    write_notice(model_spec(config.model.name), config.model.checkpoint, output)
    return output


def write_notice(spec: ModelSpec, checkpoint: str | None, output: Path) -> None:
    """State the licence of the base's weights in an exported folder, or beside an exported file.

    Args:
        spec: the base's.
        checkpoint: the base's weights; a folder's file LICENSE is copied along.
        output: the folder or file.
    """
    if spec.licence is None or checkpoint is None:  # random weights are nobody's
        return
    logger.info(spec.licence.statement)
    text = [f"Made of {spec.name} with SAM2-MoPE. {spec.licence.statement}\n"]
    if (full := find_file(checkpoint) / "LICENSE").is_file():
        text.append(full.read_text(encoding="utf-8", errors="replace"))
    write_text(output / NOTICE if output.is_dir() else output.with_suffix(f".{NOTICE}"), "\n".join(text))


def is_folder(checkpoint: str | None) -> bool:
    """Return whether base weights are a folder, as transformers has them."""
    return checkpoint is not None and find_file(checkpoint).is_dir()


def trained_config(trained: Path) -> Configs:
    """Return the adapters' config of a checkpoint or adapter folder; with expert groups, that of each."""
    if trained.is_dir():
        return read_adapter_config(trained).lora
    checkpoint = read_checkpoint(trained)
    return checkpoint.groups or checkpoint.config.lora


def choose_form(lora: Configs, form: str, trained: Path) -> str:
    """Return the form to write.

    Raises:
        UserError: the form does not suit the method, or nothing was trained.
    """
    if not isinstance(lora, LoraConfig):
        if form != "transformers":
            raise UserError(
                f"{trained}: holds expert groups, {', '.join(lora)}: take one out with {PROGRAM} groups extract, "
                "or take them all along with --format transformers",
                "export.groups",
            )
        return form
    if lora.method == "none":
        raise UserError(f"{trained}: method none trains nothing, so there is nothing to export", "export.nothing")
    if form not in ("auto", *FORMATS[lora.method]):
        raise UserError(f"{trained}: {WHY_NOT[lora.method]}", "export.unsuited-form")
    return FORMATS[lora.method][0] if form == "auto" else form


def write_peft(
    model: nn.Module, lora: LoraConfig, base_name: str, folder: Path, stock_name: Callable[[str], str]
) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained(stock_model, folder)`` loads.

    Args:
        model: with LoRA layers.
        lora: their config.
        base_name: the model's name.
        folder: where to write.
        stock_name: a layer's name in the stock model, by that in ``model``.

    Source: PEFT's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint.
    """
    adapters = iter_adapter_layers(model)
    layers = {stock_name(name): layer for name, layer in adapters if isinstance(layer, LoRALinear)}
    weights = {
        f"base_model.model.{name}.{part}.weight": getattr(layer, part).detach().contiguous()
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_atomically(folder / "adapter_model.safetensors", lambda path: save_file(weights, path))
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
