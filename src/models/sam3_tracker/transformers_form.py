"""SAM 3's tracker as Hugging Face ``transformers`` has it: a folder to load, and where adapters go in its models."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from ...config import ModelConfig
from ...lora.adapter_io import base_state_dict
from ..sam2.pixels import frame_size
from ..sam2.transformers_adapters import StockKind
from ..spec import model_spec
from .build import config_file
from .config import PATCH, load_sam3, read_config
from .weights import INDEX, NAME, open_weights, replace_tracker, tracker_state_dict, video_layer_name

if TYPE_CHECKING:
    from transformers import Sam3TrackerVideoModel, Sam3VideoModel

logger = logging.getLogger(__name__)

CONFIG = "config.json"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def stock_kind(model: nn.Module) -> StockKind:
    """Return what has to be known of a Sam3TrackerVideoModel or a Sam3VideoModel to put adapters into it."""
    whole = isinstance(model, load_sam3().Sam3VideoModel)
    encoder = ("detector_model.vision_encoder.", "tracker_neck.") if whole else ("vision_encoder.",)
    return StockKind(
        replace(model_spec("sam3_tracker"), encoder=encoder),
        partial(video_layer_name, whole=whole),
        tracker_state_dict,
        has_sessions=not whole,  # objects of a Sam3VideoModel come from its detector
    )


def tracker_of(video: Sam3VideoModel) -> Sam3TrackerVideoModel:
    """Return the tracker in a Sam3VideoModel, with the encoder that it shares with the detector; nothing is copied."""
    tracker, shared = video.tracker_model, video.detector_model.vision_encoder
    with torch.device("meta"):
        tracker.vision_encoder = type(shared)(tracker.config.vision_config)
    tracker.vision_encoder.backbone, tracker.vision_encoder.neck = shared.backbone, video.tracker_neck
    return tracker.eval()


def save_folder(model: SAM2Base, config: ModelConfig, folder: Path) -> None:
    """Write the base weights into a folder of transformers.

    Where the checkpoint is such a folder, what it has besides the tracker is carried over: the detector, the tokenizer
    and the licence. Otherwise the folder is of the tracker alone.

    Args:
        model: a tracker; its adapters are left out.
        config: what it was built from.
        folder: to write into.

    Raises:
        UserError: transformers is missing or too old, or the checkpoint's folder is damaged.
    """
    folder.mkdir(exist_ok=True)
    file = config_file(config.checkpoint)
    if file is not None:
        _save_like(model, file.parent, folder)
    else:
        to_transformers(model).save_pretrained(folder)
    if not any((folder / name).is_file() for name in _PROCESSORS):
        save_processor(frame_size(model), folder)


def is_whole(folder: Path) -> bool:
    """Return whether a folder of transformers holds the detector too, so that Sam3VideoModel loads it."""
    return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"] == "sam3_video")


def _save_like(model: SAM2Base, base: Path, folder: Path) -> None:
    copy_beside_weights(base, folder, frame_size(model))
    weights = replace_tracker(open_weights(base), base_state_dict(model))
    wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(wide, folder / NAME, metadata={"format": "pt"})


def copy_beside_weights(base: Path, folder: Path, side: int) -> None:
    """Copy what a folder of transformers has besides weights, for images of a side in pixels and float32."""
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix not in (".safetensors", ".pt", ".bin", ".md") and file.name != INDEX:
            shutil.copyfile(file, folder / file.name)
    config = load_sam3().AutoConfig.from_pretrained(base)
    if config.image_size != side:
        for name in _PROCESSORS:
            if (folder / name).is_file():
                _resize_processor(folder / name, config.image_size, side)
    config.image_size, config.dtype = side, torch.float32
    config.save_pretrained(folder)


def _resize_processor(file: Path, before: int, side: int) -> None:
    """Replace an image size, and that of masks, wherever a processor's config has them."""
    sizes = {before: side, 4 * before // PATCH: 4 * side // PATCH}

    def resized(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resized(part) for key, part in value.items()}
        return sizes.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    file.write_text(json.dumps(resized(json.loads(file.read_text(encoding="utf-8"))), indent=2), encoding="utf-8")


def to_transformers(model: SAM2Base) -> Sam3TrackerVideoModel:
    """Return a Sam3TrackerVideoModel of the official architecture with a tracker's base weights, in eval mode."""
    config = read_config(None)
    config.image_size = frame_size(model)
    stock = load_sam3().Sam3TrackerVideoModel(config)
    names = {name: partial(_same, tensor) for name, tensor in stock.state_dict().items()}
    stock.load_state_dict(replace_tracker(names, base_state_dict(model)))
    return stock.eval()


def load_stock(model: SAM2Base, config: ModelConfig) -> Sam3TrackerVideoModel:
    """Return transformers' own model of a checkpoint, in eval mode, in float32.

    A folder of transformers is read by transformers; of other checkpoints, the weights are ``model``'s.
    """
    file = config_file(config.checkpoint)
    if file is None:
        return to_transformers(model)
    transformers = load_sam3()
    stock = transformers.AutoConfig.from_pretrained(file.parent)
    stock.image_size = frame_size(model)
    kind = transformers.Sam3TrackerVideoModel
    return kind.from_pretrained(file.parent, config=stock, dtype=torch.float32).eval()


def save_processor(side: int, folder: Path) -> None:
    """Write a Sam3TrackerVideoProcessor for images of a side in pixels."""
    transformers = load_sam3()
    size = {"height": side, "width": side}
    mask_size = {name: 4 * pixels // PATCH for name, pixels in size.items()}
    mean, std = model_spec("sam3_tracker").pixel_mean, model_spec("sam3_tracker").pixel_std
    transformers.Sam3TrackerVideoProcessor(
        image_processor=transformers.Sam3ImageProcessor(size=size, mask_size=mask_size),
        video_processor=transformers.Sam2VideoVideoProcessor(size=size, image_mean=list(mean), image_std=list(std)),
    ).save_pretrained(folder)


def _same(tensor: Tensor) -> Tensor:
    return tensor
