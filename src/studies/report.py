"""Report of a study: matrices of scores, the table of all methods, figures, and the domain gate's rates."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ..config import ADAPTER_METHODS
from ..core.files import write_text
from ..evaluation.continual import Continual, continual
from ..evaluation.domains import SOURCE_DOMAIN
from ..evaluation.figures import Table, heat_map, heat_maps, save_figure
from ..evaluation.text_table import aligned
from .plan import Row, StudyConfig, plan_rows, run_config
from .rows import base_file, gate_file, row_file

MODES = {"on": "forced on", "gate": "gate deciding", "oracle": "oracle"}
COLUMNS = {
    "gain": "gain", "final_gain": "gain at the end", "forgetting": "forgetting", "source": "source",
    "average": "average", "backward": "backward", "forward": "forward",
}  # fmt: skip

Distances = dict[str, float]


@dataclass(frozen=True)
class Sequence:
    """One method learning domains in order with one seed, with adapters turned on in one way.

    Attributes:
        method: name of the method.
        distilled: whether it learned with self-distillation.
        mode: key of :data:`MODES`.
        order: names of the domains.
        seed: random seed.
        R: (T + 1, T + 1), J&F by stage and domain, the source first, then the order of learning.
    """

    method: str
    distilled: bool
    mode: str
    order: tuple[str, ...]
    seed: int
    R: np.ndarray


class Study:
    """The finished rows of a study, combined into sequences.

    Args:
        study: the study; its base and gate are measured, and missing rows are left out.
    """

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self.base: dict[str, list[list[list[float]]]] = _read(base_file(study))["scores"]
        self.gate: dict[str, Any] = _read(gate_file(study))
        self.rows = {row: _read(row_file(study, row)) for row in plan_rows(study) if row_file(study, row).is_file()}

    def sequences(self) -> list[Sequence]:
        """Return all complete sequences: every method, with and without distillation, order, seed and mode."""
        found = []
        for seed in self.study.seeds:
            for name, method in self.study.methods.items():
                for distilled in method.distilled:
                    for order in map(tuple, self.study.orders):
                        if method.sequence == "groups":
                            parts = [Row(name, distilled, (domain,), seed) for domain in order]
                        else:
                            parts = [Row(name, distilled, order, seed)]
                        if all(part in self.rows for part in parts):
                            stages = [stage for part in parts for stage in self.rows[part]["stages"]]
                            for mode in self._modes(parts[0]):
                                R = self._matrix(stages, order, mode, method.sequence == "groups")
                                found.append(Sequence(name, distilled, mode, order, seed, R))
        return found

    def _modes(self, row: Row) -> list[str]:
        adapted = run_config(self.study, row, 0, None).lora.method in ADAPTER_METHODS
        return list(MODES) if adapted else ["on"]

    def _matrix(self, stages: list[dict[str, Any]], order: tuple[str, ...], mode: str, groups: bool) -> np.ndarray:
        domains = [SOURCE_DOMAIN, *order]
        R = [[_mean(self.base[domain]) for domain in domains]]
        for last in range(len(order)):
            learned = order[: last + 1]
            row = []
            for domain in domains:
                videos = []
                for v, distances in enumerate(self.gate["videos"][domain]):
                    chosen = _choose(mode, domain, {name: distances[name] for name in learned})
                    if chosen is None:
                        videos.append(self.base[domain][v])
                    else:
                        stage = stages[order.index(chosen)] if groups else stages[last]
                        videos.append(stage["scores"][domain][v])
                row.append(_mean(videos))
            R.append(row)
        return np.array(R)

    def gate_table(self) -> tuple[list[list[str]], dict[str, float]]:
        """Return the domain gate's table, a line for each set of images, and its rates.

        Returns:
            Lines of set, its domain, number of images, share of right decisions. And ``false_reject``,
            ``false_accept``, ``balanced_accuracy``: means over sets, without those that mix a domain with the source.
        """
        lines: list[list[str]] = []
        wrong: dict[bool, list[float]] = {True: [], False: []}
        videos = {
            name: {"of": None if name == SOURCE_DOMAIN else name, "distances": distances}
            for name, distances in self.gate["videos"].items()
        }
        for title, images in {**videos, **self.gate["sets"]}.items():
            own = images["of"]
            right = float(np.mean([_choose("gate", None, each) == own for each in images["distances"]]))
            mixture = "background" in title
            kind = "mixed, base expected" if mixture else "base" if own is None else own
            lines.append([title, kind, str(len(images["distances"])), f"{right:.3f}"])
            if not mixture:
                wrong[own is not None].append(1 - right)
        rates = {"false_reject": float(np.mean(wrong[True])), "false_accept": float(np.mean(wrong[False]))}
        rates["balanced_accuracy"] = 1 - sum(rates.values()) / 2
        return lines, rates


def report(config: StudyConfig) -> str:
    """Write ``results.md``, ``results.json`` and the figures into the study's folder; return the text of the table."""
    study, folder = Study(config), Path(config.output_dir)
    sequences = study.sequences()
    runs = grouped(sequences)
    table = method_table(study, runs)
    lines, rates = study.gate_table()
    gate = aligned(["images", "belong to", "number", "right"], lines, {0, 1}, markdown=True)
    rate_text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in rates.items())
    pictures = {"gain_and_forgetting.png": scatter(runs)}
    for number, order in enumerate(map(tuple, config.orders), 1):
        pictures[f"scores_order_{number}.png"] = matrices_figure(runs, order)
    pictures |= {f"experts_{name}.png": figure for name, figure in utilization_figures(study).items()}
    for name, figure in pictures.items():
        save_figure(figure, folder / name)
    text = [
        "# Learning domains one after another", "", table, "",
        "The domain gate, knowing all new domains:", "", gate, "", rate_text, "",
        *(f"![{name}]({name})" for name in pictures),
    ]  # fmt: skip
    write_text(folder / "results.md", "\n".join(text) + "\n")
    content = {
        "gate": rates,
        "sequences": [
            {
                "method": s.method, "distilled": s.distilled, "mode": s.mode, "order": s.order, "seed": s.seed,
                "R": s.R.round(5).tolist(), **{f.name: getattr(continual(s.R), f.name) for f in fields(Continual)},
            }
            for s in sequences
        ],
    }  # fmt: skip
    write_text(folder / "results.json", json.dumps(content, indent=1) + "\n")
    return f"{table}\n\ndomain gate: {rate_text}"


Runs = dict[tuple[str, bool, str], list[Sequence]]


def grouped(sequences: list[Sequence]) -> Runs:
    """Group sequences by method, distillation and mode, in the order of the methods."""
    runs: Runs = {}
    for each in sorted(sequences, key=lambda s: (s.distilled, list(MODES).index(s.mode))):
        runs.setdefault((each.method, each.distilled, each.mode), []).append(each)
    return runs


def method_table(study: Study, runs: Runs) -> str:
    """Return Markdown with a line for each method, distillation and mode.

    Numbers are means over seeds of means over orders, ± half of their 95 % interval (Student's t).
    """
    rows = []
    for name in study.study.methods:
        for (method, distilled, mode), found in runs.items():
            if method == name:
                seeds = {each.seed: [continual(e.R) for e in found if e.seed == each.seed] for each in found}
                cells = []
                for column in COLUMNS:
                    values = [float(np.mean([getattr(n, column) for n in numbers])) for numbers in seeds.values()]
                    cells.append(_interval(values, column != "average"))
                cost = _cost(study, method, distilled) if mode == "on" else ["", ""]
                general = "yes" if distilled else "no"
                rows.append([name, general, MODES[mode], str(len(seeds)), *cells, *cost])
    header = ["method", "distilled", "adapters", "seeds", *COLUMNS.values(), "parameters", "s a domain"]
    return aligned(header, rows, {0, 1, 2}, markdown=True)


def _cost(study: Study, method: str, distilled: bool) -> list[str]:
    """Return the number of trained parameters, and the median seconds to learn a domain."""
    own = [row for key, row in study.rows.items() if (key.method, key.distilled) == (method, distilled)]
    stages = [stage for row in own for stage in row["stages"]]
    return [f"{stages[0]['parameters']:,}", f"{np.median([stage['seconds'] for stage in stages]):.0f}"]


def _interval(values: list[float], signed: bool) -> str:
    mean = float(np.mean(values))
    text = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        text += f" ± {half:.3f}"
    return text


def scatter(runs: Runs) -> Figure:
    """Plot gain against forgetting: a colour for each method, filled with distillation, a shape for each mode."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(method for method, _, _ in runs))
    shapes = {"on": "o", "gate": "^", "oracle": "s"}
    for (method, distilled, mode), found in runs.items():
        numbers = [continual(each.R) for each in found]
        colour = f"C{methods.index(method)}"
        axes.scatter(
            np.mean([n.forgetting for n in numbers]), np.mean([n.gain for n in numbers]), marker=shapes[mode], s=60,
            edgecolors=colour, facecolors=colour if distilled else "none",
        )  # fmt: skip
    for index, method in enumerate(methods):
        axes.scatter([], [], color=f"C{index}", label=method)
    for mode, shape in shapes.items():
        axes.scatter([], [], marker=shape, edgecolors="black", facecolors="none", label=f"adapters: {MODES[mode]}")
    axes.scatter([], [], color="black", label="filled: with distillation")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="forgetting measure, J&F (less is better)", ylabel="gain on a new domain, J&F")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def matrices_figure(runs: Runs, order: tuple[str, ...]) -> Figure:
    """Draw the mean matrix of each method over the seeds of one order, as heat maps."""
    tables = {}
    rows = ["base", *(f"after {name}" for name in order)]
    for (method, distilled, mode), found in runs.items():
        own = [each.R for each in found if each.order == order]
        if own and mode != "oracle":
            title = f"{method}{', distilled' if distilled else ''}" + ("\ngate deciding" if mode == "gate" else "")
            tables[title] = Table(np.mean(own, axis=0), rows, [SOURCE_DOMAIN, *order])
    return heat_maps(
        tables, f"J&F after each stage: {', '.join(order)}", "J&F", row_title="stage", column_title="domain"
    )


def utilization_figures(study: Study) -> dict[str, Figure]:
    """Return a figure per expert group: each expert's utilization on every domain, means over layers and seeds."""
    figures = {}
    for name, method in study.study.methods.items():
        for domain in study.study.names if method.sequence == "groups" else ():
            rows = [
                row
                for key, row in study.rows.items()
                if key.method == name and key.distilled and key.order == (domain,)
            ]
            measured = [found for row in rows if (found := _utilization(row["stages"][0])) is not None]
            if not measured:
                continue
            shown = list(measured[0])
            shares = np.array(
                [[np.mean(list(by_domain[each].values()), axis=0) for each in shown] for by_domain in measured]
            )
            experts = run_config(study.study, Row(name, True, (domain,), 0), 0, None).lora.experts
            labels = [str(e) if e < experts else "null" for e in range(shares.shape[-1])]
            figures[domain] = heat_map(
                shares.mean(axis=0), shown, labels, f"Experts of the group {domain}", "share of choices",
                decimals=2, row_title="domain", column_title="expert",
            )  # fmt: skip
    return figures


def _utilization(stage: dict[str, Any]) -> dict[str, dict[str, list[float]]] | None:
    """Return domain → layer → shares of a stage; rows of earlier versions have another key."""
    found: dict[str, dict[str, list[float]]] | None = stage["utilization"] if "utilization" in stage else stage["use"]
    return found


def _choose(mode: str, domain: str | None, distances: Distances) -> str | None:
    """Return the learned domain whose adapters a video gets, None for the base."""
    if mode == "oracle":
        return domain if domain in distances else None
    nearest = min(distances, key=distances.__getitem__)
    return nearest if mode == "on" or distances[nearest] <= 1 else None


def _mean(videos: list[list[list[float]]]) -> float:
    """Return J&F, the mean over objects."""
    return float(np.mean([(J + F) / 2 for objects in videos for J, F in objects]))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
