"""Writing SAM 3's tracker for others to read: Meta's file or a folder of Hugging Face ``transformers``, compared."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sam2.modeling.sam2_base import SAM2Base

from ...config import ModelConfig, image_size_of
from ...core.errors import UserError
from ...core.files import write_atomically
from ...core.shipped import find_file
from ...core.torch_files import save_pt
from ...gating.domain_gate import DomainGate
from ...lora.adapter import iter_adapter_layers
from ...lora.adapter_io import Configs, base_state_dict
from ...lora.merging import unload_merged
from ..sam2.export import TOLERANCE, largest_difference, probe, write_stock_folder
from ..sam2.transformers_format import without_its_bars
from .build import build_model
from .config import load_sam3
from .transformers_form import is_whole, save_folder, tracker_of
from .weights import open_weights, replace_tracker, video_layer_name

logger = logging.getLogger(__name__)


def how_to_load(config: ModelConfig, path: Path) -> str:
    """Return where Meta's own package takes the merged file."""
    return f'SAM 3\'s own package with it: checkpoint_path="{path}" of its builders, in the place of sam3.pt'


def stock_name(layer: str) -> str:
    """Return a layer's name in transformers' Sam3TrackerVideoModel, which PEFT can adapt."""
    return video_layer_name(layer, whole=False)


def write_official(model: SAM2Base, config: ModelConfig, path: Path) -> None:
    """Merge, and write Meta's ``sam3.pt`` with the tracker's weights replaced; what is the detector's stays as it is.

    The file is put in place only if the tracker, loaded from it, computes the same. LoRA layers become plain Linear
    layers.

    Raises:
        UserError: the base is no ``sam3.pt``, or outputs differ.
    """
    base = None if config.checkpoint is None else find_file(config.checkpoint)
    if base is None or base.suffix != ".pt":
        raise UserError(
            f"{path} was not written: the official form is Meta's sam3.pt with its detector, but the base is "
            f"{config.checkpoint or 'random weights'}: take --format transformers, or name the same weights with "
            "--base sam3.pt",
            "export.unsuited-form",
        )
    expected = probe(model)
    if any(iter_adapter_layers(model)):
        unload_merged(model)

    def write(temporary: Path) -> None:
        save_pt(replace_tracker(open_weights(base), base_state_dict(model)), temporary)
        merged = config.model_copy(update={"checkpoint": str(temporary), "image_size": image_size_of(config)})
        difference = largest_difference(probe(build_model(merged).eval()), expected)
        logger.info(f"read back: largest difference {difference:.1e} on an image and a clip")
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path} was not written: the tracker differs by {difference:.1e} (> {TOLERANCE}) with it",
                "export.differs",
            )

    write_atomically(path, write)


def write_transformers(
    model: SAM2Base,
    config: ModelConfig,
    lora: Configs,
    about: dict[str, Any],
    gate: DomainGate | None,
    folder: Path,
) -> None:
    """Write a folder for transformers; see :func:`~src.models.sam2.export.write_stock_folder`.

    It is read back with Sam3TrackerVideoModel, and where it holds the detector, with Sam3VideoModel too.
    """
    transformers = load_sam3()

    def save(model: SAM2Base, folder: Path) -> None:
        save_folder(model, config, folder)
        if not is_whole(folder):
            logger.info("the folder is of the tracker alone, for Sam3TrackerVideoModel: the base has no detector")
        elif encoder_changes:
            logger.info("the image encoder was adapted, and the detector in the folder sees through it, too")

    def load_tracker(folder: Path) -> Any:
        return transformers.Sam3TrackerVideoModel.from_pretrained(folder)

    def load_whole(folder: Path) -> Any:
        return tracker_of(transformers.Sam3VideoModel.from_pretrained(folder)) if is_whole(folder) else None

    encoder_changes = any(name.startswith("image_encoder.backbone.") for name, _ in iter_adapter_layers(model))
    with without_its_bars():
        write_stock_folder(model, lora, about, gate, folder, save, [load_tracker, load_whole])
