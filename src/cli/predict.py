"""Segment and follow what is pointed at in an image, a folder of frames or a video, or find what is named.

Written into the output folder, NAME being the input's:
  Annotations/NAME/00000.png   palette images as in DAVIS: n is object n; frames of a folder keep their names
  NAME.json                    COCO: every object's whole mask, with box, area, track_id (the object) and score
  NAME.mp4 or Overlays/NAME/   the frames with the masks drawn on them

Prompts are [OBJECT[@FRAME]:]VALUES, object 1 on frame 0 by default. Models of concepts are asked phrases instead.

Frames are read one at a time, so memory does not grow with the length of the video. Categories of NAME.json are the
phrases, where phrases are asked, and an image's numbers in Annotations are its instances.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from . import command

if TYPE_CHECKING:
    from ..config import Config
    from ..data.decode.live import LiveFrames
    from ..data.decode.video import FrameFiles, VideoFile
    from ..data.prompts import PromptsByFrame, PromptsByImage
    from ..tasks.tracking.track_video import Overlay

logger = logging.getLogger(__name__)


MAX_RATE = 1000
"""Frames per second of a video that is written, at most."""


def frame_rate(text: str) -> Fraction:
    """Return frames per second as the command line has them: ``25``, ``29.97``, ``30000/1001``."""
    try:
        rate = Fraction(text) if re.fullmatch(r"[\d./]{1,20}", text) else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    rate = rate.limit_denominator(100_000)  # a file holds no other
    if not 0 < rate <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of frames per second")
    return rate


def frame_range(text: str) -> tuple[int, int | None]:
    """Return the first frame and the one after the last (None: the end), as the command line has them."""
    from ..data.decode.selection import parse_range

    try:
        return parse_range(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no range of frames such as 100:400, 100: or :400") from None


def whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number from ``least`` on."""

    def number(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least}")
        return int(text)

    return number


def main(arguments: argparse.Namespace) -> None:
    """Write what is found and print how often each object was."""
    from ..config import load_config
    from ..data.decode.live import is_live, open_live
    from ..data.decode.video import open_stream
    from ..data.prompts import parse_prompts, parse_still_prompts

    config = load_config(arguments.config, arguments.overrides)
    live = is_live(arguments.input)
    asks_phrases = _asks_phrases(arguments, config)
    if live and (asks_phrases or arguments.stills or arguments.auto is not None):
        raise UserError(
            f"--input {arguments.input}: give a folder or file with --phrase, --stills, --auto", "predict.not-live"
        )
    if asks_phrases:
        predict_concepts(arguments, config)
        return
    threshold = config.dataset.domains[0].mask_threshold
    pointed = arguments.box, arguments.point, arguments.mask, arguments.prompts, threshold
    if arguments.auto is not None:
        predict_all(arguments, config)
        return
    if arguments.stills:
        _refuse(_selecting(arguments), "--stills")
        predict_stills(arguments, config, parse_still_prompts(*pointed))
        return
    prompts = parse_prompts(*pointed)
    if not live:
        predict_video(arguments, config, open_stream(arguments.input), prompts)
        return
    with open_live(arguments.input) as source, _stopping(source):
        logger.info(f"{source.shown}: Ctrl-C stops it, and what was found is written")
        predict_video(arguments, config, source, prompts)
    if source.lost:
        logger.info(f"{source.lost} frames came while the model was busy, and were left out")
    if source.failure:
        raise source.failure


def predict_video(
    arguments: argparse.Namespace, config: Config, source: FrameFiles | VideoFile | LiveFrames, prompts: PromptsByFrame
) -> None:
    """Track what is pointed at."""
    from ..data.decode.live import LiveFrames
    from ..data.decode.selection import Selection
    from ..data.decode.video import FrameFiles

    output = Path(arguments.output)
    overlay: Overlay = arguments.overlay or ("images" if isinstance(source, FrameFiles) else "video")
    start, stop = arguments.frames
    footage = Selection(source, start, stop, arguments.every, arguments.max_side, arguments.fps)
    prompts = footage.select_prompts(prompts)
    from ..tasks.tracking.track_video import load_tracker, write_prediction  # which takes seconds

    tracker = load_tracker(config, _checkpoint(arguments, config), arguments.gate)
    live = isinstance(source, LiveFrames)
    count, found = write_prediction(tracker, footage, prompts, output, overlay, may_stop=live)
    for object_id, frames in sorted(found.items()):
        print(f"object {object_id}: found on {frames} of {count} frames")
    logger.info(f"written to {output}")


@contextmanager
def _stopping(source: LiveFrames) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the frames inside the block; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        source.stop()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def predict_all(arguments: argparse.Namespace, config: Config) -> None:
    """Find the masks of everything on pictures."""
    from ..tasks.tracking.automatic import only_category, parse_options, write_automatic
    from ..tasks.tracking.stills import Stills, pictures_of
    from ..tasks.tracking.track_video import load_model

    pointed = [f"--{name}" for name in ("box", "point", "mask", "prompts", "fps") if getattr(arguments, name)]
    video = ["--overlay video"] if arguments.overlay == "video" else []
    _refuse([*pointed, *video, *_selecting(arguments)], "--auto")
    path, options = Path(arguments.input), parse_options(arguments.auto)
    stills = Stills(path, pictures_of(path))
    checkpoint = _checkpoint(arguments, config)
    learned = config.dataset.domains[0].split("train")
    category = only_category(learned) if checkpoint and learned else None
    count = write_automatic(
        load_model(config, checkpoint, arguments.gate), stills, Path(arguments.output), category,
        arguments.overlay != "none", **options,
    )  # fmt: skip
    print(f"{category or 'object'}: {count} masks on {stills.count} pictures")
    if not count:
        logger.info("if there should be some, lower --auto pred_iou_thresh=0.8 stability_score_thresh=0.95")
    logger.info(f"written to {arguments.output}")


def _selecting(arguments: argparse.Namespace) -> list[str]:
    """Return the options given that choose frames of a video."""
    given = {
        "--frames": arguments.frames != (0, None), "--every": arguments.every != 1, "--max-side": arguments.max_side
    }  # fmt: skip
    return [name for name, value in given.items() if value]


def _refuse(options: list[str], beside: str) -> None:
    """Raise UserError where there are options."""
    if options:
        raise UserError(f"{', '.join(options)}: not with {beside}; leave it out", "predict.not-with")


def predict_stills(arguments: argparse.Namespace, config: Config, prompts: PromptsByImage) -> None:
    """Predict on unrelated pictures."""
    from ..tasks.tracking.stills import open_stills, write_stills
    from ..tasks.tracking.track_video import load_tracker

    stills, own = open_stills(Path(arguments.input), prompts)
    tracker = load_tracker(config, _checkpoint(arguments, config), arguments.gate)
    output = Path(arguments.output)
    for object_id, pictures in sorted(
        write_stills(tracker, stills, own, output, arguments.overlay or "images").items()
    ):
        print(f"object {object_id}: found on {pictures} of {stills.count} pictures")
    logger.info(f"written to {output}")


def predict_concepts(arguments: argparse.Namespace, config: Config) -> None:
    """Find phrases on pictures."""
    from ..tasks.concepts.predict import is_video, load_model, open_pictures, predict_phrases, read_categories

    path, output = Path(arguments.input), Path(arguments.output)
    if arguments.phrases_from:
        phrases = read_categories(Path(arguments.phrases_from), config.dataset.phrases)
    else:
        phrases = {phrase: number for number, phrase in enumerate(dict.fromkeys(arguments.phrase), 1)}
    if is_video(path):
        predict_concept_video(arguments, config, phrases)
        return
    _refuse(_video_options(arguments), "--phrase on pictures")
    pictures = open_pictures(path)
    model = load_model(config, _checkpoint(arguments, config))
    name = path.resolve().name if path.is_dir() else path.stem
    masks, overlays = config.training.enable_segmentation, arguments.overlay != "none"
    for phrase, (instances, shown) in predict_phrases(model, pictures, phrases, output, name, masks, overlays).items():
        print(f"{phrase}: {instances} found on {shown} of {len(pictures)} pictures")
    logger.info(f"written to {output}")


def predict_concept_video(arguments: argparse.Namespace, config: Config, phrases: dict[str, int]) -> None:
    """Find phrases in a video."""
    from ..data.decode.selection import Selection
    from ..data.decode.video import open_stream
    from ..tasks.concepts.predict import load_video_model, predict_video

    start, stop = arguments.frames
    source = open_stream(arguments.input)
    footage = Selection(source, start, stop, arguments.every, arguments.max_side, arguments.fps)
    model = load_video_model(config, _checkpoint(arguments, config))
    output = Path(arguments.output)
    count, found = predict_video(model, footage, phrases, output, arguments.overlay or "video")
    for phrase, instances in found.items():
        print(f"{phrase}: {len(instances)} found in {count} frames")
    logger.info(f"written to {output}")


def _video_options(arguments: argparse.Namespace) -> list[str]:
    """Return the options given that only a video has."""
    options = ["--overlay video"] if arguments.overlay == "video" else []
    return [*options, *(["--fps"] if arguments.fps else []), *_selecting(arguments)]


def _asks_phrases(arguments: argparse.Namespace, config: Config) -> bool:
    """Return whether phrases are asked. Raises UserError where the options do not suit the model."""
    from ..models.spec import model_spec

    asked, model = bool(arguments.phrase or arguments.phrases_from), config.model.name
    if model_spec(model).task != "concepts":
        if asked:
            raise UserError(
                f"--phrase, --phrases-from: model.name {model} knows no words; point with --box, --point or --mask",
                "predict.no-words",
            )
        return False
    if not asked:
        raise UserError(
            f"model.name {model} finds phrases: say which with --phrase or --phrases-from", "predict.no-phrase"
        )
    options = ("box", "point", "mask", "prompts")
    wrong = [f"--{name}" for name in options if getattr(arguments, name)]
    wrong += [] if arguments.auto is None else ["--auto"]
    wrong += ["--gate"] if arguments.gate != "auto" else []
    wrong += ["--phrase beside --phrases-from"] if arguments.phrase and arguments.phrases_from else []
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not where phrases are asked; leave it out", "predict.not-with-phrases")
    if any(not phrase.strip() for phrase in arguments.phrase):
        raise UserError("--phrase: it is empty; say what to find, such as --phrase crack", "predict.no-phrase")
    return True


def _checkpoint(arguments: argparse.Namespace, config: Config) -> str | None:
    """Return what was trained: as the command line says, else the run's best weights; None: the base. Logs which."""
    best = Path(config.output_dir) / "checkpoints" / "best.pt"
    chosen: str | None = arguments.checkpoint
    if chosen is None and config.lora.method != "none" and best.exists():
        chosen = str(best)
    why = "" if chosen or config.lora.method == "none" else f" ({best} does not exist)"
    logger.info(f"model: {config.model.name} with {chosen}" if chosen else f"model: {config.model.name} as it is{why}")
    return chosen


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    example = "sam2-mope predict --config src/configs/mope.yaml --input clip.mp4 --box 2@10:40,30,200,180"
    parser = command.parser(__doc__.rpartition("\n\n")[0], example)
    parser.usage = "%(prog)s --config YAML --input PATH [what to find] [options]"
    command.add_config_arguments(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="file, folder, camera:0, rtsp://…, http://…, - (video on standard input)",
    )
    parser.add_argument(
        "--output", default="experiments/predictions", metavar="FOLDER", help="default: experiments/predictions"
    )
    parser.add_argument(
        "--checkpoint",
        "--adapter",
        metavar="PATH",
        help="what was trained (default: the run's best.pt)",
    )
    parser.add_argument(
        "--gate", default="auto", metavar="MODE",
        help="auto (the domain gate decides about adapters), on, off, a domain",
    )  # fmt: skip
    parser.add_argument("--box", action="append", default=[], metavar="PROMPT", help="X0,Y0,X1,Y1 in pixels")
    parser.add_argument(
        "--point", action="append", default=[], metavar="PROMPT", help="X,Y or X,Y,LABEL; 1: on it, 0: not"
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="PROMPT",
        help="a mask file",
    )
    parser.add_argument("--prompts", metavar="JSON", help="a list of prompts (src/data/prompts.py)")
    parser.add_argument("--phrase", action="append", default=[], metavar="TEXT", help="what to find, by its name")
    parser.add_argument("--phrases-from", metavar="JSON", help="find all categories of a COCO file")
    parser.add_argument(
        "--stills", action="store_true",
        help="the input's pictures are unrelated: each by itself",
    )  # fmt: skip
    parser.add_argument(
        "--auto", nargs="*", metavar="KEY=N",
        help="find everything on pictures; options of SAM2AutomaticMaskGenerator",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=frame_range, default=(0, None), metavar="A:B", help="frames from A to before B only"
    )
    parser.add_argument("--every", type=whole(1), default=1, metavar="N", help="each Nth of them only")
    parser.add_argument(
        "--max-side", type=whole(16), metavar="PIXELS",
        help="scale frames down to this longer side (prompts: input's pixels)",
    )  # fmt: skip
    parser.add_argument("--overlay", choices=["video", "images", "none"], help="default: as the input")
    parser.add_argument("--fps", type=frame_rate, help="of the overlay video (default: the input's, or 24)")
    return parser
