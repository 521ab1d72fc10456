"""Serve a page to try an adapter on, for this machine alone.

It shows base and adapted masks of a picture or video side by side, what the domain gate decides, and which experts act
where. It needs gradio: pip install gradio
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
from pathlib import Path

from ..core.errors import UserError
from . import command

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> None:
    """Serve the page until it is stopped."""
    from ..config import load_config
    from ..models.checkpoint import ADAPTER_FOLDER

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        from ..demo.page import build_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the page needs gradio: pip install gradio", "demo.no-gradio") from None
    if arguments.frames < 1:
        raise UserError(f"--frames {arguments.frames}: at least 1 frame must be looked at", "demo.frames")
    config = load_config(arguments.config, arguments.overrides)
    adapter = arguments.checkpoint or str(Path(config.output_dir) / ADAPTER_FOLDER)
    page, missing = build_page(config, adapter, arguments.frames, arguments.debug)
    for reason in missing:
        logger.info(f"no samples of a domain: {reason}")
    blocks, address = page.serve(arguments.port)
    print(f"open {address}", flush=True)
    try:
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    example = "sam2-mope demo --config experiments/config.yaml --adapter experiments/adapter --port 7860"
    parser = command.parser(__doc__, example)
    command.add_config_arguments(parser)
    parser.add_argument(
        "--checkpoint", "--adapter", metavar="PATH",
        help="a run's checkpoint or an adapter folder (default: the adapter folder in the run's output_dir)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument(
        "--frames", type=int, default=200, metavar="N", help="look at the first N frames of a video (default: 200)"
    )
    return parser
