"""How the experts of a trained MoPE adapter are used, which of them can be pruned, and what pruning costs.

Objects of every domain are tracked with the adapters on, and the gates' choices recorded: on the run's own data (the
test split, else the valid one), the bundled base's source domain, all of evaluation.domains, and each --domain. Written
into the output folder:

  use.json                 per domain and layer each expert's share, the gate's entropy, use on every frame; dead
                           experts, overlap between domains, what pruning costs
  use_DOMAIN.png           layers × experts
  frames_DOMAIN.png        experts × frames, a map per layer
  overlap.png              domains × domains; overlap_layers.png: layers × pairs of domains
  logs/                    the same pictures, and histograms, for TensorBoard

docs/experts.md says what the numbers mean. An adapter with expert groups is run with --group, or each domain with the
group of its name.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from torch.utils.tensorboard import SummaryWriter

from ..config import Config, LoraConfig, image_size_of, load_config, parse_config
from ..core.device import pick_device
from ..core.errors import UserError
from ..core.files import write_text
from ..evaluation.domains import Domain, DomainOptions, retention_domains, target_domain
from ..evaluation.expert_report import as_json, heat_maps_of, summary
from ..evaluation.expert_use import (
    SCORE,
    DomainUse,
    GroupUse,
    dead_experts,
    mean_use,
    measure_pruning,
    measure_utilization,
)
from ..evaluation.figures import save_figure
from ..lora.adapter import list_groups
from ..lora.expert_groups import DEFAULT_ADAPTER, adopt_unnamed
from ..lora.pruning import experts_used
from ..models.checkpoint import load_trained
from ..models.sam2.build import build_model
from ..tasks.tracking.evaluation import describe
from ..train.board import write_expert_use
from . import command


def load_experts(config: Config, trained: Path) -> tuple[SAM2Base, dict[str, LoraConfig]]:
    """The adapted model on the run's device, and its groups' configs; adapters in no group are one, called default.

    Raises:
        UserError: it is of another base, or no adapter in it has experts.
    """
    torch.manual_seed(config.training.seed)  # the random weights of a run without a checkpoint
    model = build_model(config.model)
    loaded = load_trained(model, trained)
    groups = {DEFAULT_ADAPTER: loaded} if isinstance(loaded, LoraConfig) else dict(loaded)
    methods = {group.method for group in groups.values()}
    if "mope" not in methods:
        raise UserError(f"{trained}: method {', '.join(methods)} has no experts to analyse, only method mope has")
    if not list_groups(model):
        adopt_unnamed(model, DEFAULT_ADAPTER)
    return model.to(pick_device(config.training.device)), groups


def choose_group(groups: dict[str, LoraConfig], wanted: str | None, domain: str) -> str:
    """The group that a domain is run with.

    Raises:
        UserError: there is no such group, none was named and none has the domain's name, or it has no experts.
    """
    known = ", ".join(groups)
    if wanted is not None and wanted not in groups:
        raise UserError(f"--group {wanted}: no such expert group; the adapter holds {known}")
    name = wanted or (domain if domain in groups else next(iter(groups)))
    if wanted is None and name != domain and len(groups) > 1:
        raise UserError(f"domain '{domain}': no expert group has its name; name one with --group: {known}")
    if groups[name].method != "mope":
        raise UserError(f"group '{name}' is of method {groups[name].method}, which has no experts to analyse")
    return name


def read_domains(config: Config) -> list[Domain]:
    """The domains to run: what was learned (test split, else valid), and what must not be forgotten."""
    options = DomainOptions.from_config(config)
    learned = [
        target_domain(data, "test" if data.split("test") is not None else "valid", options)
        for data in config.dataset.domains
    ]
    return [*learned, *retention_domains(options)]


def keeps_of(config: LoraConfig, uses: list[DomainUse], wanted: list[int] | None, dead_below: float) -> list[int]:
    """How many experts to keep, each to be measured: as wanted, or a few that are worth a try.

    These are three quarters, half and a quarter of the experts, and so many that no layer loses one with more than
    ``dead_below`` of the even share.
    """
    if wanted is not None:
        return wanted
    experts = config.experts
    shares = {layer: use_E[:experts] for layer, use_E in mean_use(uses).items()}
    alive = experts_used(shares, dead_below / (experts + config.router.null_expert))
    return [alive, *(math.ceil(experts * part) for part in (0.75, 0.5, 0.25))]


def check_keeps(keeps: list[int] | None, groups: dict[str, LoraConfig]) -> None:
    """Raise UserError unless each group has as many experts as are to be kept."""
    for name, config in groups.items():
        if wrong := [keep for keep in keeps or [] if not 1 <= keep <= config.experts]:
            of = "" if name == DEFAULT_ADAPTER else f" of group '{name}'"
            raise UserError(f"--prune {wrong[0]}: must be within 1 and {config.experts}, the experts per layer{of}")


def write_board(folder: Path, uses: list[DomainUse], pictures: list[Path]) -> None:
    """Histograms of use per domain and layer, and the heat maps, for TensorBoard."""
    board = SummaryWriter(str(folder))
    for use in uses:
        shares = {layer: torch.from_numpy(of.use_E) for layer, of in use.layers.items() if of.decisions_T.any()}
        write_expert_use(board, f"router/use/{use.domain}", shares, 0)
    for path in pictures:
        with Image.open(path) as picture:
            board.add_image(f"router/{path.stem}", np.asarray(picture.convert("RGB")), 0, dataformats="HWC")
    board.close()


def read_config(arguments: argparse.Namespace) -> Config:
    """The run's config, with the domains and the number of clips that the command line asks for."""
    clips = [] if arguments.clips is None else [f"evaluation.max_images={arguments.clips}"]
    config = load_config(arguments.config, arguments.overrides + clips)
    raw = config.model_dump(mode="json")
    for text in arguments.domain:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise UserError(f"--domain {text}: write it as NAME=FOLDER, such as polyps=data/polyps")
        raw["evaluation"]["domains"].append({"name": name, "img_folder": folder})
    return parse_config(raw, f"{arguments.config} with --domain")


def main(arguments: argparse.Namespace) -> None:
    for option, value in (("--dead", arguments.dead), ("--tolerance", arguments.tolerance)):
        if not 0 <= value <= 1:
            raise UserError(f"{option} {value:g}: must be within 0 and 1")
    config, output = read_config(arguments), Path(arguments.output)
    prompt = arguments.prompt or config.evaluation.prompt
    model, groups = load_experts(config, Path(arguments.adapter))
    domains = read_domains(config)
    group_of = {domain.name: choose_group(groups, arguments.group, domain.name) for domain in domains}
    used = {name: groups[name] for name in dict.fromkeys(group_of.values())}
    check_keeps(arguments.prune, used)

    uses = [measure_utilization(model, group_of[domain.name], domain, prompt) for domain in domains]
    reports = {}
    for name, lora in used.items():
        own = [use for use in uses if use.group == name]
        keeps = keeps_of(lora, own, arguments.prune, arguments.dead)
        pruning = measure_pruning(model, lora, own, domains, prompt, keeps) if keeps else None
        reports[name] = GroupUse(lora, own, dead_experts(own, arguments.dead), pruning)

    about = {
        "about": describe(config.model.name, image_size_of(config.model), prompt, config.evaluation.protocol),
        "adapter": str(arguments.adapter),
        "prompt": prompt,
        "dead_below": arguments.dead,
        "tolerance": arguments.tolerance,
    }
    write_text(output / "use.json", json.dumps(as_json(reports, about), indent=1) + "\n")
    pictures, logs = [], Path(arguments.logdir or output / "logs")
    for name, figure in heat_maps_of(uses).items():
        pictures.append(output / f"{name}.png")
        save_figure(figure, pictures[-1])
    write_board(logs, uses, pictures)
    print(f"\n{about['about']}\n\n{summary(reports, arguments.dead, arguments.tolerance)}\n")
    print(f"written to {output / 'use.json'}, with {len(pictures)} heat maps beside it; tensorboard --logdir {logs}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = command.parser(
        __doc__.splitlines()[0],
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
        help=f"{SCORE} that pruning may cost (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dead", type=float, default=0.1, metavar="X",
        help="dead is below this much of the even share (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--logdir", metavar="FOLDER", help="for TensorBoard (default: logs in --output)")
    return parser
