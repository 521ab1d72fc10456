"""How a run begins: from the base, from an earlier run's weights, or with a further group of experts in an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..config import Config, LoraConfig, TrainingConfig
from ..core.device import evaluating
from ..core.errors import UserError
from ..gating.domain_gate import DomainGate
from ..lora.adapter import AdapterLayer
from ..lora.adapter_io import load_adapter
from ..lora.data_init import data_driven_init, freeze_first_factors
from ..lora.expert_groups import DEFAULT_ADAPTER, add_adapter, adopt_unnamed
from ..lora.injection import apply_method
from ..models.checkpoint import Checkpoint, check_fits, inject_adapters, load_weights, read_checkpoint
from ..models.spec import model_spec
from ..tasks.base import Items, Task

INIT_ITEMS = 16
"""Training items that new adapters are initialised from."""

GENERAL_ITEMS = 32
"""General inputs, whose directions they avoid."""


@dataclass(frozen=True)
class AdapterSetup:
    """What :func:`begin` made of a base model.

    Attributes:
        adapters: those that train, by the dotted names of the layers that they adapt.
        groups: the config of each expert group, the one that trains last; empty without groups.
    """

    adapters: dict[str, AdapterLayer]
    groups: dict[str, LoraConfig]


def setup_adapters(
    model: nn.Module, task: Task, config: Config, fingerprint: str, resumed: Checkpoint | None = None
) -> AdapterSetup:
    """Put what a run trains into a base model, with the weights that the run begins with.

    Args:
        model: with its base weights.
        config: the run.
        fingerprint: of the base.
        resumed: the checkpoint that the run is to go on from, of which groups are taken and weights are not.

    Raises:
        UserError: ``training.extend``, ``training.start_from`` or the target modules do not fit.
    """
    training = config.training
    _refuse_inside(config, "extend", training.extend)
    _refuse_inside(config, "start_from", training.start_from)
    if resumed is not None:
        groups = resumed.groups
        adapters = inject_adapters(model, config.lora, groups)
    elif training.extend is not None:
        groups = _earlier_groups(model, task, training.extend, fingerprint)
        name = config.dataset.domains[0].name
        adapters = add_adapter(model, name, config.lora)
        groups[name] = config.lora
    else:
        groups, adapters = {}, apply_method(model, config.lora, model_spec(config.model.name).decoder)
    if training.start_from is not None:
        _load_start(model, training.start_from, config.lora, fingerprint)
    return AdapterSetup(adapters, groups)


def _refuse_inside(config: Config, key: str, path: str | None) -> None:
    """Raise UserError where what a run begins with is stored where the run moves earlier results away."""
    if path is not None and Path(path).resolve().is_relative_to(Path(config.output_dir).resolve()):
        raise UserError(
            f"training.{key}: {path} is in output_dir, {config.output_dir}, from which a new run moves earlier "
            "results away: set another output_dir",
            "adapters.inside-output",
        )


def _earlier_groups(model: nn.Module, task: Task, folder: str, fingerprint: str) -> dict[str, LoraConfig]:
    """Load an adapter folder's groups; adapters without a group become one, called after the domain they know.

    Nothing is drawn from torch's generator: what is learned next does not depend on what was learned before.
    """
    with torch.random.fork_rng(devices=[]):
        found = load_adapter(model, folder)
    config = found.lora
    task.check_extension(folder, found.extra)
    if not isinstance(config, LoraConfig):
        return dict(config)
    gate = DomainGate.beside(folder, fingerprint)
    known = [DEFAULT_ADAPTER] if gate is None else list(gate.domains)
    if len(known) > 1:
        raise UserError(
            f"{folder}: these adapters learned {', '.join(known)} together, so they are no group of one domain; "
            "train one domain at a time to extend",
            "extend.several-domains",
        )
    adopt_unnamed(model, known[0])
    return {known[0]: config}


def _load_start(model: nn.Module, path: str, lora: LoraConfig, fingerprint: str) -> None:
    if Path(path).is_dir():
        load_adapter(model, path)
        return
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, path, fingerprint, lora)
    load_weights(model, checkpoint, path)


def start_adapters(
    model: nn.Module, task: Task, adapters: dict[str, AdapterLayer], items: Items, training: TrainingConfig, new: bool
) -> None:
    """Let adapters begin as ``training.adapter_init`` says (:mod:`src.lora.data_init`).

    Args:
        model: with the adapters.
        task: runs the model.
        adapters: by dotted name.
        items: of the new domain.
        training: the run's.
        new: whether they are untrained; what does not train is frozen in any case.

    Raises:
        UserError: an item cannot be read, or there are no general inputs.
    """
    contrast = training.adapter_init == "contrast"
    if contrast:
        freeze_first_factors(adapters)
    if training.adapter_init == "random" or not new:
        return

    def run() -> None:
        for index in range(min(INIT_ITEMS, len(items))):
            item = items[(0, index)]
            if isinstance(item, UserError):
                raise item
            task.run_item(model, item)

    with evaluating(model):
        general = (lambda: task.run_general(model, GENERAL_ITEMS)) if contrast else None
        data_driven_init(model, adapters, run, seed=training.seed, general=general)
