"""Which layers of the full-size model short names select."""

from __future__ import annotations

import pytest
import torch

from src.config import LoraConfig
from src.lora.injection import find_targets, new_adapters
from src.models.spec import model_spec

transformers = pytest.importorskip("transformers", minversion="5.24", reason="SAM 3 is a model of transformers")

NAMES = ["q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2"]


@pytest.fixture(scope="module")
def full_size() -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.Sam3Model(transformers.Sam3Config())


def selected(model: torch.nn.Module, *entries: str) -> list[str]:
    return list(find_targets(model, model_spec("sam3").expand_targets(entries)))


def test_names_of_its_own_code_select_what_they_mean_there(full_size):
    config = LoraConfig(method="lora", rank=8, target_modules=model_spec("sam3").expand_targets(NAMES))
    adapters = new_adapters(full_size, config)
    assert len(adapters) == 178
    assert sum(p.numel() for a in adapters.values() for p in a.adapter_parameters()) == 1_159_168
    parts = ("geometry_encoder.", "detr_encoder.", "detr_decoder.", "mask_decoder.")
    assert all(name.startswith(parts) for name in adapters)


def test_encoders_are_adapted_where_a_pattern_names_them(full_size):
    found = selected(full_size, "text_encoder.*.q_proj", "vision_encoder.*.q_proj")
    assert len(found) == 24 + 32


def test_all_leaves_out_the_layer_that_is_never_used(full_size):
    found = selected(full_size, "all")
    assert len(found) == 537 and "text_encoder.text_projection" not in found and "text_projection" in found


def test_the_default_is_attention_of_encoder_and_decoder(full_size):
    found = selected(full_size, *model_spec("sam3").default_targets)
    assert len(found) == 2 * 4 * 6 + 3 * 4 * 6
