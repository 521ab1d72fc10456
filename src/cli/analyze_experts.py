"""How the experts of a trained MoPE adapter are used, which of them can be pruned, and what pruning costs.

Objects of every domain are tracked with the adapters on, and the routers' selections recorded: on the run's own data
(the test split, else the valid one), the bundled base's source domain, all of evaluation.domains, and each --domain.
Tables are printed; use.json and heat maps are written into the output folder. docs/experts.md says what the numbers
mean. An adapter with expert groups is run with --group, or each domain with the group of its name.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import UserError
from . import command

if TYPE_CHECKING:
    from ..config import Config


def main(arguments: argparse.Namespace) -> None:
    """Run the analysis and print its tables."""
    for option, value in (("--dead", arguments.dead), ("--tolerance", arguments.tolerance)):
        if not 0 <= value <= 1:
            raise UserError(f"{option} {value:g}: must be within 0 and 1", code="experts.share-out-of-range")
    config, output = read_config(arguments), Path(arguments.output)

    from ..evaluation.expert_analysis import AnalysisOptions, analyze

    options = AnalysisOptions(
        arguments.prompt or config.evaluation.prompt,
        arguments.group,
        arguments.prune,
        arguments.dead,
        arguments.tolerance,
    )
    text = analyze(config, Path(arguments.adapter), output, Path(arguments.logdir or output / "logs"), options)
    print(f"\n{text}\n")


def read_config(arguments: argparse.Namespace) -> Config:
    """Return the run's config, with the domains and the number of clips of the command line."""
    from ..config import load_config, parse_config

    clips = [] if arguments.clips is None else [f"evaluation.max_images={arguments.clips}"]
    config = load_config(arguments.config, arguments.overrides + clips)
    raw = config.model_dump(mode="json")
    for text in arguments.domain:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise UserError(
                f"--domain {text}: write it as NAME=FOLDER, such as polyps=data/polyps", code="experts.domain-option"
            )
        raw["evaluation"]["domains"].append({"name": name, "img_folder": folder})
    return parse_config(raw, f"{arguments.config} with --domain")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(
        (__doc__ or "").splitlines()[0],
        "sam2-mope analyze-experts --adapter experiments/adapter --config experiments/config.yaml "
        "--output experiments/experts",
    )
    command.add_config_arguments(parser)
    command.add_skip_bad(parser)
    parser.add_argument("--adapter", required=True, metavar="PATH", help="a run's adapter folder or checkpoint")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to write what was found")
    parser.add_argument(
        "--domain", action="append", default=[], metavar="N=FOLDER",
        help="a further data set N (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--group", metavar="NAME", help="the expert group to run on all domains")
    parser.add_argument("--clips", type=int, metavar="N", help="clips a domain (default: as the config)")
    parser.add_argument(
        "--prompt",
        choices=["mask", "box", "point"],
        metavar="KIND",
        help="mask, box, point (default: evaluation.prompt)",
    )
    parser.add_argument(
        "--prune", type=int, nargs="*", metavar="K",
        help="experts to keep, each number measured (default: a few; no number: none)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=0.005, metavar="X",
        help="J&F that pruning may cost (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dead", type=float, default=0.1, metavar="X",
        help="dead is below this much of the even share (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--logdir", metavar="FOLDER", help="for TensorBoard (default: logs in --output)")
    return parser
