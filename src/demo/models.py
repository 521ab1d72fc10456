"""A run's base and adapted model, shared by all sessions of the demo."""

from __future__ import annotations

import threading

import numpy as np

from ..config import GATE_MODES, Config, image_size_of
from ..core.console import PROGRAM
from ..core.errors import UserError
from ..evaluation.expert_utilization import choice_names
from ..gating.domain_gate import Decision
from ..gating.switching import decide_for_frame, install_gate, installed_switch
from ..lora.adapter import iter_adapter_layers, list_groups
from ..lora.expert_groups import active_adapter
from ..lora.moe_layer import MoELoRALinear
from ..models.protocols import Tracker
from ..models.spec import model_spec
from ..tasks.tracking.track_video import load_tracker
from .expert_maps import TokenGrid


class Models:
    """A run's base and adapted model, for any number of sessions, which take turns.

    Args:
        config: the run.
        adapter: the run's adapter folder, or a checkpoint.

    Attributes:
        modes: values of a session's ``mode``: the domain gate's modes and domains, or without a domain gate on and off.
        layers: dotted names of the layers with experts.
        choices: names of the experts that routers select from, the longest such list.
        in_memory_only: whether all adapters are in the memory's part, which prompted frames do not pass through.
        grid: where tokens are on a frame.

    Raises:
        UserError: weights or adapters are missing, damaged or of another base. Or there are several expert groups and
            no domain gate to choose between them.
    """

    def __init__(self, config: Config, adapter: str) -> None:
        self.lock = threading.Lock()
        self.base = load_tracker(config, None)
        self.adapted = load_tracker(config, adapter)
        model = self.adapted.predictor
        gating = installed_switch(model)
        self.gate = None if gating is None else gating.gate
        groups = list_groups(model)
        if groups and self.gate is None and active_adapter(model) is None:
            raise UserError(
                f"{adapter} holds the groups {', '.join(groups)} and no domain gate to choose between them: "
                f"take one out with {PROGRAM} groups extract",
                code="demo.no-gate-for-groups",
            )
        self.modes = ["on", "off"] if self.gate is None else [*GATE_MODES, *self.gate.domains]
        adapters = dict(iter_adapter_layers(model))
        experts = {name: layer for name, layer in adapters.items() if isinstance(layer, MoELoRALinear)}
        self.layers = list(dict.fromkeys(name.partition(".groups.")[0] for name in experts))
        self.choices = max((choice_names(layer.gate) for layer in experts.values()), key=len, default=[])
        spec = model_spec(config.model.name)
        self._room = spec.load()
        self.in_memory_only = bool(adapters) and all(name.startswith(spec.memory) for name in adapters)
        self.grid = TokenGrid(image_size_of(config.model), spec.memory_stride, spec.encoder_strides)

    def tracker(self, used: str | None) -> Tracker:
        """Return the adapted model with a domain's adapters on; the base for None.

        Without a domain gate the adapted model has its adapters on, whatever ``used`` names.
        """
        if used is None:
            return self.base
        if self.gate is None:
            return self.adapted
        tracker = self._room.tracker(self.adapted.predictor, keep_corrections=True)
        install_gate(tracker.predictor, self.gate, used)
        return tracker

    def decide(self, frame_HWC: np.ndarray) -> Decision:
        """Return the domain gate's decision on a frame; without a domain gate it is that the frame is of no domain."""
        if self.gate is None:
            return Decision(None, {})
        with self.lock:
            return decide_for_frame(self.base.predictor, self.gate, frame_HWC)
