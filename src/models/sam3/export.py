"""Writing SAM 3's concept model for others to read: a folder of transformers, or Meta's ``sam3.pt``, compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Sam3ImageProcessor, Sam3Model, Sam3Processor, Sam3VideoModel

from ...config import LoraConfig, ModelConfig
from ...core.errors import UserError
from ...core.files import write_atomically, write_folder_atomically
from ...core.shipped import find_file
from ...core.torch_files import save_pt
from ...gating.domain_gate import DomainGate
from ...lora.adapter import iter_adapter_layers, list_groups
from ...lora.adapter_io import Configs, base_state_dict, load_adapter, save_adapter
from ...lora.expert_groups import use_adapter
from ...lora.merging import unload_merged
from ..checkpoint import ADAPTER_FOLDER
from ..sam2.transformers_format import without_its_bars
from ..sam3_tracker.transformers_form import copy_beside_weights
from ..sam3_tracker.weights import NAME, open_weights
from .weights import detector_weights, replace_detector

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Root mean square of a difference, of the output's: merging rounds, and a decoder's layers refine what it rounds."""

_WHOLE = "detector_model."
"""Stands before the detector's names in a folder that holds the tracker, too."""


def how_to_load(config: ModelConfig, path: Path) -> str:
    """Return where Meta's own package takes the merged file."""
    return f'SAM 3\'s own package with it: checkpoint_path="{path}" of its builders, in the place of sam3.pt'


def stock_name(layer: str) -> str:
    """Return a layer's name in transformers' Sam3Model, which PEFT can adapt: its own."""
    return layer


def write_official(model: Sam3Model, config: ModelConfig, path: Path) -> None:
    """Merge, and write Meta's ``sam3.pt`` with the detector's weights replaced; what is the tracker's stays as it is.

    The file is put in place only if the detector in it computes the same. LoRA layers become plain Linear layers.

    Raises:
        UserError: the base is no ``sam3.pt``, or outputs differ.
    """
    base = None if config.checkpoint is None else find_file(config.checkpoint)
    if base is None or base.suffix != ".pt":
        raise UserError(
            f"{path} was not written: the official form is Meta's sam3.pt with its tracker, but the base is "
            f"{config.checkpoint or 'random weights'}: take --format transformers, or name the same weights with "
            "--base sam3.pt",
            "export.unsuited-form",
        )
    expected = probe(model)
    _warn_of_tracker(model)
    if any(iter_adapter_layers(model)):
        unload_merged(model)

    def write(temporary: Path) -> None:
        save_pt(replace_detector(open_weights(base), base_state_dict(model)), temporary)
        read = Sam3Model(model.config).eval()
        read.load_state_dict(detector_weights(open_weights(temporary)))
        _compare({None: expected}, [read], path)

    write_atomically(path, write)


def write_transformers(
    model: Sam3Model, config: ModelConfig, lora: Configs, about: dict[str, Any], gate: DomainGate | None, folder: Path
) -> None:
    """Write a folder for transformers' ``Sam3Model``, and put it in place only if it computes the same.

    Where the base is the hub's folder, the tracker in it is carried over, and ``Sam3VideoModel`` reads the folder, too.
    LoRA layers are merged. With method mope, and with expert groups, the folder holds the base, and in ``adapter`` the
    adapter folder, which :func:`~src.lora.adapter_io.load_adapter` puts into the model.

    Raises:
        UserError: outputs differ, or the base's folder has other names.
    """
    expected: dict[str | None, dict[str, Tensor]] = {}
    groups: list[str | None] = [*list_groups(model)]
    for group in groups or [None]:
        with use_adapter(model, group):
            expected[group] = probe(model)
    _warn_of_tracker(model)
    if isinstance(lora, LoraConfig) and lora.method == "lora":
        unload_merged(model)

    def write(temporary: Path) -> None:
        whole = _save_base(model, config, temporary)
        if any(iter_adapter_layers(model)):
            save_adapter(model, temporary / ADAPTER_FOLDER, lora, about)
            if gate is not None:
                gate.save(temporary / ADAPTER_FOLDER)
        read = [Sam3Model.from_pretrained(temporary, dtype=torch.float32)]
        if whole:
            read.append(Sam3VideoModel.from_pretrained(temporary, dtype=torch.float32).detector_model)
        for each in read:
            if (temporary / ADAPTER_FOLDER).is_dir():
                load_adapter(each, temporary / ADAPTER_FOLDER)
        _compare(expected, read, folder)

    with without_its_bars():
        write_folder_atomically(folder, write)


@torch.inference_mode()
def probe(model: Sam3Model) -> dict[str, Tensor]:
    """Return what a model computes for a random image and two phrases of random tokens, one with a box."""
    side, words = model.config.image_size, model.config.text_config
    draws = torch.Generator().manual_seed(0)
    image_13SS = torch.randn(1, 3, side, side, generator=draws)
    tokens_PT = torch.randint(3, words.vocab_size, (2, 4), generator=draws)
    device, training = next(model.parameters()).device, model.training
    model.eval()
    output = model(
        pixel_values=image_13SS.expand(2, -1, -1, -1).to(device),
        input_ids=tokens_PT.to(device),
        attention_mask=torch.ones_like(tokens_PT).to(device),
        input_boxes=torch.tensor([[[0.5, 0.5, 0.3, 0.4]]]).expand(2, -1, -1).to(device),
        input_boxes_labels=torch.tensor([[1], [-10]]).to(device),
    )
    model.train(training)
    names = ("pred_masks", "pred_logits", "pred_boxes", "presence_logits", "semantic_seg")
    return {name: output[name].float().cpu() for name in names}


def _compare(expected: Mapping[str | None, dict[str, Tensor]], read: list[Any], path: Path) -> None:
    differences = []
    for model in read:
        for group, outputs in expected.items():
            with use_adapter(model, group):
                found = probe(model)
            differences += [(found[name] - each).norm() / each.norm() for name, each in outputs.items()]
    difference = torch.stack(differences).max().item()  # NaN, if there is one
    logger.info(f"read back: relative difference {difference:.1e} of masks, scores, boxes and presence")
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} was not written: the model differs by {difference:.1e} (> {TOLERANCE}) with it", "export.differs"
        )


def _save_base(model: Sam3Model, config: ModelConfig, folder: Path) -> bool:
    """Write the base weights into a folder, and what goes with them; return whether it holds the tracker, too."""
    weights = {name: each.detach().cpu().contiguous() for name, each in base_state_dict(model).items()}
    base = None if config.checkpoint is None else find_file(config.checkpoint)
    whole = False
    folder.mkdir(exist_ok=True)
    if base is not None and base.is_dir():
        copy_beside_weights(base, folder, model.config.image_size)
        before = open_weights(base)
        whole = any(name.startswith(_WHOLE) for name in before)
        if whole:
            weights = {f"{_WHOLE}{name}": each for name, each in weights.items()}
            if missing := sorted(set(weights) - set(before)):
                raise UserError(
                    f"{base}: not the names of transformers' Sam3VideoModel: {missing[0]} is not there",
                    "base.other-format",
                )
            others = {name: read() for name, read in before.items() if name not in weights}
            weights |= {name: each.float() if each.is_floating_point() else each for name, each in others.items()}
    else:
        model.config.architectures, model.config.dtype = [Sam3Model.__name__], torch.float32
        model.config.save_pretrained(folder)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
    save_file(weights, folder / NAME, metadata={"format": "pt"})
    if model.tokenizer is not None and not any(folder.glob("*processor_config.json")):
        _save_processor(model, folder)
    return whole


def _save_processor(model: Sam3Model, folder: Path) -> None:
    """Write the processor that turns pictures, phrases and boxes into the model's input."""
    side = model.config.image_size
    sizes = {"size": {"height": side, "width": side}}
    mask = 4 * side // model.config.vision_config.backbone_config.patch_size
    images = Sam3ImageProcessor(**sizes, mask_size={"height": mask, "width": mask})
    Sam3Processor(image_processor=images, tokenizer=model.tokenizer, target_size=side).save_pretrained(folder)


def _warn_of_tracker(model: Sam3Model) -> None:
    """Say that the tracker sees through an encoder that was trained."""
    if any(name.startswith("vision_encoder.backbone.") for name, _ in iter_adapter_layers(model)):
        logger.info("the image encoder was adapted, and a tracker in the same file or folder sees through it, too")
