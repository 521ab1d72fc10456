"""Results with the domain gate deciding: those of a model that has the gate in it, without running it again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import LoraConfig, ModelConfig, MotionConfig
from src.data.records import DataSet
from src.data.synthetic import CELLS, HELD_OUT_SEED, SOURCE, make_videos
from src.evaluation.domains import Domain
from src.evaluation.results import with_gate
from src.gating.fit import fit_gate
from src.gating.switching import decide_for_frame, gated
from src.lora.adapter import iter_adapter_layers
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from src.tasks.tracking.evaluation import evaluate_domain

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/sam2_nano.safetensors"


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the bundled base is not here")
def test_they_are_those_of_a_model_with_the_gate_in_it():
    base = build_model(ModelConfig(checkpoint=str(CHECKPOINT))).eval()
    adapted = build_model(ModelConfig(checkpoint=str(CHECKPOINT))).eval()
    apply_method(adapted, LoraConfig(method="lora", rank=2, target_modules=["all"]))
    torch.manual_seed(1)
    for _, adapter in iter_adapter_layers(adapted):
        torch.nn.init.normal_(adapter.lora_B, std=0.3)
    gate = fit_gate(base, "cells", (v.frames[0].read() for v in make_videos(CELLS, 24, 0, frames=1).videos))

    both = [*make_videos(CELLS, 2, HELD_OUT_SEED, 3).videos, *make_videos(SOURCE, 2, HELD_OUT_SEED, 3).videos]
    domain = Domain("both", DataSet("both", both), 3, 2, 1024, MotionConfig())
    without, on = (evaluate_domain(model, domain, "mask") for model in (base, adapted))
    composed = with_gate(domain, without, on, partial(decide_for_frame, base, gate), learned=True)
    assert composed.known == composed.wrong == 2
    with gated(adapted, gate):
        decided = evaluate_domain(adapted, domain, "mask")
    assert composed.result.scores == decided.scores
    assert decided.scores != without.scores and decided.scores != on.scores
    for mine, theirs in zip(composed.result.videos, decided.videos, strict=True):
        for object_id, masks in mine.predicted.items():
            pairs = zip(masks, theirs.predicted[object_id], strict=True)
            assert all(np.array_equal(a.decode(), b.decode()) for a, b in pairs)
