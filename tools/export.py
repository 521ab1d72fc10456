"""Write what a run trained in a form that others read: SAM 2's own checkpoint, PEFT's layout, or the adapter folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import save_file
from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base

from src import cli
from src.config import Config, LoraConfig, load_config, parse_config
from src.data.synthetic import SOURCE, make_videos
from src.errors import UserError
from src.evaluation.predict import init_state, predicting
from src.files import write_atomically, write_text
from src.lora.adapter import iter_adapters
from src.lora.adapter_io import Configs, read_adapter_config, save_adapter, unload_merged
from src.lora.lora_layer import LoRALinear
from src.model import build_sam2_moe
from src.model.build import MODEL_ZOO, config_overrides, image_size_of, save_pt
from src.model.checkpoint import read_checkpoint
from src.model.gating import remove_gate, saved_gate

# what can be written of each method; the first is what --format auto takes
FORMATS = {
    "lora": ("official", "adapter", "peft"),
    "full": ("official",),
    "decoder": ("official",),
    "mope": ("adapter",),
}
WHY_NOT = {
    "mope": "experts behind a gate (method mope) cannot be merged or given to peft, because which of them add to the "
    "weight depends on the input; their form is the adapter folder: --format adapter",
    "full": "method full has no adapters, it changed the weights themselves: --format official",
    "decoder": "method decoder has no adapters, it changed the weights themselves: --format official",
}
TOLERANCE = 1e-5  # of an output's largest value, or absolute where that is below 1


def export(config: Config, trained: Path, form: str, output: Path) -> Path:
    """Write a run's adapters or weights.

    Args:
        config: of the run; says which base.
        trained: the run's checkpoint or adapter folder.
        form: ``official``, ``adapter``, ``peft``, or ``auto`` for what suits the method best.
        output: the file (official) or folder (adapter, peft) to write; must not exist.

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
    if not isinstance(lora, LoraConfig):
        raise UserError(f"{trained}: holds expert groups, {', '.join(lora)}: take one out with tools/groups.py extract")
    if lora.method == "none":
        raise UserError(f"{trained}: method none trains nothing, so there is nothing to export")
    if form not in ("auto", *FORMATS[lora.method]):
        raise UserError(f"{trained}: {WHY_NOT[lora.method]}")
    chosen = FORMATS[lora.method][0] if form == "auto" else form
    if chosen != "official" and output.suffix == ".pt":
        output = output.with_suffix("")
    if output.exists():
        raise UserError(f"{output} exists already; name another --output, or delete it first")
    if form == "auto" and lora.method == "mope":
        print("experts behind a gate cannot be merged, because which add to the weight depends on the input:")
        print(f"writing the adapter folder {output} instead")

    torch.manual_seed(config.training.seed)  # the random weights of a run without a checkpoint
    model = build_sam2_moe(
        MODEL_ZOO[config.model.name].config, config.model.checkpoint, "cpu",
        adapter=trained, hydra_overrides_extra=config_overrides(config.model),
    )  # fmt: skip
    remove_gate(model)  # what is written is compared with the adapters on, whatever the probe looks like
    about = {"model_name": config.model.name, "image_size": image_size_of(config.model)}
    if chosen == "official":
        write_official(model, config, output)
    elif chosen == "adapter":
        save_adapter(model, output, lora, about)
        if (gate := saved_gate(model, trained)) is not None:
            gate.save(output)
    else:
        write_peft(model, lora, config.model.name, output)
    print(f"written: {output}")
    if chosen == "official":
        print(how_to_load(config, output))
    return output


def how_to_load(config: Config, path: Path) -> str:
    """What to write in Python to get stock SAM 2 with a merged checkpoint."""
    spec = MODEL_ZOO[config.model.name]
    own = image_size_of(config.model) == spec.image_size and not spec.overrides
    overrides = "" if own else f", hydra_overrides_extra={config_overrides(config.model)}"
    call = f'sam2.build_sam.build_sam2("{spec.config}", "{path}"{overrides})'
    return f"stock SAM 2 with it, or likewise build_sam2_video_predictor: {call}"


def write_official(model: SAM2Base, config: Config, path: Path) -> None:
    """Merge, write ``{"model": state_dict}``, and put it in place only if stock SAM 2 computes the same with it.

    The model's LoRA layers become plain Linear layers. Raises UserError where outputs differ.
    """
    expected = probe(model)
    if any(iter_adapters(model)):
        unload_merged(model)

    def write(temporary: Path) -> None:
        save_pt({"model": model.state_dict()}, temporary)
        overrides = config_overrides(config.model)
        stock = build_sam2(
            MODEL_ZOO[config.model.name].config, str(temporary), device="cpu", hydra_overrides_extra=overrides
        )
        difference = largest_difference(probe(stock), expected)
        print(f"read back into stock SAM 2: largest difference {difference:.1e} on an image and a clip")
        if not difference <= TOLERANCE:
            raise UserError(f"{path} was not written: with it stock SAM 2 differs by {difference:.1e} (> {TOLERANCE})")

    write_atomically(path, write)


@torch.inference_mode()
def probe(model: SAM2Base) -> dict[str, Tensor]:
    """What a model computes on a random image and a synthetic clip, at its own image size and on the CPU.

    Besides mask logits there are features, because an object judged absent has constant logits.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, model.image_size, model.image_size, generator=generator)
    outputs = {f"image features {i}": x for i, x in enumerate(model.forward_image(image)["backbone_fpn"])}
    video = make_videos(SOURCE, 1, 0, frames=3, side=model.image_size).videos[0]
    mask = next(iter(video.masks(0).values()))
    attended: list[Tensor] = []
    hook = model.memory_attention.register_forward_hook(lambda module, args, output: attended.append(output))
    with predicting(model) as predictor:
        state = init_state(predictor, [source.read() for source in video.frames])
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(mask))
        outputs["mask logits"] = torch.stack([logits for _, _, logits in predictor.propagate_in_video(state)])
    hook.remove()
    outputs["memory attention"] = torch.stack(attended)
    return outputs


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest absolute difference, in units of the output's largest value where that is above 1; NaN for NaN."""
    differences = [
        (found[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1) for name, tensor in expected.items()
    ]
    return torch.stack(differences).max().item()


def write_peft(model: SAM2Base, lora: LoraConfig, base_name: str, folder: Path) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained(stock_sam2, folder)`` loads.

    Source: peft's checkpoint format, https://huggingface.co/docs/peft/developer_guides/checkpoint.
    """
    layers = {name: layer for name, layer in iter_adapters(model) if isinstance(layer, LoRALinear)}
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


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python tools/export.py --config experiments/lora/config.yaml --output adapted.pt")
    parser.add_argument("--config", metavar="YAML", help="a run's YAML, such as the config.yaml in its output folder")
    parser.add_argument(
        "--adapter", metavar="PATH", help="a run's checkpoint or adapter folder (default: the best.pt of --config)"
    )
    parser.add_argument("--base", metavar="PT", help="base weights (default: those of the run)")
    parser.add_argument("--format", choices=["auto", "official", "adapter", "peft"], default="auto")
    parser.add_argument("--output", required=True, metavar="PATH", help="file (official) or folder (adapter, peft)")
    cli.run(main, parser)
