"""Adapters in transformers' models: outputs as in stock SAM 2, switched on, off, by group and by the domain gate."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base

from src.config import LoraConfig
from src.data.synthetic import CELLS, SOURCE, make_videos
from src.gating.domain_gate import DomainGate, KnownDomain
from src.lora.adapter import disable_adapters, iter_adapter_layers
from src.lora.adapter_io import Configs, base_fingerprint, save_adapter
from src.lora.expert_groups import add_adapter, use_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from src.models.sam2.export import probe, probe_transformers, relative_difference
from src.models.sam2.gate_hooks import gate_features, to_pixels
from src.models.sam2.inference_state import DECISION
from src.models.sam2.predictors import image_predictor
from src.models.sam2.transformers_adapters import add_adapter_to_transformers
from src.models.sam2.transformers_format import FINGERPRINT, MINIMUM_VERSION, save_transformers
from tests.errors import refuses

transformers = pytest.importorskip(
    "transformers", MINIMUM_VERSION, f"transformers (optional) {MINIMUM_VERSION} or newer is not installed"
)

MOPE = {"method": "mope", "experts": 3, "top_k": 2, "rank": 2}
EVERYWHERE = LoraConfig(**MOPE, target_modules=["all"])
MEMORY = LoraConfig(**MOPE)
ENCODER = LoraConfig(method="lora", rank=2, target_modules=["image_encoder.*.attn.qkv", "sam_mask_decoder.*.v_proj"])
DECODER = LoraConfig(**MOPE, target_modules=["sam_mask_decoder.*.v_proj"])
KNOWN, STRANGE = (
    [frame.read() for frame in make_videos(domain, 1, 0, frames=3, side=64).videos[0].frames]
    for domain in (CELLS, SOURCE)
)
BOX = [8.0, 10.0, 40.0, 44.0]


@pytest.fixture(scope="module")
def exported(nano_for_transformers, tmp_path_factory) -> Path:
    """The base in transformers' form."""
    folder = tmp_path_factory.mktemp("exported")
    save_transformers(build_model(nano_for_transformers), folder)
    return folder


@pytest.fixture
def new_base(nano_for_transformers) -> SAM2Base:
    return build_model(nano_for_transformers).eval()


@pytest.fixture
def new_video_model(exported) -> Any:
    return functools.partial(transformers.Sam2VideoModel.from_pretrained, exported)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def learn(model: SAM2Base, lora: Configs, folder: Path) -> Path:
    """Adapters that are far from zero, in the model and in a folder."""
    torch.manual_seed(1)
    if isinstance(lora, LoraConfig):
        apply_method(model, lora)
    else:
        for name, config in lora.items():
            add_adapter(model, name, config)
    for _, adapter in iter_adapter_layers(model):
        torch.nn.init.normal_(adapter.lora_B, std=0.3)
    save_adapter(model.eval(), folder, lora, {})
    return folder


def knowing(model: SAM2Base, folder: Path, *domains: str) -> DomainGate:
    """A gate beside the adapters that knows, under the first name, the very frame KNOWN begins with."""
    gate = DomainGate(base_fingerprint(model))
    features_D = gate_features(model, to_pixels(model, KNOWN[0])[None])[0]
    for distance, name in enumerate(domains):
        known = features_D + 9 * distance
        gate.domains[name] = KnownDomain(known, torch.ones_like(known), torch.zeros(1, len(known)), threshold=1e-3)
    gate.save(folder)
    return gate


def tracked(model: Any, frames: list, exported: Path) -> tuple[torch.Tensor, Any]:
    """Masks of a box that is followed, and the session."""
    processor = transformers.Sam2VideoProcessor.from_pretrained(exported)
    session = processor.init_video_session(video=frames)
    processor.add_inputs_to_inference_session(session, 0, 1, input_boxes=[[BOX]])
    model(session, frame_idx=0)
    return torch.stack([found.pred_masks for found in model.propagate_in_video_iterator(session)]), session


@pytest.mark.parametrize(
    "lora",
    [EVERYWHERE, ENCODER],
    ids=["mope everywhere", "lora in the encoder"],
)
def test_a_video_model_computes_what_the_adapted_model_computes(new_base, new_video_model, exported, tmp_path, lora):
    before = probe(new_base)
    folder = learn(new_base, lora, tmp_path)
    model = new_video_model()
    base = probe_transformers(model, exported)
    assert add_adapter_to_transformers(model, folder).lora == lora
    expected = probe(new_base)
    assert relative_difference(expected, before) > 1e-2
    assert relative_difference(probe_transformers(model, exported), expected) < 1e-4
    with disable_adapters(model):
        off = probe_transformers(model, exported)
    assert all(torch.equal(off[name], base[name]) for name in base)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"{name}.{part}"
        for name, adapter in iter_adapter_layers(model)
        for part, _ in adapter.named_adapter_parameters()
    }


def test_expert_groups_are_activated_by_hand(new_base, new_video_model, exported, tmp_path):
    learn(new_base, {"cells": MEMORY, "polyps": ENCODER}, tmp_path)
    model = new_video_model()
    base = probe_transformers(model, exported)
    add_adapter_to_transformers(model, tmp_path)
    found = probe_transformers(model, exported)
    assert all(torch.equal(found[name], base[name]) for name in base)  # of several groups none is active
    for group in ("cells", "polyps"):
        with use_adapter(model, group), use_adapter(new_base, group):
            assert relative_difference(probe_transformers(model, exported), probe(new_base)) < 1e-4


class TestGate:
    def test_it_decides_for_each_session_on_the_prompted_frame(self, new_base, new_video_model, exported, tmp_path):
        learn(new_base, ENCODER, tmp_path)
        model = new_video_model()
        base_of = [tracked(model, frames, exported)[0] for frames in (KNOWN, STRANGE)]
        knowing(new_base, tmp_path, "cells")
        add_adapter_to_transformers(model, tmp_path)
        masks, session = tracked(model, KNOWN, exported)
        assert getattr(session, DECISION).domain == "cells"
        assert not torch.allclose(masks, base_of[0], atol=1e-3)
        masks, session = tracked(model, STRANGE, exported)
        assert getattr(session, DECISION).domain is None
        assert torch.equal(masks, base_of[1])
        assert all(adapter.enabled for _, adapter in iter_adapter_layers(model))

    def test_frames_given_one_by_one(self, new_base, new_video_model, exported, tmp_path):
        learn(new_base, ENCODER, tmp_path)
        knowing(new_base, tmp_path, "cells")
        add_adapter_to_transformers(model := new_video_model(), tmp_path)
        expected, _ = tracked(model, KNOWN, exported)
        processor = transformers.Sam2VideoProcessor.from_pretrained(exported)
        session, found = processor.init_video_session(), []
        for t, frame in enumerate(KNOWN):
            inputs = processor(images=frame, return_tensors="pt")
            if t == 0:
                processor.add_inputs_to_inference_session(
                    session, 0, 1, input_boxes=[[BOX]], original_size=inputs.original_sizes[0]
                )
            found.append(model(session, frame=inputs.pixel_values[0]).pred_masks)
        assert getattr(session, DECISION).domain == "cells"
        assert torch.equal(found[0], expected[0])

    def test_it_chooses_the_group(self, new_base, new_video_model, exported, tmp_path):
        learn(new_base, {"polyps": MEMORY, "cells": ENCODER}, tmp_path)
        by_hand = new_video_model()
        add_adapter_to_transformers(by_hand, tmp_path)
        knowing(new_base, tmp_path, "cells", "polyps")
        add_adapter_to_transformers(model := new_video_model(), tmp_path)
        with use_adapter(by_hand, "cells"):
            assert torch.equal(tracked(model, KNOWN, exported)[0], tracked(by_hand, KNOWN, exported)[0])

    @pytest.mark.parametrize("mode", ["off", "polyps"])
    def test_modes_overrule_it(self, new_base, new_video_model, exported, tmp_path, mode):
        learn(new_base, {"cells": ENCODER, "polyps": MEMORY}, tmp_path)
        by_hand = new_video_model()
        add_adapter_to_transformers(by_hand, tmp_path)
        knowing(new_base, tmp_path, "cells", "polyps")
        add_adapter_to_transformers(model := new_video_model(), tmp_path, gate=mode)
        with use_adapter(by_hand, None if mode == "off" else mode):
            assert torch.equal(tracked(model, KNOWN, exported)[0], tracked(by_hand, KNOWN, exported)[0])

    def test_a_gate_for_other_groups_leaves_the_model_as_it_was(self, new_base, new_video_model, tmp_path):
        learn(new_base, {"cells": MEMORY}, tmp_path)
        knowing(new_base, tmp_path, "polyps")
        with refuses("gate.other-groups"):
            add_adapter_to_transformers(model := new_video_model(), tmp_path)
        assert not any(iter_adapter_layers(model))


class TestImages:
    """Sam2Model: still images, without SAM 2's memory."""

    @pytest.fixture
    def new_model(self, exported) -> Any:
        return functools.partial(transformers.Sam2Model.from_pretrained, exported)

    def masks(self, model: Any, of: SAM2Base) -> torch.Tensor:
        pixels = image_predictor(of)._transforms(KNOWN[0])[None]
        return model(pixels, input_boxes=torch.tensor([[BOX]])).pred_masks[0, 0]

    def expected(self, model: SAM2Base) -> torch.Tensor:
        predictor = image_predictor(model)
        predictor.set_image(KNOWN[0])
        return torch.from_numpy(predictor.predict(box=np.array(BOX), return_logits=True)[2])

    def test_it_computes_what_the_adapted_model_computes(self, new_base, new_model, tmp_path, capsys):
        before = self.expected(new_base)
        learn(new_base, EVERYWHERE, tmp_path)
        add_adapter_to_transformers(model := new_model(), tmp_path)
        said = capsys.readouterr().out
        layers = [name for name, _ in iter_adapter_layers(new_base) if name.startswith(("memory_", "obj_ptr_"))]
        assert (
            f"{len(layers)} of {len(list(iter_adapter_layers(new_base)))} adapted layers are in SAM 2's memory" in said
        )
        expected = self.expected(new_base)
        assert not torch.allclose(expected, before, atol=1e-2)
        assert torch.allclose(self.masks(model, new_base).clamp(-32, 32), expected, atol=1e-4)

    def test_adapters_in_memory_alone_are_refused(self, new_base, new_model, tmp_path):
        learn(new_base, MEMORY, tmp_path)
        with refuses("transformers.only-memory"):
            add_adapter_to_transformers(new_model(), tmp_path)

    def test_it_asks_no_gate(self, new_base, new_model, tmp_path):
        base = self.masks(new_model(), new_base)
        learn(new_base, ENCODER, tmp_path)
        knowing(new_base, tmp_path, "cells")
        with refuses("transformers.gate-mode"):
            add_adapter_to_transformers(model := new_model(), tmp_path)
        assert torch.equal(self.masks(model, new_base), base)
        add_adapter_to_transformers(model, tmp_path, gate="off")
        assert torch.equal(self.masks(model, new_base), base)
        for mode in ("on", "cells"):
            add_adapter_to_transformers(model := new_model(), tmp_path, gate=mode)
            assert not torch.allclose(self.masks(model, new_base), base, atol=1e-3)

    def test_a_group_is_chosen_by_its_domain(self, new_base, new_model, tmp_path):
        learn(new_base, {"cells": DECODER, "polyps": ENCODER}, tmp_path)
        knowing(new_base, tmp_path, "cells", "polyps")
        with refuses("transformers.gate-mode") as caught:
            add_adapter_to_transformers(new_model(), tmp_path, gate="on")
        assert "cells, polyps" in str(caught.value)
        add_adapter_to_transformers(model := new_model(), tmp_path, gate="polyps")
        with use_adapter(new_base, "polyps"):
            assert torch.allclose(self.masks(model, new_base).clamp(-32, 32), self.expected(new_base), atol=1e-4)

    def test_it_must_say_which_base_it_is(self, new_base, new_model, tmp_path):
        learn(new_base, ENCODER, tmp_path)
        delattr((model := new_model()).config, FINGERPRINT)
        with refuses("transformers.base-unknown") as caught:
            add_adapter_to_transformers(model, tmp_path)
        assert FINGERPRINT in str(caught.value)


def test_adapters_of_another_base_are_refused(new_base, new_video_model, tmp_path):
    new_base.no_mem_embed += 1e-3
    learn(new_base, MEMORY, tmp_path)
    with refuses("adapter.other-base"):
        add_adapter_to_transformers(model := new_video_model(), tmp_path)
    assert not any(iter_adapter_layers(model))


def test_adapters_are_added_once_and_to_sam2(new_base, new_video_model, tmp_path):
    learn(new_base, MEMORY, tmp_path)
    add_adapter_to_transformers(model := new_video_model(), tmp_path)
    with pytest.raises(ValueError, match="added once"):
        add_adapter_to_transformers(model, tmp_path)
    with pytest.raises(ValueError, match="Sam3VideoModel is needed, not a Linear"):
        add_adapter_to_transformers(torch.nn.Linear(2, 2), tmp_path)
