"""Peak memory and time of a training step, for every model and method, as ratios to full fine-tuning on the same clip.

Each case runs in a process of its own. Memory is the peak of the process (CPU) or of the allocator (CUDA), less what
the interpreter and libraries take before the model is built. Before anything is timed, the adapted models' first loss
is checked to equal the base's: adapters begin as zero.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from src import cli
from src.config import ModelName
from src.errors import UserError

MODELS = get_args(ModelName)
METHODS = ("full", "lora", "mope")


def measure(case: dict) -> dict[str, float]:
    """One case in this process: loss before the first step, peak memory in MB, seconds per step (the fastest)."""
    import numpy as np
    import torch

    from src.config import ClipConfig, LoraConfig, LossConfig, ModelConfig, PromptConfig, TrainingConfig
    from src.data.clips import ClipBatch, draw_clip
    from src.data.synthetic import SOURCE, make_videos
    from src.lora.lora_utils import apply_method
    from src.model.build import checkpoint_activations, pick_device
    from src.model.segmenter import build_loss, build_trainable, segmentation_losses
    from src.train.optim import build_optimizer

    device = pick_device(case["device"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch.manual_seed(0)
    prompts = PromptConfig(mask=1.0, box=0.0, point=0.0)
    model = build_trainable(ModelConfig(name=case["model"], image_size=case["size"]), prompts, case["frames"])
    apply_method(model, LoraConfig(method=case["method"], rank=40 if case["method"] == "lora" else 4))
    if case["checkpointing"]:
        checkpoint_activations(model)
    model.to(device).train()
    optimizer = build_optimizer(model, TrainingConfig())
    loss = build_loss(LossConfig())
    config = ClipConfig(frames=case["frames"], max_objects=1)
    data = make_videos(SOURCE, 1, 0, frames=case["frames"], side=128)
    batch = ClipBatch.collate([draw_clip(data.videos[0], config, case["size"], 0.0, np.random.default_rng(0))])
    model.eval()  # without dropout, so that losses can be compared
    with torch.no_grad():
        first_loss = float(segmentation_losses(model, loss, batch)["total"])
    model.train()
    seconds = []
    for _ in range(case["steps"]):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            total = segmentation_losses(model, loss, batch)["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"loss": first_loss, "memory": peak, "seconds": min(seconds)}


def main(arguments: argparse.Namespace) -> None:
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    recomputed = ", activation checkpointing" if arguments.checkpointing else ""
    print(f"{arguments.size} px, {arguments.frames} frames, 1 object{recomputed}\n")
    print("| model | method | peak memory, MB | to full | seconds a step | to full |")
    print("|---|---|--:|--:|--:|--:|")
    for model in arguments.models:
        full: dict[str, float] = {}
        for method in METHODS:
            case = {**vars(arguments), "model": model, "method": method}
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{model} with method {method} failed: {done.stderr.strip().splitlines()[-1]}")
            found = json.loads(done.stdout.splitlines()[-1])
            full = full or found
            if abs(found["loss"] - full["loss"]) > 1e-4 * abs(full["loss"]):
                raise UserError(f"{model}: the loss with {method} is {found['loss']}, the base's is {full['loss']}")
            memory, seconds = found["memory"] / full["memory"], found["seconds"] / full["seconds"]
            row = (f"{found['memory']:.0f}", f"{memory:.2f}", f"{found['seconds']:.2f}", f"{seconds:.2f}")
            print(f"| {model} | {method} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    example = "python benchmarks/training_memory.py --models sam2.1_hiera_tiny --size 512"
    parser = cli.parser(__doc__.splitlines()[0], example)
    models = ", ".join(MODELS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=models)
    parser.add_argument("--size", type=int, default=512, help="image size in pixels (default: 512)")
    parser.add_argument("--frames", type=int, default=4, help="frames of the clip (default: 4)")
    parser.add_argument("--steps", type=int, default=2, help="steps timed, the fastest counts (default: 2)")
    parser.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    cli.run(main, parser)
