"""Time and peak memory of a training step with adapters, as ratios to SAM 2's own full fine-tuning step.

All variants get the same clip and share their base weights, which are random: full fine-tuning (a
``training.model.sam2.SAM2Train``, all parameters train, AdamW, nothing of it lean), adapters, and adapters with the
frozen encoder's features kept (``training.cache_features``). First their losses are checked to be equal, on one thread
bit for bit: adapters begin as zero. Rounds are interleaved, each running one step of everything, and ratios are medians
over rounds of the ratio within one. Memory is the peak of a process of its own that builds the model and does a step,
less what it took before. Linux only.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training.model.sam2 import SAM2Train

from benchmarks.measuring import clock, in_own_process, in_turn, peak_mb, ratio
from src import cli
from src.config import (
    ClipConfig,
    LoraConfig,
    LossConfig,
    Method,
    ModelConfig,
    PromptConfig,
    TrainingConfig,
)
from src.core.device import evaluating
from src.core.errors import UserError
from src.data.clips import ClipBatch, sample_clip
from src.data.synthetic import SOURCE, make_videos
from src.lora.injection import apply_method
from src.models.activation_checkpointing import checkpoint_activations
from src.models.sam2.cpu_kernels import use_reference_kernels
from src.models.sam2.train_forward import (
    Features,
    TrainableSAM2,
    build_loss,
    build_trainable,
    encode_frames,
    has_frozen_encoder,
    segmentation_losses,
)
from src.models.spec import model_names, model_spec
from src.train.optim import build_optimizer

FULL = "full"
KEPT = ", features kept"
SIDE = 256  # of the video that the clip is cut from


@dataclass(frozen=True)
class Case:
    """A step to measure: ``size`` in pixels, ``rank`` of an expert (of LoRA: of all experts together)."""

    model: str = "sam2.1_hiera_tiny"
    method: Method = "mope"
    kept: bool = False
    size: int = 512
    frames: int = 8
    objects: int = 1
    experts: int = 10
    rank: int = 4
    checkpointing: bool = False
    device: str = "cpu"

    @property
    def name(self) -> str:
        return self.method + (KEPT if self.kept else "")


class Step:
    """A model on a clip, a training step at a time.

    Args:
        case: what to build.
        base: a model whose base weights are taken; None: random ones.
    """

    def __init__(self, case: Case, base: TrainableSAM2 | None = None) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, torch.device(case.device)
        self.model = copy.deepcopy(base) if base is not None else build_base(case)
        rank = case.rank * case.experts if case.method == "lora" else case.rank
        apply_method(self.model, LoraConfig(method=case.method, rank=rank, experts=case.experts))
        if case.checkpointing:
            checkpoint_activations(self.model, model_spec(case.model).checkpointed_blocks)
        if case.method == FULL:
            self.model.__class__ = SAM2Train
            use_reference_kernels(self.model)
        self.model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, TrainingConfig())
        self.loss = build_loss(LossConfig())
        self.batch = make_batch(case)
        self.kept = self.encode() if case.kept else None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def encode(self) -> Features:
        with self.autocast():
            return encode_frames(self.model, self.batch.frames_BTHWC[0])

    def total(self) -> Tensor:
        """The loss, with graph; a frozen encoder runs as it does in the trainer."""
        features = self.kept
        if features is None and has_frozen_encoder(self.model):
            features = self.encode()
        with self.autocast():
            return segmentation_losses(self.model, self.loss, self.batch, features=features)["total"]

    def first_loss(self) -> float:
        """Without dropout, so that it can be compared."""
        with torch.no_grad(), evaluating(self.model):
            return self.total().item()

    def __call__(self) -> None:
        self.total().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def build_base(case: Case) -> TrainableSAM2:
    """Random weights; every clip is prompted by masks, so that all variants do the same work."""
    prompts = PromptConfig(mask=1.0, box=0.0, point=0.0)
    model = build_trainable(ModelConfig(name=case.model, image_size=case.size), prompts, case.frames)
    model.num_init_cond_frames_for_train = 1
    return model


def make_batch(case: Case) -> ClipBatch:
    """One synthetic clip with as many objects as the case wants."""
    config = ClipConfig(frames=case.frames, max_objects=1)
    video = make_videos(SOURCE, 1, 0, frames=case.frames, side=SIDE).videos[0]
    batch = ClipBatch.collate([sample_clip(video, config, case.size, 0.0, np.random.default_rng(0))])
    return ClipBatch(
        batch.names,
        batch.frames_BTHWC,
        batch.masks_TOHW.expand(-1, case.objects, -1, -1).contiguous(),
        batch.annotated_TO.expand(-1, case.objects).contiguous(),
        batch.video_of_object.repeat(case.objects),
        batch.seeds,
    )


def peak_of(case: Case) -> float:
    """MB that building a model and doing a step takes; kept features are those of one frame, for every frame."""

    def build_and_step() -> None:
        step = Step(replace(case, kept=False))
        if case.kept:
            one = encode_frames(step.model, step.batch.frames_BTHWC[0, :1])
            step.kept = [level.repeat(case.frames, 1, 1, 1) for level in one]
        step()

    return peak_mb(build_and_step, case.device)


def cases_of(arguments: argparse.Namespace, model: str) -> list[Case]:
    """Full fine-tuning first."""
    common = {key: getattr(arguments, key) for key in ("size", "frames", "objects", "checkpointing", "device")}
    adapted = [(method, kept) for method in arguments.methods for kept in (False, True)]
    return [Case(model=model, method=method, kept=kept, **common) for method, kept in [(FULL, False), *adapted]]


def check_equal(steps: dict[str, Step]) -> None:
    """Untrained adapters add nothing, so every variant has the base's loss."""
    losses = {name: step.first_loss() for name, step in steps.items()}
    tolerance = 0 if torch.get_num_threads() == 1 else 1e-6  # several split products by their sizes: other rounding
    differing = {name: x for name, x in losses.items() if not math.isclose(x, losses[FULL], rel_tol=tolerance)}
    if differing and all(step.device.type == "cpu" for step in steps.values()):
        raise UserError(f"the base's loss is {losses[FULL]}, but {differing}")


def print_profile(step: Step, rows: int) -> None:
    """The operators in which most of a step's time goes, without what they call."""
    on_gpu = step.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        step()
    time_of = attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")
    spent = {event.key: (time_of(event), event.count) for event in found.key_averages()}
    whole = sum(time for time, _ in spent.values())
    print(f"\n{step.case.model}, {step.case.name}: where a step's time goes\n")
    print("| operator | share of the step | calls |\n|---|--:|--:|")
    for name, (time, count) in sorted(spent.items(), key=lambda each: -each[1][0])[:rows]:
        print(f"| `{name}` | {time / whole:.1%} | {count} |")


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    now = clock(arguments.threads, arguments.device)
    recomputed = ", activation checkpointing" if arguments.checkpointing else ""
    print(f"{arguments.size} px, {arguments.frames} frames, {arguments.objects} object(s){recomputed}, ", end="")
    print(f"{arguments.device}, {arguments.threads} threads, {arguments.rounds} rounds\n")
    print("| model | trains | s a step | times as fast as full | peak MB | to full |\n|---|---|--:|--:|--:|--:|")
    by_model = {model: cases_of(arguments, model) for model in arguments.models}
    measured = [case for cases in by_model.values() for case in cases] if arguments.memory else []
    memory = {case: in_own_process(peak_of, case) for case in measured}  # first: a fork must not come after threads
    for model, cases in by_model.items():
        base = build_base(cases[0])
        steps = {case.name: Step(case, base) for case in cases}
        check_equal(steps)
        seconds = in_turn(dict(steps), arguments.rounds, now)
        for case in cases:
            own, full = seconds[case.name], seconds[FULL]
            time = (f"{median(own):.2f}", f"{ratio(full, own):.2f}")
            peak = (f"{memory[case]:.0f}", f"{memory[case] / memory[cases[0]]:.2f}") if memory else ("", "")
            print(f"| {model} | {case.name} | {' | '.join(time + peak)} |", flush=True)
        if arguments.profile:
            print_profile(steps[cases[1].name], arguments.profile)


if __name__ == "__main__":
    example = "python -m benchmarks.training_step --models sam2.1_hiera_tiny --frames 8 --profile 12"
    parser = cli.parser(__doc__.splitlines()[0], example)
    names = ", ".join(model_names())
    parser.add_argument(
        "--models", nargs="+", choices=model_names(), default=["sam2.1_hiera_tiny"], metavar="NAME", help=names
    )
    parser.add_argument("--methods", nargs="+", choices=["mope", "lora"], default=["mope"], help="default: mope")
    parser.add_argument("--size", type=int, default=512, help="image size in pixels (default: 512)")
    parser.add_argument("--frames", type=int, default=8, help="frames of the clip (default: 8)")
    parser.add_argument("--objects", type=int, default=1, help="objects of the clip (default: 1)")
    parser.add_argument("--checkpointing", action="store_true", help="with activation checkpointing")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each variant (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--device", default="cpu", help="default: cpu; cuda gives absolute times")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the peaks of memory out")
    parser.add_argument("--profile", type=int, metavar="N", help="also the N operators that take most of a step's time")
    cli.run(main, parser)
