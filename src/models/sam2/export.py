"""Writing SAM 2 for others to read: its own checkpoint or Hugging Face ``transformers``', read back and compared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ...config import LoraConfig, ModelConfig, image_size_of
from ...core.errors import UserError
from ...core.files import write_atomically, write_folder_atomically
from ...core.torch_files import save_pt
from ...data.decode.masks import bounding_box
from ...data.prompts import Prompt
from ...data.synthetic import SOURCE, make_videos
from ...gating.domain_gate import DomainGate
from ...lora.adapter import iter_adapter_layers, list_groups
from ...lora.adapter_io import Configs, save_adapter
from ...lora.expert_groups import use_adapter
from ...lora.merging import unload_merged
from ..checkpoint import ADAPTER_FOLDER
from ..spec import model_spec
from .build import config_overrides, sam2_config
from .pixels import frame_size
from .tracking import as_video_predictor, track_objects
from .transformers_adapters import add_adapter_to_transformers
from .transformers_format import (
    load_transformers,
    save_transformers,
    to_transformers,
    without_its_bars,
)

if TYPE_CHECKING:
    from transformers import Sam2VideoModel, Sam3TrackerVideoModel

logger = logging.getLogger(__name__)

Box: TypeAlias = tuple[float, float, float, float]

TOLERANCE_THERE = 1e-3  # in transformers, root mean square, of the output's: single tokens may choose other experts
TOLERANCE = 1e-5  # of an output's largest value, or absolute where that is below 1


def how_to_load(config: ModelConfig, path: Path) -> str:
    """Return the Python that gets stock SAM 2 with a merged checkpoint."""
    spec = model_spec(config.name)
    own = image_size_of(config) == spec.image_size and not spec.details.get("differences")
    overrides = "" if own else f", hydra_overrides_extra={config_overrides(config)}"
    call = f'sam2.build_sam.build_sam2("{sam2_config(spec.name)}", "{path}"{overrides})'
    return f"stock SAM 2 with it, or likewise build_sam2_video_predictor: {call}"


def write_official(model: SAM2Base, config: ModelConfig, path: Path) -> None:
    """Merge, write ``{"model": state_dict}``, and put it in place only if stock SAM 2 computes the same with it.

    The model's LoRA layers become plain Linear layers. Raises UserError where outputs differ.
    """
    model.binarize_mask_from_pts_for_mem_enc = False  # as build_sam2 has it
    expected = probe(model)
    if any(iter_adapter_layers(model)):
        unload_merged(model)

    def write(temporary: Path) -> None:
        save_pt({"model": model.state_dict()}, temporary)
        overrides = config_overrides(config)
        stock = build_sam2(sam2_config(config.name), str(temporary), device="cpu", hydra_overrides_extra=overrides)
        difference = largest_difference(probe(stock), expected)
        logger.info(f"read back into stock SAM 2: largest difference {difference:.1e} on an image and a clip")
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path} was not written: with it stock SAM 2 differs by {difference:.1e} (> {TOLERANCE})",
                "export.differs",
            )

    write_atomically(path, write)


def stock_name(layer: str) -> str:
    """Return a layer's name in stock SAM 2: its own."""
    return layer


def write_transformers(
    model: SAM2Base,
    config: ModelConfig,
    lora: Configs,
    about: dict[str, Any],
    gate: DomainGate | None,
    folder: Path,
) -> None:
    """Write a folder for transformers; see :func:`write_stock_folder`."""
    load = load_transformers().Sam2VideoModel.from_pretrained
    write_stock_folder(model, lora, about, gate, folder, save_transformers, [load])


def write_stock_folder(
    model: SAM2Base,
    lora: Configs,
    about: dict[str, Any],
    gate: DomainGate | None,
    folder: Path,
    save: Callable[[SAM2Base, Path], None],
    loads: Iterable[Callable[[Path], Any]],
) -> None:
    """Write a folder for transformers, and put it in place only if transformers computes the same with it.

    LoRA layers are merged. With method mope, and with expert groups, the folder holds the base, and in ``adapter`` the
    adapter folder with its domain gate.

    Args:
        model: with its adapters; LoRA layers become plain Linear layers.
        lora: their config; with expert groups, that of each.
        about: further keys of the adapter folder's config.
        gate: the adapters' domain gate.
        folder: to write; it does not exist.
        save: writes the base weights, and what else the folder has, into a folder.
        loads: what reads a folder with a class of transformers, for each class: a video model, None where it cannot.

    Raises:
        UserError: transformers is missing, cannot express the model or computes something else.
    """
    transformers = load_transformers()
    model.binarize_mask_from_pts_for_mem_enc = True  # as SAM 2's own video predictor has it, and transformers always
    mergeable = isinstance(lora, LoraConfig) and lora.method == "lora"
    expected: dict[str | None, dict[str, Tensor]] = {}
    groups: list[str | None] = [*list_groups(model)]
    for group in groups or [None]:
        with use_adapter(model, group):
            expected[group] = probe(model)
    if mergeable:
        unload_merged(model)

    def write(temporary: Path) -> None:
        save(model, temporary)
        if any(iter_adapter_layers(model)):
            save_adapter(model, temporary / ADAPTER_FOLDER, lora, about)
        loaded = (load(temporary) for load in loads)
        found = [_difference_there(each, temporary, expected) for each in loaded if each is not None]
        difference = torch.tensor(found).max().item()  # NaN, if there is one
        logger.info(f"read back into transformers: relative difference {difference:.1e} on an image and a clip")
        if not difference <= TOLERANCE_THERE:
            raise UserError(
                f"{folder} was not written: with it transformers {transformers.__version__} differs by "
                f"{difference:.1e} (> {TOLERANCE_THERE})",
                "export.differs",
            )
        if any(iter_adapter_layers(model)) and gate is not None:
            gate.save(temporary / ADAPTER_FOLDER)

    with without_its_bars():
        write_folder_atomically(folder, write)


def _difference_there(loaded: Any, folder: Path, expected: dict[str | None, dict[str, Tensor]]) -> float:
    """Return how far a model of transformers, with the folder's adapters put in, is from what each group computes."""
    if (folder / ADAPTER_FOLDER).is_dir():
        add_adapter_to_transformers(loaded, folder / ADAPTER_FOLDER)
    differences = []
    for group, outputs in expected.items():
        with use_adapter(loaded, group):
            differences.append(relative_difference(probe_transformers(loaded, folder), outputs))
    return torch.stack(differences).max().item()


def load_stock(model: SAM2Base, config: ModelConfig) -> Sam2VideoModel:
    """Return transformers' own model with a checkpoint's weights, which ``model`` has loaded."""
    return to_transformers(model)


@torch.inference_mode()
def probe(model: SAM2Base, frames: int = 3) -> dict[str, Tensor]:
    """Return what a model computes on a random image and a synthetic clip, at its own image size and on the CPU.

    Besides mask logits there are features, because an object judged absent has constant logits.
    """
    image, clip, box = probe_inputs(frame_size(model), frames)
    levels = model.forward_image(image)["backbone_fpn"]
    attended: list[Tensor] = []
    hook = model.memory_attention.register_forward_hook(lambda module, args, output: attended.append(output))
    prompts = {0: [Prompt(1, box=box)]}
    logits = [logits_OHW[:, None] for _, _, logits_OHW in track_objects(as_video_predictor(model), clip, prompts)]
    hook.remove()
    return probe_outputs([level.flatten(2) for level in levels], logits, attended)


@torch.inference_mode()
def probe_transformers(
    model: Sam2VideoModel | Sam3TrackerVideoModel, folder: Path, frames: int = 3
) -> dict[str, Tensor]:
    """:func:`probe` of a model of transformers, with the processor in a folder."""
    kind = getattr(load_transformers(), type(model).__name__.replace("Model", "Processor"))
    image, clip, box = probe_inputs(model.config.image_size, frames)
    levels = model.get_image_features(image).fpn_hidden_states
    attended: list[Tensor] = []
    hook = model.memory_attention.register_forward_hook(lambda module, args, output: attended.append(output))
    processor = kind.from_pretrained(folder)
    session = processor.init_video_session(video=clip)
    processor.add_inputs_to_inference_session(session, 0, 1, input_boxes=[[list(box)]])
    model(session, 0)
    size = [clip[0].shape[:2]]
    logits = [
        processor.post_process_masks([output.pred_masks], size, binarize=False)[0]
        for output in model.propagate_in_video_iterator(session)
    ]
    hook.remove()
    return probe_outputs([level.permute(1, 2, 0) for level in levels], logits, attended)


def probe_inputs(side: int, frames: int) -> tuple[Tensor, list[np.ndarray], Box]:
    """Return a normalised image (1, 3, S, S), frames RGB uint8 (S, S, 3), and an object's box on the first."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    video = make_videos(SOURCE, 1, 0, frames=frames, side=side).videos[0]
    box = bounding_box(next(iter(video.masks(0).values())))
    return image, [source.read() for source in video.frames], box


def probe_outputs(levels_BCN: list[Tensor], logits: list[Tensor], attended: list[Tensor]) -> dict[str, Tensor]:
    """Name feature maps, mask logits of every frame, and memory attention's output on every tracked frame."""
    features = {f"image features {i}": level for i, level in enumerate(levels_BCN)}
    return {**features, "mask logits": torch.stack(logits), "memory attention": torch.stack(attended).flatten(1, -2)}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest absolute difference, in units of an output's largest value where that is above 1."""
    differences = [
        (found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1) for name, tensor in expected.items()
    ]
    return torch.stack(differences).max().item()


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
    """Return the largest ratio of the differences' root mean square to the output's: a scalar, NaN for NaN."""
    return torch.stack([(found[name] - tensor).norm() / tensor.norm() for name, tensor in expected.items()]).max()
