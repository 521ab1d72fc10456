"""Build SAM 2 with experts, say where they are and how many parameters they have, and draw their use on a short clip.

With random weights, or untrained adapters, it shows how the experts begin; name what you trained with --checkpoint and
--adapter to see what became of them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from sam2_mope import build_sam2_video_predictor_moe, cli
from sam2_mope.core.errors import UserError
from sam2_mope.data.synthetic import SOURCE, make_videos
from sam2_mope.evaluation.figures import save_figure
from sam2_mope.lora.injection import count_parameters, describe_adapters, routed_layers
from sam2_mope.lora.recording import record_routing
from sam2_mope.tasks.tracking.predict import track


def describe_experts(model: SAM2Base) -> str:
    """Where the experts are and what they cost, as lines for people."""
    layers = routed_layers(model)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in layers))
    sizes = {(layer.num_experts, layer.rank, layer.gate.top_k) for layer in layers.values()}
    kinds = ", ".join(f"{experts} experts × rank {rank} × top-{k}" for experts, rank, k in sorted(sizes))
    count = count_parameters(model)
    share = count.trainable / count.total
    claim = ", not the 5–10 % often claimed" if share < 0.05 else ""
    return "\n".join(
        [
            f"{kinds} in {len(modules)} attention modules:",
            *(f"  {module}" for module in modules),
            f"{count.trainable:,} trainable parameters: {share * 100:.2f} % of all{claim}",
        ]
    )


def expert_use(predictor: SAM2VideoPredictor, frames: int) -> dict[str, Tensor]:
    """Track the objects of a synthetic clip from their masks; the experts' shares of all choices, per layer."""
    clip = make_videos(SOURCE, 1, first_seed=0, frames=frames, side=min(predictor.image_size, 512)).videos[0]
    with record_routing(predictor) as routing:
        track(predictor, clip, "mask")
    return routing.utilization()


def draw(usage: dict[str, Tensor], experts: int) -> Figure:
    """Bars per attention module and expert, one colour per projection; a dashed line where use is even."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in usage))
    rows = math.ceil(len(modules) / 2)
    figure = Figure(figsize=(11, 2.2 * rows), layout="constrained")
    for axes, module in zip(figure.subplots(rows, 2, squeeze=False).flat, modules, strict=False):
        shares = {name.rpartition(".")[2]: share_E for name, share_E in usage.items() if name.startswith(f"{module}.")}
        width = 0.8 / len(shares)
        for i, (projection, share_E) in enumerate(shares.items()):
            places = torch.arange(len(share_E)) + (i - (len(shares) - 1) / 2) * width
            axes.bar(places.tolist(), share_E.tolist(), width, label=projection)
        choices = max(len(share_E) for share_E in shares.values())
        axes.axhline(1 / choices, color="grey", linestyle="--", linewidth=0.8)
        axes.set_xticks(range(choices), [*map(str, range(experts)), "null"][:choices])
        axes.set_title(module, fontsize=8)
    figure.supxlabel("expert")
    figure.supylabel("share of all choices")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8)
    return figure


def main(arguments: argparse.Namespace) -> None:
    size = [] if arguments.image_size is None else [f"model.image_size={arguments.image_size}"]
    predictor = build_sam2_video_predictor_moe(
        arguments.config, arguments.checkpoint, arguments.device,
        adapter=arguments.adapter, hydra_overrides_extra=size, apply_postprocessing=False,
    )  # fmt: skip
    if not routed_layers(predictor):
        raise UserError(f"{arguments.adapter or arguments.config}: no experts in it; its lora.method must be mope")
    print(describe_adapters(predictor, dict(routed_layers(predictor))))
    print(describe_experts(predictor))
    experts = next(iter(routed_layers(predictor).values())).num_experts
    figure = draw(expert_use(predictor, arguments.frames), experts)
    save_figure(figure, Path(arguments.output))
    print(f"expert use on a clip of {arguments.frames} frames: {arguments.output}")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m examples.sam2_moe_demo --image-size 256 --output expert_use.png")
    parser.add_argument(
        "--config",
        default="configs/sam2.1/sam2.1_hiera_b+.yaml",
        help="a SAM 2 config or a run's YAML, such as src/configs/mope.yaml (default: SAM 2.1 base plus)",
    )
    parser.add_argument("--checkpoint", metavar="PT", help="base weights (default: the YAML's, else random ones)")
    parser.add_argument("--adapter", metavar="PATH", help="trained experts: an adapter folder or a run's checkpoint")
    parser.add_argument("--image-size", type=int, metavar="PX", help="smaller is faster (default: the model's own)")
    parser.add_argument("--frames", type=int, default=4, help="length of the clip (default: 4)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default="experiments/expert_use.png", metavar="PNG", help="the bar chart")
    cli.run(main, parser)
