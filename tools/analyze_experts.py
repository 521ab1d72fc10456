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
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sam2.modeling.sam2_base import SAM2Base
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(Path(__file__).parents[1]))

from src import cli
from src.config import Config, LoraConfig, Prompt, load_config, parse_config
from src.data.formats import place_of
from src.errors import UserError
from src.evaluation.expert_use import (
    NULL,
    DomainUse,
    cost_of_pruning,
    dead_experts,
    fewest_experts,
    mean_use,
    nan_mean,
    overlap,
    record_use,
)
from src.evaluation.figures import Table, heat_map, heat_maps, save_figure
from src.evaluation.forgetting import Domain, DomainResult, describe, kept_domains, target_domain
from src.evaluation.intervals import bootstrap, change, intervals
from src.evaluation.tables import aligned
from src.files import write_text
from src.lora.adapter import list_groups
from src.lora.expert_groups import UNNAMED, best_experts, name_adapters
from src.model.build import build_model, pick_device
from src.model.checkpoint import load_trained
from src.train.logger import write_expert_use

SCORE = "J&F"
MOST_USED = 3  # experts named per layer and domain on the screen


@dataclass(frozen=True)
class Pruning:
    """What fewer experts of a group cost: experts kept per layer → domain → scores; all experts come first."""

    experts: int
    results: dict[int, dict[str, DomainResult]]
    recommended: int

    def change(self, keep: int, domain: str) -> float:
        return self.results[keep][domain].scores[SCORE] - self.results[self.experts][domain].scores[SCORE]

    def interval(self, keep: int, domain: str) -> tuple[float, float] | None:
        """Of the change, 95 %, by the bootstrap over videos; None with fewer than two."""
        full, fewer = (
            bootstrap([list(video.scores.values()) for video in self.results[n][domain].videos])
            for n in (self.experts, keep)
        )
        ends = intervals(change(full, fewer))
        return None if ends is None else ends[SCORE]


@dataclass(frozen=True)
class GroupReport:
    """What is said about one group's experts: uses of the domains that it was run on, and what follows from them."""

    config: LoraConfig
    uses: list[DomainUse]
    dead: dict[str, list[int]]
    pruning: Pruning | None


def load_experts(config: Config, trained: Path) -> tuple[SAM2Base, dict[str, LoraConfig]]:
    """The adapted model on the run's device, and its groups' configs; adapters in no group are one, called default.

    Raises:
        UserError: it is of another base, or no adapter in it has experts.
    """
    torch.manual_seed(config.training.seed)  # the random weights of a run without a checkpoint
    model = build_model(config.model)
    loaded = load_trained(model, trained)
    groups = {UNNAMED: loaded} if isinstance(loaded, LoraConfig) else dict(loaded)
    methods = {group.method for group in groups.values()}
    if "mope" not in methods:
        raise UserError(f"{trained}: method {', '.join(methods)} has no experts to analyse, only method mope has")
    if not list_groups(model):
        name_adapters(model, UNNAMED)
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
    learned = [
        target_domain(config, data, "test" if place_of(data, "test") is not None else "valid")
        for data in config.dataset.sets
    ]
    return [*learned, *kept_domains(config)]


def measure_pruning(
    model: SAM2Base,
    name: str,
    config: LoraConfig,
    uses: list[DomainUse],
    domains: list[Domain],
    prompt: Prompt,
    keeps: list[int] | None,
    tolerance: float,
) -> Pruning | None:
    """Score the group's domains with its most used experts only; None if ``keeps`` is empty.

    ``keeps`` None takes three quarters, half and a quarter of the experts.
    """
    experts = config.experts
    if keeps is None:
        keeps = [math.ceil(experts * share) for share in (0.75, 0.5, 0.25)]
    fewer = sorted({keep for keep in keeps if keep != experts}, reverse=True)
    if not fewer:
        return None
    results = {experts: {use.domain: use.result for use in uses}}
    run = [domain for domain in domains if domain.name in results[experts]]
    scores = mean_use(uses)
    for keep in fewer:
        results[keep] = cost_of_pruning(model, name, config, keep, scores, run, prompt)
    measured = Pruning(experts, results, experts)
    changes = {keep: [measured.change(keep, domain.name) for domain in run] for keep in results}
    return Pruning(experts, results, fewest_experts(changes, tolerance) or experts)


def check_keeps(keeps: list[int] | None, groups: dict[str, LoraConfig]) -> None:
    for name, config in groups.items():
        if wrong := [keep for keep in keeps or [] if not 1 <= keep <= config.experts]:
            of = "" if name == UNNAMED else f" of group '{name}'"
            raise UserError(f"--prune {wrong[0]}: must be within 1 and {config.experts}, the experts per layer{of}")


# use.json


def as_json(reports: dict[str, GroupReport], about: dict[str, Any]) -> dict[str, Any]:
    uses = [use for report in reports.values() for use in report.uses]
    return {
        **about,
        "domains": {use.domain: domain_json(use) for use in uses},
        "groups": {name: group_json(report) for name, report in reports.items()},
        "overlap": {
            "mean": {a.domain: {b.domain: number(nan_mean(list(overlap(a, b).values()))) for b in uses} for a in uses},
            "layers": {
                layer: {
                    a.domain: {
                        b.domain: number(shared) for b in uses if (shared := overlap(a, b).get(layer)) is not None
                    }
                    for a in uses
                }
                for layer in dict.fromkeys(layer for use in uses for layer in use.layers)
            },
        },
    }


def domain_json(use: DomainUse) -> dict[str, Any]:
    return {
        "group": use.group,
        "clips": len(use.result.videos),
        "objects": use.result.objects,
        "scores": use.result.scores,
        "projections": {
            name: {of: number(part.mean(of)) for of in ("entropy", "entropy_share", "null_share")}
            for name, part in use.by_projection().items()
        },
        "layers": {
            layer: {
                "experts": of.names,
                "decisions": int(of.decisions_T.sum()),
                "use": numbers(of.use_E),
                "entropy": number(of.entropy),
                "entropy_share": number(of.entropy_share),
                "frames": [
                    None if not decisions else {"decisions": int(decisions), "use": numbers(use_E)}
                    for decisions, use_E in zip(of.decisions_T, of.use_TE, strict=True)
                ],
            }
            for layer, of in use.layers.items()
        },
    }


def group_json(report: GroupReport) -> dict[str, Any]:
    scores = mean_use(report.uses)
    described: dict[str, Any] = {
        "domains": [use.domain for use in report.uses],
        "dead": report.dead,
        "mean_use": {layer: numbers(use_E.numpy()) for layer, use_E in scores.items()},
    }
    if report.pruning is not None:
        measured, experts = report.pruning, report.config.experts
        described["pruning"] = {
            "recommended": measured.recommended,
            "steps": [
                {
                    "keep": keep,
                    "kept": {layer: best_experts(use_E[:experts], keep).tolist() for layer, use_E in scores.items()},
                    "domains": {
                        domain: {
                            **{score: result.scores[score] for score in ("J", "F", SCORE)},
                            "change": measured.change(keep, domain),
                            "interval": measured.interval(keep, domain),
                        }
                        for domain, result in of.items()
                    },
                }
                for keep, of in measured.results.items()
            ],
        }
    return described


def number(value: float) -> float | None:
    """Rounded; None for what is not known."""
    return None if math.isnan(value) else round(value, 6)


def numbers(values_E: np.ndarray) -> list[float | None]:
    return [number(value) for value in values_E.tolist()]


# pictures


def draw(uses: list[DomainUse]) -> dict[str, Figure]:
    """File name without its ending → figure."""
    figures = {}
    for use in uses:
        figures[f"use_{use.domain}"] = draw_use(use)
        figures[f"frames_{use.domain}"] = draw_frames(use)
    pairs = [(a, b) for a, b in combinations(uses, 2) if a.group == b.group]
    if pairs:
        figures["overlap"] = draw_overlap(uses)
        figures["overlap_layers"] = draw_overlap_by_layer(pairs)
    return figures


def draw_use(use: DomainUse) -> Figure:
    columns = expert_names(use)
    inside, labels = short_names(list(use.layers))
    rows = [pad(dict(zip(of.names, of.use_E, strict=True)), columns) for of in use.layers.values()]
    title = f"{use.domain}: use of experts, layers of {inside}"
    return heat_map(
        np.array(rows), labels, columns, title, "share of choices", (0, np.nanmax([0.01, np.nanmax(rows)])),
        row_title="layer", column_title="expert",
    )  # fmt: skip


def draw_frames(use: DomainUse) -> Figure:
    inside, labels = short_names(list(use.layers))
    tables = {
        label: Table(of.use_TE.T, of.names, [str(t) for t in range(len(of.use_TE))])
        for label, of in zip(labels, use.layers.values(), strict=True)
    }
    title = f"{use.domain}: use of experts over frames, layers of {inside}; grey: nothing was decided"
    return heat_maps(tables, title, "share of choices", row_title="expert", column_title="frame of the clip")


def draw_overlap(uses: list[DomainUse]) -> Figure:
    names = [use.domain for use in uses]
    values = np.array([[nan_mean(list(overlap(a, b).values())) for b in uses] for a in uses])
    title = "overlap of expert use, mean of layers"
    return heat_map(values, names, names, title, "1 − total variation", (0, 1), decimals=2)


def draw_overlap_by_layer(pairs: list[tuple[DomainUse, DomainUse]]) -> Figure:
    by_pair = {f"{a.domain} – {b.domain}": overlap(a, b) for a, b in pairs}
    layers = list(dict.fromkeys(layer for of in by_pair.values() for layer in of))
    inside, labels = short_names(layers)
    values = np.array([[of.get(layer, math.nan) for of in by_pair.values()] for layer in layers])
    title = f"overlap of expert use, layers of {inside}"
    return heat_map(values, labels, list(by_pair), title, "1 − total variation", (0, 1), decimals=2, row_title="layer")


def expert_names(use: DomainUse) -> list[str]:
    """All that any layer chooses from, the null expert last."""
    names = {name for of in use.layers.values() for name in of.names}
    return [*sorted(names - {NULL}, key=int), *(names & {NULL})]


def pad(values: dict[str, float], columns: list[str]) -> list[float]:
    return [values.get(column, math.nan) for column in columns]


def short_names(layers: list[str]) -> tuple[str, list[str]]:
    """The dotted module that all layers lie in, and their names inside it."""
    parts = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ".".join(parts[0][:shared]) or "the model", [".".join(p[shared:]) for p in parts]


def write_board(folder: Path, uses: list[DomainUse], figures: dict[str, Figure]) -> None:
    board = SummaryWriter(str(folder))
    for use in uses:
        shares = {layer: torch.from_numpy(of.use_E) for layer, of in use.layers.items() if of.decisions_T.any()}
        write_expert_use(board, f"expert_use/{use.domain}", shares, 0)
    for name, figure in figures.items():
        board.add_figure(f"experts/{name}", figure, 0)
    board.close()


# the screen


def summary(reports: dict[str, GroupReport], below: float, tolerance: float) -> str:
    uses = [use for report in reports.values() for use in report.uses]
    parts = [domain_table(uses), projection_table(uses)]
    if len(uses) > 1:
        parts.append(f"Overlap of use between domains (1: the same, 0: nothing shared):\n\n{overlap_table(uses)}")
    for name, report in reports.items():
        of = "" if list(reports) == [UNNAMED] else f" of group {name}"
        parts.append(f"Experts used most{of}, by their share of all choices:\n\n{most_used_table(report.uses)}")
        parts.append(dead_lines(report, below, of))
        if report.pruning is not None:
            parts.append(
                f"What keeping fewer experts{of} costs, the most used ones kept:\n\n{prune_table(report.pruning)}"
            )
            parts.append(recommendation(report.pruning, tolerance, of))
    return "\n\n".join(parts)


def domain_table(uses: list[DomainUse]) -> str:
    rows = [
        [
            use.domain, use.group, str(len(use.result.videos)), str(use.result.objects),
            f"{use.result.scores[SCORE]:.3f}", cell(use.mean("entropy")), cell(use.mean("entropy_share")),
            cell(use.mean("null_share")),
        ]
        for use in uses
    ]  # fmt: skip
    header = ["domain", "group", "clips", "objects", SCORE, "gate entropy, nats", "of the most", "null"]
    return aligned(header, rows, {0, 1}, markdown=False)


def projection_table(uses: list[DomainUse]) -> str:
    rows = [
        [
            use.domain if first else "",
            name,
            str(len(of.layers)),
            cell(of.mean("entropy_share")),
            cell(of.mean("null_share")),
        ]
        for use in uses
        for first, (name, of) in zip([True] + [False] * len(use.layers), use.by_projection().items(), strict=False)
    ]
    return aligned(["domain", "projection", "layers", "entropy, of the most", "null"], rows, {0, 1}, markdown=False)


def overlap_table(uses: list[DomainUse]) -> str:
    rows = [[a.domain, *(cell(nan_mean(list(overlap(a, b).values()))) for b in uses)] for a in uses]
    return aligned(["", *(use.domain for use in uses)], rows, {0}, markdown=False)


def most_used_table(uses: list[DomainUse]) -> str:
    def best(use: DomainUse, layer: str) -> str:
        of = use.layers[layer]
        if not of.decisions_T.any():
            return "-"
        experts = [(share, name) for name, share in zip(of.names, of.use_E, strict=True) if name != NULL]
        ranked = sorted(experts, key=lambda pair: (-pair[0], int(pair[1])))[:MOST_USED]
        return "  ".join(f"{name} ({share:.0%})" for share, name in ranked)

    layers = list(uses[0].layers)
    inside, labels = short_names(layers)
    rows = [[label, *(best(use, layer) for use in uses)] for label, layer in zip(labels, layers, strict=True)]
    return aligned([f"in {inside}", *(use.domain for use in uses)], rows, set(range(len(uses) + 1)), markdown=False)


def dead_lines(report: GroupReport, below: float, of: str) -> str:
    meaning = f"a share below {below:g} of the even one on every domain"
    if not report.dead:
        return f"dead experts{of} ({meaning}): none"
    count = sum(map(len, report.dead.values()))
    inside, labels = short_names(list(report.dead))
    named = zip(labels, report.dead.values(), strict=True)
    lines = [f"  {label}: {', '.join(map(str, experts))}" for label, experts in named]
    return "\n".join([f"dead experts{of} ({meaning}): {count}, in {inside}", *lines])


def prune_table(pruning: Pruning) -> str:
    rows = []
    for keep, results in pruning.results.items():
        for first, (domain, result) in zip([True] + [False] * len(results), results.items(), strict=False):
            row = [f"{keep} of {pruning.experts}" if first else "", domain, f"{result.scores[SCORE]:.3f}"]
            if keep == pruning.experts:
                rows.append([*row, "", ""])
                continue
            ends = pruning.interval(keep, domain)
            between = "-" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}"
            rows.append([*row, f"{pruning.change(keep, domain):+.3f}", between])
    return aligned(["experts", "domain", SCORE, "change", "95 %"], rows, {0, 1}, markdown=False)


def recommendation(pruning: Pruning, tolerance: float, of: str) -> str:
    if pruning.recommended == pruning.experts:
        return (
            f"recommended{of}: keep all {pruning.experts}; every smaller number loses more than {tolerance:g} {SCORE}"
        )
    return (
        f"recommended{of}: keep the {pruning.recommended} most used of {pruning.experts} experts in every layer; no "
        f"domain loses more than {tolerance:g} {SCORE} (which: groups, pruning, kept in use.json)"
    )


def cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


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

    uses = [record_use(model, group_of[domain.name], domain, prompt) for domain in domains]
    reports = {}
    for name, lora in used.items():
        own = [use for use in uses if use.group == name]
        dead = dead_experts(own, arguments.dead)
        pruning = measure_pruning(model, name, lora, own, domains, prompt, arguments.prune, arguments.tolerance)
        reports[name] = GroupReport(lora, own, dead, pruning)

    figures = draw(uses)
    for name, figure in figures.items():
        save_figure(figure, output / f"{name}.png")
    logs = Path(arguments.logdir or output / "logs")
    write_board(logs, uses, figures)
    about = {
        "about": describe(config, prompt),
        "adapter": str(arguments.adapter),
        "prompt": prompt,
        "dead_below": arguments.dead,
        "tolerance": arguments.tolerance,
    }
    write_text(output / "use.json", json.dumps(as_json(reports, about), indent=1) + "\n")
    print(f"{describe(config, prompt)}\n\n{summary(reports, arguments.dead, arguments.tolerance)}\n")
    print(f"written to {output / 'use.json'}, with {len(figures)} heat maps beside it; tensorboard --logdir {logs}")


if __name__ == "__main__":
    parser = cli.parser(
        __doc__,
        "python tools/analyze_experts.py --adapter experiments/adapter --config experiments/config.yaml "
        "--output experiments/experts --prune 8 6 4",
    )
    cli.add_config_arguments(parser)
    cli.add_skip_bad(parser)
    parser.add_argument("--adapter", required=True, metavar="PATH", help="a run's adapter folder or checkpoint")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to write what was found")
    parser.add_argument(
        "--domain", action="append", default=[], metavar="NAME=FOLDER",
        help="a further data set, as under evaluation.domains (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--group", metavar="NAME", help="the expert group to run on all domains")
    parser.add_argument("--clips", type=int, metavar="N", help="clips per domain (default: evaluation.max_images)")
    parser.add_argument("--prompt", choices=["mask", "box", "point"], help="default: evaluation.prompt")
    parser.add_argument(
        "--prune", type=int, nargs="*", metavar="K",
        help="experts to keep, each number measured (default: 3/4, 1/2 and 1/4 of them; without a number: none)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, default=0.005, metavar="X",
        help=f"{SCORE} that pruning may cost on any domain (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dead", type=float, default=0.1, metavar="X",
        help="an expert is dead below this much of the even share (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--logdir", metavar="FOLDER", help="for TensorBoard (default: logs in the output folder)")
    cli.run(main, parser)
