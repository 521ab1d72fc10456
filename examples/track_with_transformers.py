"""Hugging Face transformers with what was trained here: load an exported folder, put its adapters in, follow a box."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sam2_mope import cli
from sam2_mope.data.decode.video import open_stream
from sam2_mope.data.decode.video_writer import VideoWriter
from sam2_mope.data.drawing import draw_masks
from sam2_mope.models.checkpoint import ADAPTER_FOLDER
from sam2_mope.models.sam2.inference_state import DECISION
from sam2_mope.models.sam2.transformers_adapters import add_adapter_to_transformers
from sam2_mope.models.sam2.transformers_format import load_transformers


@torch.inference_mode()
def main(arguments: argparse.Namespace) -> None:
    # transformers' own classes; LoRA and full fine-tuning are in the weights, and end here
    transformers = load_transformers()
    model = transformers.Sam2VideoModel.from_pretrained(arguments.model)
    processor = transformers.Sam2VideoProcessor.from_pretrained(arguments.model)

    # MoPE and expert groups are in a folder beside the base's weights
    adapter = Path(arguments.model) / ADAPTER_FOLDER
    if adapter.is_dir():
        add_adapter_to_transformers(model, adapter, gate=arguments.gate)

    # a box on the first frame, and the object's mask on every frame
    frames = list(open_stream(arguments.input))
    session = processor.init_video_session(video=frames)
    processor.add_inputs_to_inference_session(session, frame_idx=0, obj_ids=1, input_boxes=[[arguments.box]])
    model(session, frame_idx=0)
    if (decision := getattr(session, DECISION, None)) is not None:
        print(f"the domain gate: {decision.domain or 'none of its domains: the base tracks'}")
    with VideoWriter(Path(arguments.output)) as video:
        for found in model.propagate_in_video_iterator(session):
            masks_O1HW = processor.post_process_masks([found.pred_masks], [frames[0].shape[:2]])[0]
            video.write(draw_masks(frames[found.frame_idx], {1: masks_O1HW[0, 0].numpy()}))
    print(f"{len(frames)} frames: {arguments.output}")


def box(text: str) -> list[float]:
    x0, y0, x1, y1 = map(float, text.split(","))
    return [x0, y0, x1, y1]


if __name__ == "__main__":
    parser = cli.parser(
        __doc__, "python -m examples.track_with_transformers --model exported --input clip.mp4 --box 10,20,80,90"
    )
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="written by sam2-mope export --format transformers"
    )
    parser.add_argument("--input", required=True, metavar="PATH", help="a video file or a folder of frames")
    parser.add_argument("--box", required=True, type=box, metavar="X0,Y0,X1,Y1", help="on the first frame, in pixels")
    parser.add_argument("--gate", default="auto", metavar="MODE", help="auto, on, off, or a domain's name")
    parser.add_argument("--output", default="experiments/tracked.mp4", metavar="MP4")
    cli.run(main, parser)
