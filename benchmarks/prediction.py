"""What adapters cost in video prediction: the time of a frame as a ratio to stock SAM 2's, with random weights.

The models go through one video side by side, frame by frame in a random order, so that every ratio is of
neighbouring measurements; it is the median over the frames on which the memory bank is full. Masks are checked:
they are stock SAM 2's bit for bit with untrained adapters and with adapters off, and others with the trained ones.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import clock, ratio
from src import cli
from src.config import LoraConfig, ModelConfig
from src.core.errors import UserError
from src.data.prompts import Prompt
from src.data.synthetic import SOURCE, make_videos
from src.lora.adapter import set_adapters_enabled
from src.lora.injection import apply_method
from src.lora.merging import merge_adapters
from src.models.sam2.build import build_model
from src.models.sam2.cpu_kernels import use_reference_kernels
from src.models.sam2.streaming import MemoryBank, StreamingTracker
from src.models.spec import model_names

STOCK, ON = "stock SAM 2", "MoPE"
SAME = "MoPE, untrained", "MoPE, off"  # these have stock SAM 2's masks


def build(config: ModelConfig) -> dict[str, SAM2Base]:
    """The models by name; all share their base weights, and trained adapters are far from zero."""
    torch.manual_seed(0)
    stock = build_model(config).eval()

    def adapted(lora: LoraConfig, trained: bool = True) -> SAM2Base:
        model = copy.deepcopy(lean)
        for adapter in apply_method(model, lora).values():
            for name, parameter in adapter.named_adapter_parameters():
                if trained and name.endswith("lora_B"):
                    nn.init.normal_(parameter, std=0.1)
        return model.eval()

    lean = copy.deepcopy(stock)
    use_reference_kernels(stock)
    lora = LoraConfig(method="lora", rank=40)
    models = {STOCK: stock, ON: adapted(LoraConfig()), SAME[0]: adapted(LoraConfig(), trained=False)}
    models |= {SAME[1]: adapted(LoraConfig()), "LoRA of rank 40": adapted(lora), "LoRA, merged": adapted(lora)}
    set_adapters_enabled(models[SAME[1]], False)
    merge_adapters(models["LoRA, merged"])
    return models


class Run:
    """A model on its way through a video with one object, which is prompted by a box on the first frame."""

    def __init__(self, model: SAM2Base, side: int) -> None:
        self.tracker = StreamingTracker(model)
        self.bank: MemoryBank = self.tracker.start()
        self.prompts = [Prompt(object_id=1, box=(side * 0.2, side * 0.2, side * 0.7, side * 0.7))]
        self.seconds: list[float] = []

    def step(self, frame: np.ndarray, now: Callable[[], float]) -> Tensor:
        """The object's logits on the next frame."""
        started = now()
        prediction, self.bank = self.tracker.step(frame, self.bank, () if self.seconds else self.prompts)
        self.seconds.append(now() - started)
        return prediction.logits[1]


def check(logits: dict[str, Tensor], t: int) -> None:
    """The masks of a frame are stock SAM 2's where they must be, and another's where adapters add something."""
    for name in SAME:
        if not torch.equal(logits[name], logits[STOCK]):
            raise UserError(f"frame {t}: the masks of '{name}' are not stock SAM 2's")
    if t > 0 and torch.equal(logits[ON], logits[STOCK]):
        raise UserError(f"frame {t}: the adapters add nothing, so their cost says nothing")


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    now = clock(arguments.threads)
    print(f"{arguments.size} px, {arguments.frames} frames, 1 object, {arguments.threads} threads\n")
    print("| model | adapters | ms a frame | to stock |\n|---|---|--:|--:|")
    for name in arguments.models:
        models = build(ModelConfig(name=name, image_size=arguments.size))
        runs = {key: Run(model, arguments.size) for key, model in models.items()}
        frames = [f.read() for f in make_videos(SOURCE, 1, 0, arguments.frames, arguments.size).videos[0].frames]
        with cli.progress_bar(frames, desc=name) as bar:
            for t, frame in enumerate(bar):
                turn = random.Random(t).sample([*runs], len(runs))
                check({key: runs[key].step(frame, now) for key in turn}, t)
        full = models[STOCK].num_maskmem
        for key, run in runs.items():
            to_stock = ratio(run.seconds[full:], runs[STOCK].seconds[full:])
            print(f"| {name} | {key} | {1e3 * median(run.seconds[full:]):.0f} | {to_stock:.3f} |", flush=True)
        if arguments.profile:
            with profile(activities=[ProfilerActivity.CPU]) as found:
                runs[ON].step(frames[-1], now)
            print(f"\n{found.key_averages().table(sort_by='self_cpu_time_total', row_limit=12)}")


if __name__ == "__main__":
    example = "python -m benchmarks.prediction --models sam2.1_hiera_tiny --size 512"
    parser = cli.parser("What adapters cost in video prediction, as ratios to stock SAM 2's time.", example)
    parser.add_argument(
        "--models", nargs="+", choices=model_names(), metavar="MODEL", default=["sam2_nano", "sam2.1_hiera_tiny"]
    )
    parser.add_argument("--size", type=int, default=512, help="image size in pixels (default: 512)")
    parser.add_argument("--frames", type=int, default=20, help="frames of the video, at least 9 (default: 20)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--profile", action="store_true", help="also print where a frame's time goes with MoPE on")
    cli.run(main, parser)
