"""The API on one screen: build SAM 2, add experts, train them on a synthetic clip, save them, load them again."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from sam2_mope import build_sam2_video_predictor_moe, cli, load_config, save_adapter
from sam2_mope.config import ClipConfig, PromptConfig, image_size_of
from sam2_mope.data.clips import ClipBatch, sample_clip
from sam2_mope.data.synthetic import CELLS, make_videos
from sam2_mope.lora.injection import apply_method, describe_adapters
from sam2_mope.lora.recording import record_routing
from sam2_mope.lora.router_losses import load_balancing_loss
from sam2_mope.models.sam2.train_forward import build_loss, build_trainable, segmentation_losses


def main(arguments: argparse.Namespace) -> None:
    # build the base and freeze it; what trains from here on is the experts and their gates
    config = load_config(arguments.config)
    torch.manual_seed(config.training.seed)
    clip = ClipConfig(frames=2)  # the first is prompted with masks, on the second the objects are found again
    model = build_trainable(config.model, PromptConfig(mask=1.0, box=0.0, point=0.0), clip.frames).train()
    print(describe_adapters(model, apply_method(model, config.lora)))

    # a clip at the model's image size, with masks on every frame
    side, rng = image_size_of(config.model), np.random.default_rng(0)
    video = make_videos(CELLS, 1, first_seed=0, frames=clip.frames, side=side).videos[0]
    batch = ClipBatch.collate([sample_clip(video, clip, side, 0.0, rng)])

    # SAM 2's own loss, and a little of the one that keeps all experts in use
    loss = build_loss(config.training.loss)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arguments.learning_rate)
    for step in range(arguments.steps):
        with record_routing(model) as routing:
            total = segmentation_losses(model, loss, batch)["total"]
        total = total + config.lora.router.balance_weight * load_balancing_loss(routing)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {total.item():.3f}")

    # the adapter folder, and stock SAM 2's video predictor with it
    save_adapter(model, arguments.output, config.lora, {"model_name": config.model.name, "image_size": side})
    predictor = build_sam2_video_predictor_moe(arguments.config, adapter=arguments.output)
    print(f"{type(predictor).__name__} is ready on {predictor.device}: predictor.init_state('folder of JPEG frames')")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m examples.simple_train_moe --output experiments/simple_adapter")
    parser.add_argument("--config", default="src/configs/mope.yaml", metavar="YAML", help="model and adapters")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--output", default="experiments/simple_adapter", metavar="FOLDER", help="the adapter folder")
    cli.run(main, parser)
