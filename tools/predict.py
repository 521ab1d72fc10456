"""Segment and follow what is pointed at, in an image, a folder of frames or a video file, frame by frame.

Written into the output folder, NAME being the input's:

  Annotations/NAME/00000.png   palette images as in DAVIS: 0 is background, n is object n; where objects overlap, the
                               one with the higher mask logit is shown; frames of a folder keep their names
  NAME.json                    COCO: every object's whole mask as RLE, with box, area, track_id (the object) and score
                               (the model's probability that the object is to be seen on the frame)
  NAME.mp4 or Overlays/NAME/   the frames with the masks drawn on them

Prompts are [OBJECT[@FRAME]:]VALUES, object 1 on frame 0 unless it says so. An object is followed from its first prompt
onwards; later prompts for it correct what was followed. Frames are read one at a time, so memory does not grow with the
length of the video.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).parents[1]))

from src import cli
from src.config import Config, load_config
from src.data.drawing import draw_masks
from src.data.prompts import PromptsByFrame, check_prompts, parse_prompts
from src.data.records import RLE
from src.data.video import Footage, VideoFile, VideoWriter, open_footage
from src.data.writers import write_palette_png
from src.errors import UserError
from src.files import write_atomically
from src.lora.domain_gate import Decision
from src.model.build import build_model, pick_device
from src.model.checkpoint import load_trained
from src.model.gating import install_saved_gate
from src.model.streaming import Prediction, StreamingTracker

Overlay = Literal["video", "images", "none"]


def predict(
    tracker: StreamingTracker, footage: Footage, prompts: PromptsByFrame
) -> Iterator[tuple[np.ndarray, Prediction]]:
    """Every frame, RGB uint8 (H, W, 3), with the objects found on it.

    Raises:
        UserError: a prompt lies outside the frames or after the last one.
    """
    last = max(prompts)
    if footage.count is not None and last >= footage.count:
        raise _beyond_the_end(last, footage.count)
    bank, decided = tracker.start(footage.count), False
    for t, frame in enumerate(footage):
        if t == 0:
            check_prompts(prompts, *frame.shape[:2])
        new = [p for p in prompts.get(t, []) if p.object_id not in bank.objects]
        known = [p for p in prompts.get(t, []) if p.object_id in bank.objects]
        seen = tracker.encode(frame, bank) if known else frame
        prediction, bank = tracker.step(seen, bank, new)
        if known:
            prediction, bank = tracker.correct(seen, bank, known)
        if not decided and bank.decision is not None:
            decided = True
            if bank.decision.distances:  # none where --gate named what to do
                cli.say(gate_line(bank.decision))
        yield frame, prediction
    if last > bank.frame:
        raise _beyond_the_end(last, bank.frame + 1)


def write_prediction(
    tracker: StreamingTracker, footage: Footage, prompts: PromptsByFrame, output: Path, overlay: Overlay
) -> tuple[int, dict[int, int]]:
    """Predict, and write everything as it comes.

    Returns:
        The number of frames, and object id → the number of frames it was found on.
    """
    masks, pictures = output / "Annotations" / footage.name, output / "Overlays" / footage.name
    found: dict[int, int] = {}
    with ExitStack() as stack:
        coco = stack.enter_context(CocoWriter(output / f"{footage.name}.json", footage))
        video = None
        if overlay == "video":
            video = stack.enter_context(VideoWriter(output / f"{footage.name}.mp4", footage.rate))
        for frame, prediction in cli.progress_bar(
            predict(tracker, footage, prompts), total=footage.count, desc=footage.name, unit="frame"
        ):
            stem = Path(footage.frame_file(prediction.frame)).stem
            write_palette_png(masks / f"{stem}.png", label_frame(prediction, frame.shape[:2]))
            coco.add(prediction, frame.shape[:2])
            for object_id, mask in prediction.masks.items():
                found[object_id] = found.get(object_id, 0) + bool(mask.any())
            if overlay != "none":
                picture = draw_masks(frame, prediction.masks)
                if video is not None:
                    video.write(picture)
                else:
                    write_picture(pictures / f"{stem}.jpg", picture)
    return coco.images, found


def gate_line(decision: Decision) -> str:
    """What the domain gate measured on the frame prompted first, and what came of it, in a line."""
    distances = ", ".join(f"{name} {distance:.2f}" for name, distance in decision.distances.items())
    chosen = "no domain it knows, adapters off" if decision.domain is None else f"{decision.domain}, adapters on"
    return f"domain gate: {chosen} (distance to {distances}; inside is up to 1)"


def label_frame(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    """Object numbers, uint8, (H, W); where objects overlap, the one with the highest logit."""
    if not prediction.logits:
        return np.zeros(size, dtype=np.uint8)
    ids = np.array(list(prediction.logits), dtype=np.uint8)
    highest, winner = torch.stack(list(prediction.logits.values())).max(dim=0)
    return np.where((highest > 0).cpu().numpy(), ids[winner.cpu().numpy()], np.uint8(0))


def write_picture(path: Path, picture_HWC: np.ndarray) -> None:
    """Write a JPEG whole or not at all."""
    image = Image.fromarray(picture_HWC)
    write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=92))


class CocoWriter:
    """Writes COCO JSON object by object, keeping none of it in memory; the file appears when the block ends well.

    Images are numbered from 1 in the video's order. Objects that are not seen on a frame have no annotation there.
    """

    def __init__(self, path: Path, footage: Footage) -> None:
        self.path, self.footage = path, footage
        self.annotations = self.images = 0
        self.size = (0, 0)

    def __enter__(self) -> CocoWriter:
        self._lines = tempfile.TemporaryFile("w+", encoding="ascii")
        return self

    def add(self, prediction: Prediction, size: tuple[int, int]) -> None:
        """Add a frame's objects; ``size`` is its (H, W)."""
        self.images, self.size = prediction.frame + 1, size
        for object_id, mask in prediction.masks.items():
            if not mask.any():
                continue
            self.annotations += 1
            rle = RLE.encode(mask).rle
            annotation = {
                "id": self.annotations,
                "image_id": prediction.frame + 1,
                "category_id": 1,
                "track_id": object_id,
                "score": round(prediction.scores[object_id], 4),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(coco_mask.area(rle)),
                "iscrowd": 0,
                "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
            }
            self._lines.write(("" if self.annotations == 1 else ",\n") + json.dumps(annotation))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lines:
            if kind is None:
                write_atomically(self.path, self._write)

    def _write(self, path: Path) -> None:
        height, width = self.size
        with open(path, "w", encoding="utf-8") as file:
            file.write('{"categories": [{"id": 1, "name": "object"}],\n"images": [\n')
            for index in range(self.images):
                image = {"id": index + 1, "file_name": self.footage.frame_file(index), "height": height, "width": width}
                file.write((",\n" if index else "") + json.dumps(image))
            file.write('\n],\n"annotations": [\n')
            self._lines.seek(0)
            shutil.copyfileobj(self._lines, file)
            file.write("\n]}\n")


def _beyond_the_end(frame: int, count: int) -> UserError:
    frames = "there is 1 frame, number 0" if count == 1 else f"there are {count} frames, 0 to {count - 1}"
    return UserError(f"a prompt is for frame {frame}, but {frames}")


def load_tracker(config: Config, checkpoint: str | None, gate: str = "auto") -> StreamingTracker:
    """The run's base model, with the adapters (and domain gate) of a checkpoint or adapter folder if there is one."""
    torch.manual_seed(config.training.seed)
    model = build_model(config.model)
    if checkpoint is not None:
        load_trained(model, checkpoint)
    install_saved_gate(model, checkpoint, gate)
    return StreamingTracker(model.to(pick_device(config.training.device)), keep_corrections=True)


def frame_rate(text: str) -> Fraction:
    """Frames per second as written on the command line: ``25``, ``29.97``, ``30000/1001``."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of frames per second")
    return rate


def main(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.overrides)
    prompts = parse_prompts(arguments.box, arguments.point, arguments.mask, arguments.prompts)
    footage = open_footage(arguments.input)
    output = Path(arguments.output)
    overlay: Overlay = arguments.overlay or ("video" if isinstance(footage, VideoFile) else "images")
    if arguments.fps is not None:
        footage = replace(footage, rate=arguments.fps)
    tracker = load_tracker(config, arguments.checkpoint, arguments.gate)
    count, found = write_prediction(tracker, footage, prompts, output, overlay)
    for object_id, frames in sorted(found.items()):
        print(f"object {object_id}: found on {frames} of {count} frames")
    cli.say(f"written to {output}")


if __name__ == "__main__":
    example = "python tools/predict.py --config src/configs/mope.yaml --input clip.mp4 --box 2@10:40,30,200,180"
    parser = cli.parser(__doc__.rpartition("\n\n")[0], example)
    cli.add_config_arguments(parser)
    parser.add_argument("--input", required=True, metavar="PATH", help="an image, a folder of frames, or a video file")
    parser.add_argument(
        "--output", default="experiments/predictions", metavar="FOLDER", help="default: experiments/predictions"
    )
    parser.add_argument(
        "--checkpoint", "--adapter", metavar="PATH", help="a run's checkpoint or an adapter folder (default: the base)"
    )
    parser.add_argument(
        "--gate", default="auto", metavar="MODE",
        help="whether adapters are on: auto (the adapter folder's domain gate decides, if it has one), on, off, or the "
        "name of one of its domains",
    )  # fmt: skip
    parser.add_argument("--box", action="append", default=[], metavar="[N[@T]:]X0,Y0,X1,Y1", help="in pixels")
    parser.add_argument(
        "--point", action="append", default=[], metavar="[N[@T]:]X,Y[,LABEL]", help="label 1: on it (default), 0: not"
    )
    parser.add_argument(
        "--mask", action="append", default=[], metavar="[N[@T]:]FILE", help="an image; each palette index is an object"
    )
    parser.add_argument("--prompts", metavar="JSON", help="a list of prompts, as src/data/prompts.py describes it")
    parser.add_argument("--overlay", choices=["video", "images", "none"], help="default: as the input")
    parser.add_argument("--fps", type=frame_rate, help="of the overlay video (default: the input's, or 24)")
    cli.run(main, parser)
