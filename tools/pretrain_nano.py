"""Pre-train the bundled nano base on synthetic clips of the source domain, and print how well it does on held-out ones.

First single images (points and boxes), then short clips, then longer ones: what to segment is learned before what to
follow; and all but the last phase on a wilder version of the domain. Every clip is drawn afresh. The weights are
written as float16 safetensors after each phase.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from torch.utils.data import DataLoader, IterableDataset

from src import cli
from src.config import (
    AugmentationConfig,
    ClipConfig,
    LossConfig,
    ModelConfig,
    MotionConfig,
    Prompt,
    PromptConfig,
    TrainingConfig,
)
from src.data.clips import Clip, ClipBatch, sample_clip
from src.data.records import DataSet
from src.data.synthetic import HELD_OUT_SEED, SOURCE, WILD_SOURCE, Domain, make_video, make_videos
from src.evaluation import domains
from src.evaluation.metrics import region_similarity
from src.models.sam2.build import build_model
from src.models.sam2.train_forward import build_loss, build_trainable, segmentation_losses
from src.tasks.tracking.evaluation import evaluate_domain
from src.tasks.tracking.predict import predicting, track
from src.train.optim import build_optimizer


@dataclass(frozen=True)
class Phase:
    """One stage of pre-training. ``images``: single images beside the clips of every step, against forgetting them."""

    frames: int
    batch_size: int
    steps: int
    learning_rate: float
    prompts: PromptConfig
    images: int = 0
    domain: Domain = WILD_SOURCE


PHASES = (
    Phase(1, 16, 2500, 6e-4, PromptConfig(mask=0.0, box=0.5, point=0.5, correction_clicks=2)),
    Phase(4, 4, 3200, 5e-4, PromptConfig(mask=0.5, box=0.25, point=0.25, correction_clicks=1)),
    Phase(8, 3, 500, 2e-4, PromptConfig(mask=0.5, box=0.25, point=0.25, correction_clicks=1)),
    Phase(8, 3, 800, 4e-4, PromptConfig(mask=0.4, box=0.3, point=0.3, correction_clicks=1), 8, SOURCE),
)
CONFIG = ModelConfig(name="sam2_nano")
FLIP_ONLY = AugmentationConfig(
    degrees=0, shear=0, brightness=0, contrast=0, saturation=0, grey=0,
    frame_brightness=0, frame_contrast=0, frame_saturation=0,
)  # fmt: skip


class FreshClips(IterableDataset[Clip]):
    """Endless clips of the source domain, each from a seed of its own."""

    def __init__(self, domain: Domain, frames: int, first_seed: int, side: int) -> None:
        self.domain, self.frames, self.first_seed, self.side = domain, frames, first_seed, side

    def __iter__(self) -> Iterator[Clip]:
        worker = torch.utils.data.get_worker_info()
        step, seed = (worker.num_workers, self.first_seed + worker.id) if worker else (1, self.first_seed)
        config = ClipConfig(frames=self.frames, max_objects=3, motion=MotionConfig(occlusion=0.0))
        while seed < HELD_OUT_SEED:
            video = make_video(self.domain, seed, self.frames, self.side)
            if video.objects:
                yield sample_clip(video, config, self.side, 0.0, np.random.default_rng(seed), FLIP_ONLY)
            seed += step


def pretrain(output: Path, share: float, first_phase: int, workers: int, device: torch.device) -> None:
    """Run the phases and write the weights.

    Args:
        output: the file written after each phase; from phase 2 on, training goes on from what is in it.
        share: shortens every phase (1.0 is the real thing).
        first_phase: 1 to begin; more to go on after an interruption.
        workers: processes that draw clips.
        device: where to train.
    """
    loss = build_loss(LossConfig())
    seed = 0
    for number, phase in enumerate(PHASES, 1):
        steps = max(1, round(phase.steps * share))
        seed += 2 * steps * (phase.batch_size + phase.images)  # past every earlier one: few videos come out empty
        if number < first_phase:
            continue
        torch.manual_seed(number)
        config = CONFIG if number == 1 else CONFIG.model_copy(update={"checkpoint": str(output)})
        model = build_trainable(config, phase.prompts, phase.frames).to(device).train()
        settings = TrainingConfig(learning_rate=phase.learning_rate, weight_decay=0.05)
        optimizer = build_optimizer(model, settings)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, phase.learning_rate, total_steps=steps, pct_start=0.05, cycle_momentum=False
        )
        image_seed = seed + 2 * steps * phase.batch_size
        loaders = [_loader(FreshClips(phase.domain, phase.frames, seed, model.image_size), phase.batch_size, workers)]
        if phase.images:
            stills = FreshClips(phase.domain, 1, image_seed, model.image_size)
            loaders.append(_loader(stills, phase.images, workers))
        mean = None
        with cli.progress_bar(total=steps, desc=f"phase {number}: {phase.frames} frames") as bar:
            for _, *batches in zip(range(steps), *loaders, strict=False):
                optimizer.zero_grad(set_to_none=True)
                for batch in batches:
                    total = segmentation_losses(model, loss, batch)["total"]
                    total.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                mean = total.item() if mean is None else 0.99 * mean + 0.01 * total.item()
                bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
                bar.update()
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, output)
        print(f"phase {number} done, weights written to {output}")


def _loader(clips: FreshClips, batch_size: int, workers: int) -> DataLoader[Clip]:
    return DataLoader(
        clips, batch_size, collate_fn=ClipBatch.collate, num_workers=workers, prefetch_factor=4 if workers else None
    )


def prompted_frame_J(model: SAM2Base, data: DataSet, prompt: Prompt) -> float:
    """Mean J over objects on the first frame, which carries the prompt: image segmentation."""
    values = []
    with predicting(model) as predictor:
        for video in data.videos:
            still = [replace(o, segmentations=o.segmentations[:1]) for o in video.objects]
            record = replace(video, frames=video.frames[:1], objects=still)
            truth = record.masks(0)
            for object_id, masks in track(predictor, record, prompt).items():
                values.append(region_similarity(masks[0].decode(), truth[object_id]))
    return float(np.mean(values))


def report(weights: Path, clips: int) -> None:
    """Print how well the weights do on held-out clips of 8 frames."""
    model = build_model(CONFIG.model_copy(update={"checkpoint": str(weights)}))
    data = make_videos(SOURCE, clips, HELD_OUT_SEED)
    domain = domains.Domain(SOURCE.name, data, frames=8, max_objects=3, max_side=128, motion=MotionConfig())
    tracked = evaluate_domain(model, domain, "mask")
    print(f"held-out source clips of 8 frames: {clips} clips, {tracked.objects} objects")
    print(f"  tracked from the first frame's mask: J {tracked.scores['J']:.3f}, F {tracked.scores['F']:.3f}")
    print(f"  image, from a box: J {prompted_frame_J(model, data, 'box'):.3f}")
    print(f"  image, from one click: J {prompted_frame_J(model, data, 'point'):.3f}")


def main(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if arguments.phase <= len(PHASES):
        pretrain(output, arguments.share, arguments.phase, arguments.workers, torch.device(arguments.device))
    report(output, arguments.clips)


if __name__ == "__main__":
    arguments = cli.parser(
        __doc__.splitlines()[0], "python -m tools.pretrain_nano --output checkpoints/sam2_nano.safetensors"
    )
    arguments.add_argument("--output", default="checkpoints/sam2_nano.safetensors", help="where the weights go")
    arguments.add_argument("--share", type=float, default=1.0, help="share of the full number of steps (default: 1.0)")
    arguments.add_argument("--phase", type=int, default=1, help="go on from this phase; one past the last only reports")
    arguments.add_argument("--clips", type=int, default=100, help="held-out clips to report on (default: 100)")
    arguments.add_argument("--workers", type=int, default=1, help="processes that draw clips (default: 1)")
    arguments.add_argument("--device", default="cpu")
    cli.run(main, arguments)
