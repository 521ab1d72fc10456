"""Rows of a study, each run into a JSON file of its own, and what they are compared with: base and gate."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..core.console import progress_bar
from ..core.device import pick_device
from ..core.files import write_text
from ..data.loading import load_data, load_split
from ..data.options import LoadOptions
from ..data.records import DataSet, ObjectTrack
from ..data.synthetic import HELD_OUT_SEED, SAME_DOMAIN, SHIFTS, SOURCE, make_videos, mixed, shifted
from ..data.synthetic import Domain as World
from ..data.writers import write_davis
from ..evaluation.domains import SOURCE_DOMAIN, Domain, DomainOptions, make_domain, target_domain
from ..evaluation.protocol import first_prompted_frame
from ..evaluation.results import DomainResult
from ..gating.domain_gate import DomainGate
from ..gating.switching import decide_for_frame
from ..lora.injection import count_parameters, routed_layers
from ..lora.recording import record_routing
from ..models.spec import model_spec
from ..tasks.base import Task, get_task
from ..tasks.tracking.data import fit_gate_to
from ..train.trainer import Trainer
from .plan import BUNDLED, Row, StudyConfig, plan_rows, run_config
from .weight_penalty import weight_penalty

logger = logging.getLogger(__name__)

VALID_SEED = 50_000  # beyond the seeds of training videos
LOG = "log.txt"

DomainScores = list[list[tuple[float, float]]]
"""Videos → objects → (J, F)."""


def run_study(study: StudyConfig, part: tuple[int, int] = (1, 1)) -> bool:
    """Run every row that has no file yet; a row's file appears when all of it is done.

    Args:
        study: the study.
        part: (k, n), to run only every n-th row from the k-th on: for n processes or machines at a time.

    Returns:
        Whether all rows of the study are finished, those of other parts included.

    Raises:
        UserError: data or settings do not fit; finished rows stay.
    """
    write_data(study)
    rows, domains = plan_rows(study), tested_domains(study)
    if part[0] == 1:
        _once(base_file(study), partial(measure_base, study, domains))
        _once(gate_file(study), partial(measure_gate, study, domains))
    for row in progress_bar(rows[part[0] - 1 :: part[1]], desc="rows"):
        started = time.perf_counter()
        if _once(row_file(study, row), partial(run_row, study, domains, row)):
            logger.info(f"{row.key}: {time.perf_counter() - started:.0f} s")
    return all(path.is_file() for path in [base_file(study), gate_file(study), *(row_file(study, r) for r in rows)])


def base_file(study: StudyConfig) -> Path:
    """Return the file of the base's scores."""
    return Path(study.output_dir) / "base.json"


def gate_file(study: StudyConfig) -> Path:
    """Return the file of the domain gate's decisions."""
    return Path(study.output_dir) / "gate.json"


def row_file(study: StudyConfig, row: Row) -> Path:
    """Return the file of a row's scores."""
    return Path(study.output_dir) / "rows" / f"{row.key}.json"


def _once(path: Path, measure: Callable[[], dict[str, Any]]) -> bool:
    """Write a measurement as JSON unless the file exists; return whether it was written."""
    if path.is_file():
        return False
    write_text(path, json.dumps(measure()) + "\n")
    return True


def write_data(study: StudyConfig) -> None:
    """Write the bundled domains that the study names, as DAVIS folders; existing ones stay."""
    sizes = study.sizes
    counts = {"train": (sizes.train, 0), "valid": (sizes.valid, VALID_SEED), "test": (sizes.test, HELD_OUT_SEED)}
    worlds = {name: BUNDLED[name] for name in study.domains if isinstance(name, str)}
    if study.replay is None:
        worlds["source"] = SOURCE
    for name, world in worlds.items():
        for split, (count, seed) in counts.items():
            folder = study.data_folder / name / split
            if folder.is_dir():
                continue
            videos = make_videos(world, count, seed, frames=8 if split == "train" else sizes.frames)
            if split != "train":
                videos = DataSet(name, [replace(v, objects=_largest(v.objects, sizes.objects)) for v in videos.videos])
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{split}."))
            write_davis(unfinished, videos)
            try:
                unfinished.rename(folder)
            except OSError:  # another part of the study was faster
                shutil.rmtree(unfinished)
                if not folder.is_dir():
                    raise


def _largest(objects: Sequence[ObjectTrack], count: int) -> list[ObjectTrack]:
    def area(obj: ObjectTrack) -> int:
        first = obj.segmentations[0]
        return 0 if first is None else first.area()

    return sorted(objects, key=area, reverse=True)[:count]


def tested_domains(study: StudyConfig) -> dict[str, Domain]:
    """Return the domains that every stage is scored on: the source and all new ones."""
    options = DomainOptions.from_config(_common_config(study))
    if study.source is not None:
        source = load_data(study.source, options.loading)
    else:
        source = make_videos(SOURCE, study.sizes.source, HELD_OUT_SEED, frames=study.sizes.frames, side=128)
    new = {name: target_domain(study.domain(name), "test", options) for name in study.names}
    return {SOURCE_DOMAIN: make_domain(SOURCE_DOMAIN, source, options), **new}


def _common_config(study: StudyConfig) -> Config:
    """Return what all runs have in common, with the study's own output folder."""
    first = run_config(study, plan_rows(study)[0], 0, None)
    return first.model_copy(update={"output_dir": study.output_dir})


def base_model(study: StudyConfig) -> tuple[nn.Module, Config]:
    """Return the base, in evaluation mode on the run's device."""
    config = _common_config(study)
    torch.manual_seed(config.training.seed)
    model = model_spec(config.model.name).load().build_model(config.model)
    return model.to(pick_device(config.training.device)).eval(), config


def measure_base(study: StudyConfig, domains: dict[str, Domain]) -> dict[str, Any]:
    """Return the base's scores on every domain."""
    model, config = base_model(study)
    task = get_task(model_spec(config.model.name).task)(config)
    return {"scores": {name: _score(task, model, domain) for name, domain in domains.items()}}


def run_row(study: StudyConfig, domains: dict[str, Domain], row: Row) -> dict[str, Any]:
    """Learn a row's domains one after another; return settings, and for each stage its scores on every domain."""
    stages = []
    work = Path(study.output_dir) / "work" / row.key
    shutil.rmtree(work, ignore_errors=True)
    start = None
    for stage, learned in enumerate(row.order):
        config = run_config(study, row, stage, start)
        with _output_to(work / LOG):
            objectives = [weight_penalty] if config.training.penalty.weight else []
            trainer = Trainer.from_config(config, objectives=objectives)
            started = time.perf_counter()
            start = trainer.fit()
            seconds = time.perf_counter() - started
        with record_routing(trainer.model) as routing:
            utilization = {}
            scores: dict[str, DomainScores] = {}
            for name, domain in domains.items():
                scores[name] = _score(trainer.task, trainer.model, domain)
                utilization[name] = {layer: share_E.tolist() for layer, share_E in routing.utilization().items()}
                routing.clear()
        stages.append(
            {
                "domain": learned,
                "steps": trainer.state.step,
                "seconds": seconds,
                "parameters": count_parameters(trainer.model).trainable,
                "scores": scores,
                "utilization": utilization if routed_layers(trainer.model) else None,
            }
        )
    shutil.rmtree(work)
    return {"method": row.method, "distilled": row.distilled, "order": row.order, "seed": row.seed, "stages": stages}


def measure_gate(study: StudyConfig, domains: dict[str, Domain]) -> dict[str, Any]:
    """Return the distances of a domain gate that knows all new domains, in units of each domain's threshold.

    Returns:
        ``videos``: tested domain → for each of its videos, the distance to each domain. ``sets``: further sets of
        images → ``of``, the domain they belong to (None: to none), and their distances.
    """
    model, config = base_model(study)
    loading = LoadOptions.from_config(config)
    gate: DomainGate | None = None
    for name in study.names:
        gate = fit_gate_to(model, [load_split(study.domain(name), "train", loading)], gate)
    assert gate is not None
    videos = {
        name: [
            decide_for_frame(model, gate, video.frames[first_prompted_frame(video)].read()).distances
            for video in domain.videos()
        ]
        for name, domain in domains.items()
    }
    sets = {}
    for title, own, data in _near_sets(study, loading):
        videos_of_set = progress_bar(data.videos, desc=f"gate: {title}", leave=False)
        distances = [decide_for_frame(model, gate, video.frames[0].read()).distances for video in videos_of_set]
        sets[title] = {"of": own, "distances": distances}
    return {"videos": videos, "sets": sets}


def _near_sets(study: StudyConfig, loading: LoadOptions) -> Iterator[tuple[str, str | None, DataSet]]:
    """Yield sets of images near the domains: title, the domain they belong to, images.

    They are bundled domains under other photometric conditions or mixed with the source, and ``near`` of the study.
    """
    count, bundled = study.sizes.gate_images, [BUNDLED[each] for each in study.domains if isinstance(each, str)]

    def drawn(world: World) -> DataSet:
        return make_videos(world, count, HELD_OUT_SEED, frames=1)

    for world in bundled:
        for shift in SAME_DOMAIN:
            yield f"{world.name}, {shift}", world.name, drawn(shifted(world, shift))
    for shift in SHIFTS if bundled else ():
        yield f"source, {shift}", None, drawn(shifted(SOURCE, shift))
    for world in bundled:
        yield f"{world.name} before the source's background", None, drawn(mixed(world, SOURCE))
        yield f"source before {world.name}'s background", None, drawn(mixed(SOURCE, world))
    for place in study.near:
        yield place.name, None, load_data(place, loading)


def _score(task: Task, model: nn.Module, domain: Domain) -> DomainScores:
    result = task.score_domain(model, domain, task.config.evaluation.prompt)
    assert isinstance(result, DomainResult)
    return [[(scores.J, scores.F) for scores in video.scores.values()] for video in result.videos]


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Write what the block prints into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield
