"""Every YAML in src/configs loads, is injected, and takes one step that changes what it trains and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.config import load_config
from src.lora.adapter import iter_adapter_layers
from src.models.spec import model_spec
from src.train.trainer import Trainer

ROOT = Path(__file__).parents[2]
STUDIES = "forgetting*.yaml"  # of many runs, tested with the study
YAMLS = sorted(path for path in (ROOT / "src/configs").glob("*.yaml") if not path.match(STUDIES))


def slow_to_build(path: Path) -> bool:
    return any(part in path.name for part in ("large", "base_plus", "_moe"))  # _moe: as _mope, with other numbers


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=pytest.mark.slow if slow_to_build(p) else ()) for p in YAMLS]
)
def test_it_takes_a_step(path, data_settings, tmp_path, request):
    shipped = load_config(path)
    weights = ROOT / (shipped.model.checkpoint or "")
    here = shipped.model.name == "sam2_nano" and weights.is_file()
    model = [f"model.checkpoint={weights if here else 'null'}", "model.image_size=64"]
    if shipped.model.name == "sam3_tracker":  # of its size a checkpoint's config decides
        model = [f"model.checkpoint={request.getfixturevalue('sam3_tracker_folder')}", "model.image_size=56"]
    elif model_spec(shipped.model.name).task == "concepts":
        model = [f"model.checkpoint={request.getfixturevalue('sam3_folder')}", "model.image_size=null"]
    settings = [
        *model, f"output_dir={tmp_path}",
        "training.batch_size=1", "training.num_workers=0", "training.device=cpu", "evaluation.domains=[]",
    ]  # fmt: skip
    trainer = Trainer.from_config(load_config(path, [*data_settings, *settings]))
    assert bool(list(iter_adapter_layers(trainer.model))) == (shipped.lora.method in ("mope", "lora"))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    losses = trainer.run.train_step(trainer.run.next_micro_batches(iter(trainer.run.loader)), 0).losses
    assert torch.tensor(list(losses.values())).isfinite().all()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= {name for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_there_are_some():
    assert {"mope", "lora", "full"} <= {path.stem for path in YAMLS}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_runs_do_not_share_a_folder(path):
    folders = [load_config(other).output_dir for other in YAMLS]
    assert folders.count(load_config(path).output_dir) == 1
