"""Write what a run trained in a form that others read: SAM 2's checkpoint, transformers', PEFT's, an adapter folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ..config import Config, LoraConfig, image_size_of, load_config, parse_config
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..core.files import write_atomically, write_folder_atomically, write_text
from ..core.torch_files import save_pt
from ..data.decode.masks import bounding_box
from ..data.synthetic import SOURCE, make_videos
from ..gating.domain_gate import DomainGate
from ..gating.switching import remove_gate
from ..lora.adapter import iter_adapter_layers, list_groups
from ..lora.adapter_io import Configs, read_adapter_config, save_adapter
from ..lora.expert_groups import use_adapter
from ..lora.lora_layer import LoRALinear
from ..lora.merging import unload_merged
from ..models.checkpoint import ADAPTER_FOLDER, read_checkpoint, saved_gate
from ..models.sam2.build import config_overrides, sam2_config
from ..models.sam2.inference_state import new_state
from ..models.sam2.predictors import build_sam2_moe
from ..models.sam2.transformers_adapters import add_adapter_to_transformers
from ..models.sam2.transformers_format import load_transformers, save_transformers, without_its_bars
from ..models.spec import model_spec
from ..tasks.tracking.predict import predicting
from . import command

if TYPE_CHECKING:
    from transformers import Sam2VideoModel

# what can be written of each method; the first is what --format auto takes
FORMATS = {
    "lora": ("official", "adapter", "peft", "transformers"),
    "full": ("official", "transformers"),
    "decoder": ("official", "transformers"),
    "mope": ("adapter", "transformers"),
}
WHY_NOT = {
    "mope": "experts behind a gate (method mope) cannot be merged or given to peft, because which of them add to the "
    "weight depends on the input; their form is the adapter folder: --format adapter, or beside the base in "
    "transformers' form: --format transformers",
    "full": "method full has no adapters, it changed the weights themselves: --format official or transformers",
    "decoder": "method decoder has no adapters, it changed the weights themselves: --format official or transformers",
}
TOLERANCE = 1e-5  # of an output's largest value, or absolute where that is below 1
TRANSFORMERS_TOLERANCE = 1e-3  # root mean square, of the output's: single tokens may choose other experts


def export(config: Config, trained: Path, form: str, output: Path) -> Path:
    """Write a run's adapters or weights.

    Args:
        config: of the run; says which base.
        trained: the run's checkpoint or adapter folder.
        form: ``official``, ``transformers``, ``adapter``, ``peft``, or ``auto`` for what suits the method best.
        output: the file (official) or folder (all others) to write; must not exist.

    Returns:
        What was written: ``output``, for a folder without the ending ``.pt``.

    Raises:
        UserError: the form does not suit the method, something exists already or does not fit, or the written file does
            not compute what the adapted model computes.
    """
    lora: Configs
    if trained.is_dir():
        lora = read_adapter_config(trained).lora
    else:
        checkpoint = read_checkpoint(trained)
        lora = checkpoint.groups or checkpoint.config.lora
    chosen = choose_form(lora, form, trained)
    if chosen != "official" and output.suffix == ".pt":
        output = output.with_suffix("")
    if output.exists():
        raise UserError(f"{output} exists already; name another --output, or delete it first")
    if form == "auto" and chosen == "adapter":
        print("experts behind a gate cannot be merged, because which add to the weight depends on the input:")
        print(f"writing the adapter folder {output} instead")

    torch.manual_seed(config.training.seed)  # the random weights of a run without a checkpoint
    model = build_sam2_moe(
        sam2_config(config.model.name), config.model.checkpoint, "cpu",
        adapter=trained, hydra_overrides_extra=config_overrides(config.model),
    )  # fmt: skip
    remove_gate(model)  # what is written is compared with the adapters on, whatever the probe looks like
    about = {"model_name": config.model.name, "image_size": image_size_of(config.model)}
    gate = saved_gate(model, trained)
    if chosen == "official":
        write_official(model, config, output)
    elif chosen == "transformers":
        write_transformers(model, lora, about, gate, output)
    elif chosen == "adapter":
        save_adapter(model, output, lora, about)
        if gate is not None:
            gate.save(output)
    else:
        assert isinstance(lora, LoraConfig)
        write_peft(model, lora, config.model.name, output)
    print(f"written: {output}")
    if chosen == "official":
        print(how_to_load(config, output))
    return output


def choose_form(lora: Configs, form: str, trained: Path) -> str:
    """The form to write, of what was trained.

    Raises:
        UserError: the form does not suit the method, or nothing was trained.
    """
    if not isinstance(lora, LoraConfig):
        if form != "transformers":
            raise UserError(
                f"{trained}: holds expert groups, {', '.join(lora)}: take one out with {PROGRAM} groups extract, "
                "or take them all along with --format transformers"
            )
        return form
    if lora.method == "none":
        raise UserError(f"{trained}: method none trains nothing, so there is nothing to export")
    if form not in ("auto", *FORMATS[lora.method]):
        raise UserError(f"{trained}: {WHY_NOT[lora.method]}")
    return FORMATS[lora.method][0] if form == "auto" else form


def how_to_load(config: Config, path: Path) -> str:
    """What to write in Python to get stock SAM 2 with a merged checkpoint."""
    spec = model_spec(config.model.name)
    own = image_size_of(config.model) == spec.image_size and not spec.details.get("differences")
    overrides = "" if own else f", hydra_overrides_extra={config_overrides(config.model)}"
    call = f'sam2.build_sam.build_sam2("{sam2_config(spec.name)}", "{path}"{overrides})'
    return f"stock SAM 2 with it, or likewise build_sam2_video_predictor: {call}"


def write_official(model: SAM2Base, config: Config, path: Path) -> None:
    """Merge, write ``{"model": state_dict}``, and put it in place only if stock SAM 2 computes the same with it.

    The model's LoRA layers become plain Linear layers. Raises UserError where outputs differ.
    """
    expected = probe(model)
    if any(iter_adapter_layers(model)):
        unload_merged(model)

    def write(temporary: Path) -> None:
        save_pt({"model": model.state_dict()}, temporary)
        overrides = config_overrides(config.model)
        stock = build_sam2(
            sam2_config(config.model.name), str(temporary), device="cpu", hydra_overrides_extra=overrides
        )
        difference = largest_difference(probe(stock), expected)
        print(f"read back into stock SAM 2: largest difference {difference:.1e} on an image and a clip")
        if not difference <= TOLERANCE:
            raise UserError(f"{path} was not written: with it stock SAM 2 differs by {difference:.1e} (> {TOLERANCE})")

    write_atomically(path, write)


def write_transformers(
    model: SAM2Base, lora: Configs, about: dict[str, Any], gate: DomainGate | None, folder: Path
) -> None:
    """Write a folder for transformers, and put it in place only if transformers computes the same with it.

    LoRA layers are merged. With method mope, and with expert groups, the folder holds the base, and in ``adapter`` the
    adapter folder with its domain gate. Raises UserError where transformers is missing, cannot express the model or
    computes something else.
    """
    transformers = load_transformers()
    model.binarize_mask_from_pts_for_mem_enc = True  # as SAM 2's own video predictor has it, and transformers always
    mergeable = isinstance(lora, LoraConfig) and lora.method == "lora"
    groups: list[str | None] = [*list_groups(model)] or [None]
    expected = []
    for group in groups:
        with use_adapter(model, group):
            expected.append(probe(model))
    if mergeable:
        unload_merged(model)

    def write(temporary: Path) -> None:
        save_transformers(model, temporary)
        loaded = transformers.Sam2VideoModel.from_pretrained(temporary)
        if any(iter_adapter_layers(model)):
            save_adapter(model, temporary / ADAPTER_FOLDER, lora, about)
            add_adapter_to_transformers(loaded, temporary / ADAPTER_FOLDER)
        differences = []
        for group, outputs in zip(groups, expected, strict=True):
            with use_adapter(loaded, group):
                differences.append(relative_difference(probe_transformers(loaded, temporary), outputs))
        difference = torch.stack(differences).max().item()
        print(f"read back into transformers: relative difference {difference:.1e} on an image and a clip")
        if not difference <= TRANSFORMERS_TOLERANCE:
            raise UserError(
                f"{folder} was not written: with it transformers {transformers.__version__} differs by "
                f"{difference:.1e} (> {TRANSFORMERS_TOLERANCE})"
            )
        if any(iter_adapter_layers(model)) and gate is not None:
            gate.save(temporary / ADAPTER_FOLDER)

    with without_its_bars():
        write_folder_atomically(folder, write)


@torch.inference_mode()
def probe(model: SAM2Base) -> dict[str, Tensor]:
    """What a model computes on a random image and a synthetic clip, at its own image size and on the CPU.

    Besides mask logits there are features, because an object judged absent has constant logits.
    """
    image, frames, box = probe_inputs(model.image_size)
    levels = model.forward_image(image)["backbone_fpn"]
    attended: list[Tensor] = []
    hook = model.memory_attention.register_forward_hook(lambda module, args, output: attended.append(output))
    with predicting(model) as predictor:
        state = new_state(predictor, frames)
        predictor.add_new_points_or_box(state, 0, 1, box=box)
        logits = [logits for _, _, logits in predictor.propagate_in_video(state)]
    hook.remove()
    return probe_outputs([level.flatten(2) for level in levels], logits, attended)


@torch.inference_mode()
def probe_transformers(model: Sam2VideoModel, folder: Path) -> dict[str, Tensor]:
    """:func:`probe` of a model of transformers, with the processor that lies in a folder."""
    image, frames, box = probe_inputs(model.config.image_size)
    levels = model.get_image_features(image).fpn_hidden_states
    attended: list[Tensor] = []
    hook = model.memory_attention.register_forward_hook(lambda module, args, output: attended.append(output))
    processor = load_transformers().Sam2VideoProcessor.from_pretrained(folder)
    session = processor.init_video_session(video=frames)
    processor.add_inputs_to_inference_session(session, 0, 1, input_boxes=[[box.tolist()]])
    model(session, 0)
    size = [frames[0].shape[:2]]
    logits = [
        processor.post_process_masks([output.pred_masks], size, binarize=False)[0]
        for output in model.propagate_in_video_iterator(session)
    ]
    hook.remove()
    return probe_outputs([level.permute(1, 2, 0) for level in levels], logits, attended)


def probe_inputs(side: int) -> tuple[Tensor, list[np.ndarray], np.ndarray]:
    """A normalised image (1, 3, S, S), three frames RGB uint8 (S, S, 3), and a box around an object of the first."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    video = make_videos(SOURCE, 1, 0, frames=3, side=side).videos[0]
    box = bounding_box(next(iter(video.masks(0).values())))
    return image, [source.read() for source in video.frames], np.array(box, np.float32)


def probe_outputs(levels_BCN: list[Tensor], logits: list[Tensor], attended: list[Tensor]) -> dict[str, Tensor]:
    """Feature maps, mask logits of every frame, and what memory attention gave on every tracked frame."""
    features = {f"image features {i}": level for i, level in enumerate(levels_BCN)}
    return {**features, "mask logits": torch.stack(logits), "memory attention": torch.stack(attended).flatten(1, -2)}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest absolute difference, in units of the output's largest value where that is above 1; NaN for NaN."""
    differences = [
        (found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1) for name, tensor in expected.items()
    ]
    return torch.stack(differences).max().item()


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Tensor:
    """Root mean square of the differences, by that of the output; of all outputs the largest, a scalar, NaN for NaN."""
    return torch.stack([(found[name] - tensor).norm() / tensor.norm() for name, tensor in expected.items()]).max()


def write_peft(model: SAM2Base, lora: LoraConfig, base_name: str, folder: Path) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained(stock_sam2, folder)`` loads.

    Source: peft's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint.
    """
    layers = {name: layer for name, layer in iter_adapter_layers(model) if isinstance(layer, LoRALinear)}
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


def main(arguments: argparse.Namespace) -> None:
    if arguments.config is None and arguments.adapter is None:
        raise UserError("name a run with --config YAML, or what it wrote with --adapter")
    if arguments.config is not None:
        config = load_config(arguments.config)
    elif Path(arguments.adapter).is_dir():
        about = read_adapter_config(arguments.adapter).extra
        if arguments.base is None:
            raise UserError(f"{arguments.adapter}: name the base weights it was trained on with --base, or --config")
        model = {"name": about.get("model_name"), "image_size": about.get("image_size")}
        config = parse_config({"model": model}, str(arguments.adapter))
    else:
        config = read_checkpoint(arguments.adapter).config
    if arguments.base is not None:
        config.model.checkpoint = arguments.base
    trained = Path(arguments.adapter or Path(config.output_dir) / "checkpoints" / "best.pt")
    export(config, trained, arguments.format, Path(arguments.output))


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope export --config experiments/lora/config.yaml --output adapted.pt")
    parser.add_argument("--config", metavar="YAML", help="a run's YAML, such as the config.yaml in its output folder")
    parser.add_argument(
        "--adapter", metavar="PATH", help="a run's checkpoint or adapter folder (default: the best.pt of --config)"
    )
    parser.add_argument("--base", metavar="PT", help="base weights (default: those of the run)")
    parser.add_argument("--format", choices=["auto", "official", "transformers", "adapter", "peft"], default="auto")
    parser.add_argument("--output", required=True, metavar="PATH", help="file (official) or folder (all others)")
    return parser
