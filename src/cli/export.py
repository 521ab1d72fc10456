"""Write what a run trained in a form that others read: SAM 2's checkpoint, transformers', PEFT's, an adapter folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.errors import UserError
from . import command


def main(arguments: argparse.Namespace) -> None:
    """Write the export and print where it is."""
    from ..config import load_config, parse_config
    from ..lora.adapter_io import read_adapter_config
    from ..models.checkpoint import read_checkpoint
    from ..models.export import export

    if arguments.config is None and arguments.adapter is None:
        raise UserError("name a run with --config YAML, or what it wrote with --adapter", "export.no-run")
    if arguments.config is not None:
        config = load_config(arguments.config)
    elif Path(arguments.adapter).is_dir():
        about = read_adapter_config(arguments.adapter).extra
        if arguments.base is None:
            raise UserError(
                f"{arguments.adapter}: name the base weights it was trained on with --base, or --config",
                "export.no-base",
            )
        model = {"name": about.get("model_name"), "image_size": about.get("image_size")}
        config = parse_config({"model": model}, str(arguments.adapter))
    else:
        config = read_checkpoint(arguments.adapter).config
    if arguments.base is not None:
        config.model.checkpoint = arguments.base
    trained = Path(arguments.adapter or Path(config.output_dir) / "checkpoints" / "best.pt")
    print(f"written: {export(config, trained, arguments.format, Path(arguments.output))}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(__doc__, "sam2-mope export --config experiments/lora/config.yaml --output adapted.pt")
    parser.add_argument("--config", metavar="YAML", help="a run's YAML, such as the config.yaml in its output folder")
    parser.add_argument(
        "--adapter", metavar="PATH", help="a run's checkpoint or adapter folder (default: the best.pt of --config)"
    )
    parser.add_argument("--base", metavar="PT", help="base weights (default: those of the run)")
    parser.add_argument("--format", choices=["auto", "official", "transformers", "adapter", "peft"], default="auto")
    parser.add_argument("--output", required=True, metavar="PATH", help="file (official) or folder (all others)")
    return parser
