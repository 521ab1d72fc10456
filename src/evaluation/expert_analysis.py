"""Analysis of a trained adapter's experts: score every domain of a run with them, and write what was measured.

Files in the output folder:

  use.json                 per domain and layer each expert's share, the router's entropy, shares on every frame; dead
                           experts, overlap between domains, what pruning costs
  use_DOMAIN.png           layers × experts
  frames_DOMAIN.png        experts × frames, a map per layer
  overlap.png              domains × domains; overlap_layers.png: layers × pairs of domains
  logs/                    the same pictures, and histograms, for TensorBoard
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ..config import Config, LoraConfig, Prompt
from ..core.device import pick_device
from ..core.errors import UserError
from ..core.files import write_text
from ..lora.adapter import list_groups
from ..lora.expert_groups import DEFAULT_ADAPTER, adopt_unnamed
from ..lora.pruning import experts_used
from ..models.checkpoint import load_trained
from ..models.spec import model_spec
from ..tasks.base import get_task
from .domains import Domain, DomainOptions, retention_domains, target_domain
from .expert_report import as_json, heat_maps_of, summary, write_histogram
from .expert_utilization import (
    DomainUtilization,
    GroupUtilization,
    dead_experts,
    mean_utilization,
    measure_pruning,
    measure_utilization,
)
from .figures import save_figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysisOptions:
    """What an analysis does.

    Attributes:
        prompt: how objects are prompted.
        group: name of the expert group to run on all domains; None: each domain is run with the group of its name.
        keeps: numbers of experts to keep, each measured; None: a few.
        dead_below: an expert is dead with less than this share of the even share on every domain.
        tolerance: J&F that pruning may cost.
    """

    prompt: Prompt
    group: str | None = None
    keeps: Sequence[int] | None = None
    dead_below: float = 0.1
    tolerance: float = 0.005


def analyze(config: Config, adapter: Path, output: Path, logs: Path, options: AnalysisOptions) -> str:
    """Measure how an adapter's experts are used, and write the files; return the tables for the screen.

    Args:
        config: the run.
        adapter: the run's adapter folder or checkpoint.
        output: the folder to write into.
        logs: the folder for TensorBoard.
        options: what to measure.

    Raises:
        UserError: the adapter does not fit or has no experts, the data are missing or damaged, or the model tracks
            nothing.
    """
    task = get_task(model_spec(config.model.name).task)(config)
    if not task.takes_prompts:
        raise UserError(
            f"model.name {config.model.name} finds phrases, and experts are analysed on tracked objects only",
            code="analysis.not-tracking",
        )
    model, groups = load_experts(config, adapter)
    domains = read_domains(config)
    group_of = {domain.name: choose_group(groups, options.group, domain.name) for domain in domains}
    used = {name: groups[name] for name in dict.fromkeys(group_of.values())}
    check_keeps(options.keeps, used)

    score = partial(task.score_domain, prompt=options.prompt)
    utilizations = [measure_utilization(model, group_of[domain.name], domain, score) for domain in domains]
    reports = {}
    for name, lora in used.items():
        own = [utilization for utilization in utilizations if utilization.group == name]
        keeps = experts_to_keep(lora, own, options.keeps, options.dead_below)
        pruning = measure_pruning(model, lora, own, domains, score, keeps) if keeps else None
        reports[name] = GroupUtilization(lora, own, dead_experts(own, options.dead_below), pruning)

    about = {
        "about": task.describe_scores(options.prompt),
        "adapter": str(adapter),
        "prompt": options.prompt,
        "dead_below": options.dead_below,
        "tolerance": options.tolerance,
    }
    write_text(output / "use.json", json.dumps(as_json(reports, about), indent=1) + "\n")
    pictures = []
    for name, figure in heat_maps_of(utilizations).items():
        pictures.append(output / f"{name}.png")
        save_figure(figure, pictures[-1])
    write_events(logs, utilizations, pictures)
    logger.info(f"written to {output / 'use.json'}, with {len(pictures)} heat maps; tensorboard --logdir {logs}")
    return f"{about['about']}\n\n{summary(reports, options.dead_below, options.tolerance)}"


def load_experts(config: Config, trained: Path) -> tuple[nn.Module, dict[str, LoraConfig]]:
    """Return the adapted model on the run's device, and its groups' configs; adapters in no group become one.

    Raises:
        UserError: they are of another base, or have no experts.
    """
    torch.manual_seed(config.training.seed)  # the random weights of a run without a checkpoint
    model = model_spec(config.model.name).load().build_model(config.model)
    loaded = load_trained(model, trained)
    groups = {DEFAULT_ADAPTER: loaded} if isinstance(loaded, LoraConfig) else dict(loaded)
    methods = {group.method for group in groups.values()}
    if "mope" not in methods:
        raise UserError(
            f"{trained}: method {', '.join(methods)} has no experts to analyse, only method mope has",
            code="experts.no-experts",
        )
    if not list_groups(model):
        adopt_unnamed(model, DEFAULT_ADAPTER)
    return model.to(pick_device(config.training.device)), groups


def choose_group(groups: Mapping[str, LoraConfig], wanted: str | None, domain: str) -> str:
    """Return the group that a domain is run with.

    Raises:
        UserError: there is no such group, it has no experts, or none was named and none has the domain's name.
    """
    known = ", ".join(groups)
    if wanted is not None and wanted not in groups:
        raise UserError(
            f"--group {wanted}: no such expert group; the adapter holds {known}", code="experts.unknown-group"
        )
    name = wanted or (domain if domain in groups else next(iter(groups)))
    if wanted is None and name != domain and len(groups) > 1:
        raise UserError(
            f"domain '{domain}': no expert group has its name; name one with --group: {known}",
            code="experts.no-group-for-domain",
        )
    if groups[name].method != "mope":
        raise UserError(
            f"group '{name}' is of method {groups[name].method}, which has no experts to analyse",
            code="experts.no-experts",
        )
    return name


def read_domains(config: Config) -> list[Domain]:
    """Return the domains to run: what was learned (test split, else valid), and what must not be forgotten."""
    options = DomainOptions.from_config(config)
    learned = [
        target_domain(data, "test" if data.split("test") is not None else "valid", options)
        for data in config.dataset.domains
    ]
    return [*learned, *retention_domains(options)]


def experts_to_keep(
    config: LoraConfig, utilizations: Sequence[DomainUtilization], wanted: Sequence[int] | None, dead_below: float
) -> Sequence[int]:
    """Return numbers of experts to keep, each to be measured: the wanted ones, or a few that are worth a try.

    These are three quarters, half and a quarter of the experts. And so many that no layer loses an expert with more
    than ``dead_below`` of the even share.
    """
    if wanted is not None:
        return wanted
    experts = config.experts
    shares = {layer: share_E[:experts] for layer, share_E in mean_utilization(utilizations).items()}
    alive = experts_used(shares, dead_below / (experts + config.router.null_expert))
    return [alive, *(math.ceil(experts * part) for part in (0.75, 0.5, 0.25))]


def check_keeps(keeps: Sequence[int] | None, groups: Mapping[str, LoraConfig]) -> None:
    """Raise UserError unless each group has as many experts as are to be kept."""
    for name, config in groups.items():
        if wrong := [keep for keep in keeps or [] if not 1 <= keep <= config.experts]:
            of_group = "" if name == DEFAULT_ADAPTER else f" of group '{name}'"
            raise UserError(
                f"--prune {wrong[0]}: must be within 1 and {config.experts}, the experts per layer{of_group}",
                code="experts.keep-out-of-range",
            )


def write_events(folder: Path, utilizations: Sequence[DomainUtilization], pictures: Sequence[Path]) -> None:
    """Write histograms per domain and layer, and the heat maps, for TensorBoard."""
    writer = SummaryWriter(str(folder))
    for utilization in utilizations:
        for layer, of_layer in utilization.layers.items():
            if of_layer.decisions_T.any():
                write_histogram(writer, f"router/utilization/{utilization.domain}/{layer}", of_layer.share_E, 0)
    for path in pictures:
        with Image.open(path) as picture:
            writer.add_image(f"router/{path.stem}", np.asarray(picture.convert("RGB")), 0, dataformats="HWC")
    writer.close()
