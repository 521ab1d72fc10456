"""Reports on the utilization of experts: use.json, heat maps, and a summary for the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lora.expert_groups import DEFAULT_ADAPTER
from .expert_utilization import (
    NULL,
    SCORE,
    DomainUtilization,
    GroupUtilization,
    Pruning,
    mean_overlap,
    mean_utilization,
    overlap,
)
from .figures import Table, heat_map, heat_maps
from .text_table import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

MOST_USED = 3  # experts named per layer and domain on the screen
LAYER_NUMBERS = ("entropy", "entropy_share", "null_share")

Groups = Mapping[str, GroupUtilization]
"""Name → utilization; adapters in no group are one named :data:`~src.lora.expert_groups.DEFAULT_ADAPTER`."""


def as_json(groups: Groups, about: dict[str, Any]) -> dict[str, Any]:
    """Return all measurements as plain data, unknown ones as None; ``docs/experts.md`` describes it."""
    utilizations = _utilizations(groups)
    layers = dict.fromkeys(layer for utilization in utilizations for layer in utilization.layers)
    shared = {(a.domain, b.domain): overlap(a, b) for a in utilizations for b in utilizations}
    names = [utilization.domain for utilization in utilizations]
    return {
        **about,
        "domains": {utilization.domain: _domain_json(utilization) for utilization in utilizations},
        "overlap": {
            "mean": {a.domain: {b.domain: _number(mean_overlap(a, b)) for b in utilizations} for a in utilizations},
            "layers": {
                layer: {a: {b: _number(shared[a, b].get(layer, math.nan)) for b in names} for a in names}
                for layer in layers
            },
        },
        "groups": {name: _group_json(group, about["tolerance"]) for name, group in groups.items()},
    }


def _domain_json(utilization: DomainUtilization) -> dict[str, Any]:
    return {
        "group": utilization.group,
        "clips": utilization.result.size,
        "objects": utilization.result.parts,
        "scores": {name: _number(score) for name, score in utilization.result.scores.items()},
        "projections": {
            name: {number: _number(part.mean(number)) for number in LAYER_NUMBERS}
            for name, part in utilization.by_projection().items()
        },
        "layers": {
            layer: {
                "experts": of.names,
                "decisions": int(of.decisions_T.sum()),
                "utilization": _numbers(of.share_E),
                **{number: _number(getattr(of, number)) for number in LAYER_NUMBERS},
                "frames": [
                    {"decisions": int(decisions), "utilization": _numbers(share_E)} if decisions else None
                    for decisions, share_E in zip(of.decisions_T, of.share_TE, strict=True)
                ],
            }
            for layer, of in utilization.layers.items()
        },
    }


def _group_json(group: GroupUtilization, tolerance: float) -> dict[str, Any]:
    described: dict[str, Any] = {
        "domains": [utilization.domain for utilization in group.utilizations],
        "dead": group.dead,
        "mean_utilization": {
            layer: _numbers(share_E.numpy()) for layer, share_E in mean_utilization(group.utilizations).items()
        },
    }
    if (pruning := group.pruning) is not None:
        steps = [
            {"keep": keep, "domains": _costs_json(pruning, keep), "kept": pruning.kept.get(keep)}
            for keep in pruning.results
        ]
        described["pruning"] = {"recommended": pruning.recommended(tolerance), "steps": steps}
    return described


def _costs_json(pruning: Pruning, keep: int) -> dict[str, Any]:
    return {
        domain: {
            **{name: _number(result.scores[name]) for name in ("J", "F", SCORE)},
            "change": _number(pruning.change(keep, domain)),
            "interval": pruning.interval(keep, domain),
        }
        for domain, result in pruning.results[keep].items()
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _numbers(values_N: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values_N.tolist()]


def heat_maps_of(utilizations: Sequence[DomainUtilization]) -> dict[str, Figure]:
    """Return figures by file name without ending; overlap only where domains were run with the same experts."""
    figures = {}
    for utilization in utilizations:
        figures[f"use_{utilization.domain}"] = _utilization_map(utilization)
        figures[f"frames_{utilization.domain}"] = _frame_maps(utilization)
    pairs = [(a, b) for a, b in combinations(utilizations, 2) if a.group == b.group]
    if pairs:
        figures["overlap"] = _overlap_map(utilizations)
        figures["overlap_layers"] = _layer_overlap_map(pairs)
    return figures


def _utilization_map(utilization: DomainUtilization) -> Figure:
    """Draw layers × experts; a layer with fewer experts than others has empty cells."""
    names = {name for of in utilization.layers.values() for name in of.names}
    columns = [*sorted(names - {NULL}, key=int), *(names & {NULL})]
    inside, labels = short_names(list(utilization.layers))
    shares = [dict(zip(of.names, of.share_E.tolist(), strict=True)) for of in utilization.layers.values()]
    values_LE = np.array([[share.get(column, math.nan) for column in columns] for share in shares])
    title = f"{utilization.domain}: use of experts, layers in {inside}"
    return heat_map(values_LE, labels, columns, title, "share of choices", row_title="layer", column_title="expert")


def _frame_maps(utilization: DomainUtilization) -> Figure:
    """Draw experts × frames for each layer."""
    inside, labels = short_names(list(utilization.layers))
    tables = {
        label: Table(of.share_TE.T, of.names, [str(t) for t in range(len(of.share_TE))])
        for label, of in zip(labels, utilization.layers.values(), strict=True)
    }
    title = f"{utilization.domain}: use of experts over frames, layers in {inside}; grey: the layer does not run"
    return heat_maps(tables, title, "share of choices", row_title="expert", column_title="frame of the clip")


def _overlap_map(utilizations: Sequence[DomainUtilization]) -> Figure:
    names = [utilization.domain for utilization in utilizations]
    values_DD = np.array([[mean_overlap(a, b) for b in utilizations] for a in utilizations])
    return heat_map(values_DD, names, names, "overlap of use, mean over layers", "overlap", (0, 1), decimals=2)


def _layer_overlap_map(pairs: list[tuple[DomainUtilization, DomainUtilization]]) -> Figure:
    by_pair = {f"{a.domain} – {b.domain}": overlap(a, b) for a, b in pairs}
    layers = list(dict.fromkeys(layer for shared in by_pair.values() for layer in shared))
    inside, labels = short_names(layers)
    values_LP = np.array([[shared.get(layer, math.nan) for shared in by_pair.values()] for layer in layers])
    title = f"overlap of use, layers in {inside}"
    return heat_map(values_LP, labels, list(by_pair), title, "overlap", (0, 1), decimals=2, row_title="layer")


def summary(groups: Groups, dead_below: float, tolerance: float) -> str:
    """Return the tables for the screen, and a line on how many experts can be pruned."""
    utilizations = _utilizations(groups)
    parts = [_domain_table(utilizations), _projection_table(utilizations)]
    if len(utilizations) > 1:
        parts.append(
            f"Overlap of use between domains (1: the same, 0: nothing shared):\n\n{_overlap_table(utilizations)}"
        )
    for name, group in groups.items():
        of = "" if name == DEFAULT_ADAPTER else f" of group {name}"
        parts.append(f"Experts used most{of}, by their share of all choices:\n\n{_most_used_table(group.utilizations)}")
        parts.append(_dead_lines(group.dead, dead_below, of))
        if group.pruning is not None:
            parts.append(f"Keeping the most used experts{of} only:\n\n{_pruning_table(group.pruning)}")
            parts.append(_recommendation(group.pruning, tolerance, of))
    return "\n\n".join(parts)


def _domain_table(utilizations: Sequence[DomainUtilization]) -> str:
    rows = [
        [
            utilization.domain,
            utilization.group,
            str(utilization.result.size),
            str(utilization.result.parts),
            f"{utilization.result.scores[SCORE]:.3f}",
            *(_cell(utilization.mean(number)) for number in LAYER_NUMBERS),
        ]
        for utilization in utilizations
    ]
    header = ["domain", "group", "clips", "objects", SCORE, "router entropy", "of the most", "null"]
    return aligned(header, rows, {0, 1}, markdown=False)


def _projection_table(utilizations: Sequence[DomainUtilization]) -> str:
    rows = [
        [utilization.domain, projection, str(len(of.layers)), *(_cell(of.mean(number)) for number in LAYER_NUMBERS)]
        for utilization in utilizations
        for projection, of in utilization.by_projection().items()
    ]
    header = ["domain", "projection", "layers", "router entropy", "of the most", "null"]
    return aligned(header, _without_repeats(rows), {0, 1}, markdown=False)


def _overlap_table(utilizations: Sequence[DomainUtilization]) -> str:
    rows = [[a.domain, *(_cell(mean_overlap(a, b)) for b in utilizations)] for a in utilizations]
    return aligned(["", *(utilization.domain for utilization in utilizations)], rows, {0}, markdown=False)


def _most_used_table(utilizations: Sequence[DomainUtilization]) -> str:
    inside, labels = short_names(list(utilizations[0].layers))
    rows = [
        [label, *(_most_used(utilization, layer) for utilization in utilizations)]
        for label, layer in zip(labels, utilizations[0].layers, strict=True)
    ]  # fmt: skip
    return aligned(
        [f"in {inside}", *(utilization.domain for utilization in utilizations)],
        rows,
        set(range(len(utilizations) + 1)),
        markdown=False,
    )


def _most_used(utilization: DomainUtilization, layer: str) -> str:
    of = utilization.layers[layer]
    if not of.decisions_T.any():
        return "-"
    experts = [(share, name) for name, share in zip(of.names, of.share_E.tolist(), strict=True) if name != NULL]
    ranked = sorted(experts, key=lambda pair: -pair[0])[:MOST_USED]
    return "  ".join(f"{name} ({share:.0%})" for share, name in ranked)


def _dead_lines(dead: dict[str, list[int]], below: float, of: str) -> str:
    meaning = f"dead experts{of}, with less than {below:g} of the even share on every domain"
    if not dead:
        return f"{meaning}: none"
    inside, labels = short_names(list(dead))
    lines = [f"  {label}: {', '.join(map(str, e))}" for label, e in zip(labels, dead.values(), strict=True)]
    return "\n".join([f"{meaning}: {sum(map(len, dead.values()))}, in {inside}", *lines])


def _pruning_table(pruning: Pruning) -> str:
    rows = []
    for keep, results in pruning.results.items():
        for domain, result in results.items():
            row = [f"{keep} of {pruning.experts}", domain, f"{result.scores[SCORE]:.3f}", "", ""]
            if keep != pruning.experts:
                ends = pruning.interval(keep, domain)
                between = "-" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}"
                row[3:] = [f"{pruning.change(keep, domain):+.3f}", between]
            rows.append(row)
    return aligned(["experts", "domain", SCORE, "change", "95 %"], _without_repeats(rows), {0, 1}, markdown=False)


def _recommendation(pruning: Pruning, tolerance: float, of: str) -> str:
    keep = pruning.recommended(tolerance)
    if keep == pruning.experts:
        return f"recommended{of}: keep all {keep}; every smaller number costs a domain more than {tolerance:g} {SCORE}"
    which = f"the {keep} most used of {pruning.experts} experts per layer"
    return f"recommended{of}: keep {which}, which costs no domain more than {tolerance:g} {SCORE}"


def _utilizations(groups: Groups) -> list[DomainUtilization]:
    return [utilization for group in groups.values() for utilization in group.utilizations]


def short_names(layers: list[str]) -> tuple[str, list[str]]:
    """Return the dotted module that holds all layers, and their names inside it."""
    parts = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ".".join(parts[0][:shared]) or "the model", [".".join(part[shared:]) for part in parts]


def _without_repeats(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows with an empty first cell where it repeats the row above."""
    above = ["", *(row[0] for row in rows)]
    return [["" if row[0] == last else row[0], *row[1:]] for row, last in zip(rows, above, strict=False)]


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def write_histogram(writer: SummaryWriter, tag: str, share_E: np.ndarray, step: int) -> None:
    """Write a histogram with one bar per expert: its share of all selections."""
    index = np.arange(len(share_E))
    writer.add_histogram_raw(
        tag, min=0.0, max=float(len(share_E)), num=1.0, sum=float((index * share_E).sum()),
        sum_squares=float((index**2 * share_E).sum()), bucket_limits=(index + 1.0).tolist(),
        bucket_counts=share_E.tolist(), global_step=step,
    )  # fmt: skip
