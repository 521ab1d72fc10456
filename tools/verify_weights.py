"""Check weights that you have: all keys find a place, transformers computes the same, and what a training step costs.

Three things are done, on generated frames. The weights are loaded strictly. One step of training with the model's
default adapters is timed. Then image features, memory attention and masks are compared with those of Hugging Face
transformers, which reads a folder of its own by itself. What is printed at the end is what to report.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src import cli
from src.config import ClipConfig, Config, ModelConfig, image_size_of
from src.core.errors import UserError
from src.core.machine import peak_memory, this_machine
from src.data.clips import ClipBatch, sample_clip
from src.data.synthetic import SOURCE, make_videos
from src.lora.adapter_io import base_fingerprint, base_state_dict
from src.lora.injection import apply_method
from src.models.activation_checkpointing import checkpoint_activations
from src.models.build import build_model
from src.models.sam2.export import TOLERANCE_THERE, probe, probe_transformers, relative_difference
from src.models.sam2.transformers_format import load_transformers, without_its_bars
from src.models.spec import model_spec

FORMS = {"sam3_tracker": "src.models.sam3_tracker.transformers_form"}
"""Modules that know a model in transformers; SAM 2's for all others."""


def step_cost(config: Config, frames: int, checkpointing: bool, device: torch.device) -> dict[str, Any]:
    """Seconds and peak memory of the second of two training steps on one object; the first makes things ready."""
    room, method = model_spec(config.model.name).load(), config.lora
    started = time.perf_counter()
    model = room.build_trainable(config.model, config.training.prompts, frames)
    loading = time.perf_counter() - started
    apply_method(model, method)
    if checkpointing:
        checkpoint_activations(model, model_spec(config.model.name).checkpointed_blocks)
    model.to(device).train()
    video = make_videos(SOURCE, 1, 0, frames=frames, side=256).videos[0]
    clip = sample_clip(
        video, ClipConfig(frames=frames, max_objects=1), image_size_of(config.model), 0.0, np.random.default_rng(0)
    )
    batch, loss = ClipBatch.collate([clip]), room.build_loss(config.training.loss)
    seconds, total = 0.0, 0.0
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            kept = room.encode_frames(model, batch.frames_BTHWC[0]) if room.has_frozen_encoder(model) else None
            room.seed_draws(model, 0, 0)
            losses = room.segmentation_losses(model, loss, batch, features=kept)
        losses["total"].backward()
        total = losses["total"].item()  # waits for the GPU
        seconds = time.perf_counter() - started
    return {
        "load_seconds": round(loading, 1),
        "method": f"{method.method}, {sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters",
        "frames": frames,
        "activation_checkpointing": checkpointing,
        "precision": "bfloat16" if device.type == "cuda" else "float32",
        "loss": total,
        "step_seconds": round(seconds, 2),
        "peak_gb": round(peak_memory(device) / 1e9, 2),
    }


def compare(config: ModelConfig, frames: int) -> dict[str, Any]:
    """Largest differences between our model and transformers', both on the CPU in float32."""
    form: Any = import_module(FORMS.get(config.name, "src.models.sam2.export"))
    model: Any = build_model(config).eval()
    if config.checkpoint is None:  # objects are judged present, so that there are masks to compare
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data += 20
    report: dict[str, Any] = {"keys": len(base_state_dict(model)), "base_fingerprint": base_fingerprint(model)}
    ours = probe(model, frames)
    stock = form.load_stock(model, config)
    del model
    with tempfile.TemporaryDirectory() as folder:
        form.save_processor(image_size_of(config), Path(folder))
        theirs = probe_transformers(stock, Path(folder), frames)
    report["differences"] = {name: _relative(theirs[name], ours[name]) for name in ours}
    masks = ours["mask logits"] > 0, theirs["mask logits"] > 0
    report["mask_pixels"] = int(masks[0].sum())
    report["mask_pixels_that_differ"] = int((masks[0] != masks[1]).sum())
    if ours["mask logits"].std() == 0:
        report["masks"] = "constant, since no object was judged present: they were not compared"
    report["same"] = relative_difference(theirs, ours).item() <= TOLERANCE_THERE
    return report


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def main(arguments: argparse.Namespace) -> int:
    if arguments.frames < 2:
        raise UserError("--frames must be 2 or more: the first is prompted, the others are tracked", "verify.frames")
    transformers = load_transformers()
    machine = this_machine(arguments.device)
    model = {"name": arguments.model, "checkpoint": arguments.checkpoint, "image_size": arguments.image_size}
    config = Config.model_validate({"model": model})
    torch.manual_seed(0)  # for random weights
    logging.getLogger("transformers").setLevel(logging.ERROR)
    report: dict[str, Any] = {
        "checkpoint": arguments.checkpoint or "random weights",
        "model": f"{arguments.model} at {image_size_of(config.model)} px",
        "device": f"{machine.device}, {machine.name}, {machine.cores} cores",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, sam2 {version('sam2')}",
    }
    with without_its_bars():
        step = step_cost(config, arguments.frames, arguments.activation_checkpointing, machine.device)
        report |= compare(config.model, arguments.frames)
    report["training_step"] = step
    print("\n".join(lines(report)))
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["same"] else 1


def lines(report: dict[str, Any], indent: str = "") -> list[str]:
    """The report as text, a value a line."""
    text: list[str] = []
    for key, value in report.items():
        if isinstance(value, dict):
            text += [f"{indent}{key}:", *lines(value, indent + "  ")]
        else:
            text.append(f"{indent}{key}: {f'{value:.2e}' if isinstance(value, float) and value < 1e-2 else value}")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = cli.parser(__doc__, "python -m tools.verify_weights --checkpoint checkpoints/sam3 --json verified.json")
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="a folder of transformers, sam3.pt, or SAM 2.1's file (default: random weights, for time and memory)",
    )
    parser.add_argument("--model", default="sam3_tracker", metavar="NAME", help="as model.name has it")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="side of images (default: the model's own)")
    parser.add_argument("--frames", type=int, default=4, metavar="N", help="frames of the clips (default: 4)")
    parser.add_argument("--device", default="auto", help="of the training step; masks are compared on the CPU")
    parser.add_argument("--activation-checkpointing", action="store_true", help="compute activations twice")
    parser.add_argument("--json", metavar="FILE", help="write the report there, too")
    return parser


if __name__ == "__main__":
    cli.run(main, build_parser())
