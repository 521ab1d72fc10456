"""The plan of a study of forgetting: its YAML, and its rows.

A row is one method learning domains one after another with one seed. ``continue`` trains the same weights on, domain
after domain. ``groups`` gives each domain an expert group of its own. What a group learns does not depend on earlier
groups (:mod:`src.train.adapter_setup`). So there a row is a single domain, and every order consists of the same rows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..config import (
    Config,
    DistillConfig,
    DomainConfig,
    NamedSplit,
    Section,
    SplitConfig,
    parse_config,
    parse_section,
    read_yaml,
    set_key,
)
from ..core.errors import UserError
from ..data import synthetic

BUNDLED = {d.name: d for d in (synthetic.CELLS, synthetic.TISSUE, synthetic.THERMAL, synthetic.FLAKES)}
"""Domains of the bundled generator that a study can name instead of giving paths."""


class MethodConfig(Section):
    """A way to learn."""

    sequence: Literal["continue", "groups"] = Field(
        "continue", description="train the same weights on, or add a group of experts for each domain"
    )
    replay: bool = Field(False, description="mix in labelled clips of the source and of all domains learned before")
    distilled: list[bool] = Field(
        default=[False, True], min_length=1, description="studied without distillation, with it, or both"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the run and their values")


class SizesConfig(Section):
    """How many videos of the bundled generator's domains, and how long they are."""

    train: int = Field(48, gt=1)
    valid: int = Field(2, gt=0)
    test: int = Field(12, gt=0)
    source: int = Field(16, gt=0, description="held-out videos of the source domain")
    frames: int = Field(6, gt=1)
    objects: int = Field(3, gt=0, description="labelled on a test video, the largest on its first frame")
    gate_images: int = Field(40, gt=0, description="of each set that the domain gate is asked about")


class QuickConfig(Section):
    """The smaller study of ``--quick``."""

    methods: list[str]
    orders: list[list[str]] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    sizes: SizesConfig = Field(default_factory=SizesConfig)
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the run and their values")


class StudyConfig(Section):
    """A whole study."""

    run: dict[str, Any] = Field(description="an ordinary run's YAML: what all methods have in common")
    source: NamedSplit | None = Field(
        None, description="labelled data that the base knows; null: the bundled base's source domain"
    )
    replay: DomainConfig | None = Field(
        None, description="labelled source data to replay; null: clips of the bundled base's source domain"
    )
    domains: list[str | DomainConfig] = Field(
        min_length=1, description="new domains: bundled ones by name, or data sets"
    )
    orders: list[list[str]] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    methods: dict[str, MethodConfig] = Field(min_length=1)
    distill: DistillConfig = Field(description="as training.distill, for what is distilled")
    near: list[NamedSplit] = Field(
        default_factory=list, description="data near the domains, of none of them, that the gate is to reject"
    )
    sizes: SizesConfig = Field(default_factory=SizesConfig)
    quick: QuickConfig | None = None
    output_dir: str = "experiments/forgetting"

    @model_validator(mode="after")
    def _names_fit(self) -> StudyConfig:
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(f"domains must have different names, not {', '.join(names)}")
        for domain in self.domains:
            if isinstance(domain, str) and domain not in BUNDLED:
                raise ValueError(
                    f"domains: '{domain}' is none of the bundled ones ({', '.join(BUNDLED)}); "
                    "give a data set's name and paths instead"
                )
        for order in [*self.orders, *(self.quick.orders if self.quick else [])]:
            if not order or len(set(order)) < len(order) or not set(order) <= set(names):
                raise ValueError(f"orders: {order} must name different ones of {', '.join(names)}")
        if self.quick and (unknown := set(self.quick.methods) - set(self.methods)):
            raise ValueError(f"quick.methods: no method {', '.join(sorted(unknown))}")
        return self

    @property
    def names(self) -> list[str]:
        """Names of the new domains."""
        return [domain if isinstance(domain, str) else domain.name for domain in self.domains]

    @property
    def data_folder(self) -> Path:
        """Folder of the bundled domains."""
        return Path(self.output_dir) / "data"

    def domain(self, name: str) -> DomainConfig:
        """Return a domain's splits; :func:`src.studies.rows.write_data` writes those of a bundled one."""
        given = self.domains[self.names.index(name)]
        return bundled_set(name, self.data_folder / name) if isinstance(given, str) else given

    def replayed_source(self) -> DomainConfig:
        """Return labelled clips of the source domain."""
        return self.replay or bundled_set("replayed_source", self.data_folder / "source")


@dataclass(frozen=True)
class Row:
    """One method, with or without distillation, learning domains in order with one seed."""

    method: str
    distilled: bool
    order: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """Name of the row's files."""
        return f"{self.method}{'+distill' if self.distilled else ''}_{'-'.join(self.order)}_{self.seed}"


def load_study(path: str | Path, quick: bool = False) -> StudyConfig:
    """Read a study's YAML; with ``quick`` the smaller study of its ``quick`` section.

    Raises:
        UserError: the file is missing, or values are wrong, those of its runs included.
    """
    study = parse_section(StudyConfig, read_yaml(path), str(path))
    if quick:
        if study.quick is None:
            raise UserError(f"{path}: --quick needs a section 'quick'", code="study.no-quick")
        run = copy.deepcopy(study.run)
        for dotted, value in study.quick.set.items():
            set_key(run, dotted, value)
        study = study.model_copy(
            update={
                "run": run,
                "methods": {name: study.methods[name] for name in study.quick.methods},
                "orders": study.quick.orders,
                "seeds": study.quick.seeds,
                "sizes": study.quick.sizes,
                "output_dir": f"{study.output_dir}_quick",
            }
        )
    for row in plan_rows(study):
        run_config(study, row, 0, None)
    return study


def plan_rows(study: StudyConfig) -> list[Row]:
    """Return every row, seed by seed, so that an interrupted study has all methods with fewer seeds."""
    rows: list[Row] = []
    for seed in study.seeds:
        for name, method in study.methods.items():
            for distilled in method.distilled:
                orders = [tuple(order) for order in study.orders]
                if method.sequence == "groups":
                    orders = [(domain,) for domain in dict.fromkeys(d for order in orders for d in order)]
                rows += [Row(name, distilled, order, seed) for order in orders]
    return rows


def run_config(study: StudyConfig, row: Row, stage: int, start: str | Path | None) -> Config:
    """Return the config of one of a row's runs.

    Args:
        study: the study.
        row: the row.
        stage: index of the learned domain, from 0.
        start: the checkpoint of the stage before; None in the first stage.

    Raises:
        UserError: the run's own YAML, or what a method sets in it, is wrong.
    """
    method = study.methods[row.method]
    raw = copy.deepcopy(study.run)
    for dotted, value in method.set.items():
        set_key(raw, dotted, value)
    own = study.domain(row.order[stage])
    earlier = [study.domain(name) for name in row.order[:stage]]
    training = raw.setdefault("training", {})
    training |= {"seed": row.seed, "domain_gate": False, "start_from": str(start) if start else None}
    if row.distilled:
        training["distill"] = {**study.distill.model_dump(), **training.get("distill", {})}
    if training.get("penalty", {}).get("kind") == "ewc":
        training["penalty"]["folders"] = [each.train.img_folder for each in earlier]
    domains = [own.model_dump()]
    if method.replay:
        old = [
            study.replayed_source(),
            *(each.model_copy(update={"name": f"replayed_{each.name}"}) for each in earlier),
        ]
        domains += [{**each.model_dump(), "weight": own.weight / len(old)} for each in old]
    set_key(raw, "dataset.domains", domains)
    raw["output_dir"] = str(Path(study.output_dir) / "work" / row.key / f"{stage}_{own.name}")
    return parse_config(raw, f"the study's run {row.key}")


def bundled_set(name: str, folder: Path) -> DomainConfig:
    """Return splits as :func:`src.studies.rows.write_data` lays them out."""
    places = {
        key: SplitConfig(img_folder=str(folder / split / "JPEGImages"), ann_file=str(folder / split / "Annotations"))
        for key, split in (("train", "train"), ("val", "valid"), ("test", "test"))
    }
    return DomainConfig.model_validate({"name": name, "format": "davis", **places})
