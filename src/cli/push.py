"""Put an adapter folder on the Hugging Face hub, with its model card; commands then read it by user/name."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.errors import UserError
from . import command


def main(arguments: argparse.Namespace) -> None:
    """Check the folder, send it, and print where it is."""
    from ..core.hub import check_card, push_folder
    from ..evaluation.card import CARD_FILE
    from ..lora.adapter_io import read_adapter

    folder = Path(arguments.adapter)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; push takes an adapter folder", "push.no-folder")
    read_adapter(folder)
    if (folder / CARD_FILE).is_file():
        check_card(folder / CARD_FILE)
    elif not arguments.quiet:
        print(
            f"warning: {folder} has no model card ({CARD_FILE}), which sam2-mope evaluate writes into a run's adapter"
        )
    url = push_folder(folder, arguments.name, arguments.private)
    print(f"pushed: {url}\nread it with --checkpoint {arguments.name}, or load_adapter(model, {arguments.name!r})")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope push experiments/adapter user/name --private")
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter folder, such as experiments/adapter")
    parser.add_argument("name", metavar="USER/NAME", help="the repository; it is made where it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    return parser
