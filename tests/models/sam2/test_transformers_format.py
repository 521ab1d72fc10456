"""In Hugging Face transformers the same weights give the same features, masks, scores and tracks as in stock SAM 2.

Both are given the same pixel values. Encoder features are equal bit for bit; after them sums are in another order, and
memories are rounded to bfloat16, so masks differ by about 1e-6 of their size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from torch.overrides import TorchFunctionMode

from src.config import ModelConfig
from src.data.synthetic import CELLS, make_videos
from src.lora.adapter_io import base_fingerprint
from src.models.sam2 import transformers_format
from src.models.sam2.build import build_model
from src.models.sam2.inference_state import new_state
from src.models.sam2.predictors import image_predictor
from src.models.sam2.transformers_format import (
    FINGERPRINT,
    MINIMUM_VERSION,
    load_transformers,
    sam2_state_dict,
    save_transformers,
    transformers_config,
    transformers_name,
    transformers_state_dict,
)
from src.tasks.tracking.predict import predicting
from tests.errors import refuses

transformers = pytest.importorskip(
    "transformers", MINIMUM_VERSION, f"transformers (optional) {MINIMUM_VERSION} or newer is not installed"
)

SIZES = ["sam2.1_hiera_tiny", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2.1_hiera_large"]
FRAMES = [source.read() for source in make_videos(CELLS, 1, 0, frames=5, side=64).videos[0].frames]
POINTS, LABELS, BOX = [[20.0, 30.0], [50.0, 12.0]], [1, 0], [8.0, 10.0, 40.0, 44.0]


@pytest.fixture(scope="module")
def model(nano_for_transformers) -> SAM2Base:
    return build_model(nano_for_transformers).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_transformers(model, folder)
    return folder


@pytest.fixture(scope="module", params=["Sam2VideoModel", "Sam2Model"])
def loaded(request, folder) -> Any:
    return getattr(transformers, request.param).from_pretrained(folder)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, in units of what is expected to be the largest value; nothing is compared with a constant."""
    assert expected.std() > 1e-3
    return ((found - expected).abs().max() / expected.abs().max()).item()


class WithoutInitialisation(TorchFunctionMode):
    """Large models quickly: what torch.nn.init would fill stays as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SIZES)
def test_every_weight_of_the_official_sizes_has_its_place(name, monkeypatch):
    monkeypatch.setattr(transformers_format, "base_fingerprint", lambda model: "not measured")
    with WithoutInitialisation():
        weights = (model := build_model(ModelConfig(name=name, image_size=256))).state_dict()
    with torch.device("meta"):
        expected = transformers.Sam2VideoModel(transformers_config(model)).state_dict()
    found = transformers_state_dict(weights)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    back = sam2_state_dict(found)
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in weights.items()}


def test_the_config_of_tiny_is_what_transformers_takes_by_default(monkeypatch):
    monkeypatch.setattr(transformers_format, "base_fingerprint", lambda model: "not measured")
    with WithoutInitialisation():
        ours = transformers_config(build_model(ModelConfig(name="sam2.1_hiera_tiny"))).to_dict()
    assert ours.pop(FINGERPRINT) == "not measured"
    assert ours == transformers.Sam2VideoConfig().to_dict()


def test_weights_come_back_bit_for_bit_and_say_which_base_they_are(model, folder):
    loaded = transformers.Sam2VideoModel.from_pretrained(folder)
    weights, back = model.state_dict(), sam2_state_dict(loaded.state_dict())
    assert weights.keys() == back.keys()
    assert all(torch.equal(weights[name], back[name]) for name in weights)
    assert getattr(loaded.config, FINGERPRINT) == base_fingerprint(model)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("memory_attention.layers.3.cross_attn_image.out_proj", "memory_attention.layers.3.cross_attn_image.o_proj"),
        ("image_encoder.trunk.blocks.11.mlp.layers.1.weight", "vision_encoder.backbone.blocks.11.mlp.proj_out.weight"),
        (
            "sam_mask_decoder.output_hypernetworks_mlps.2.layers.1.bias",
            "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias",
        ),
    ],
)
def test_names(ours, theirs):
    assert transformers_name(ours) == theirs


@pytest.mark.parametrize("name", ["memory_attention.layers.0.self_attn", "nothing", "xmask_downsample.weight"])
def test_a_name_that_sam2_does_not_have_is_refused(name):
    with refuses("transformers.unknown-name"):
        transformers_name(name)


def test_image_features_are_equal_bit_for_bit(model, loaded):
    pixels = torch.randn(2, 3, 64, 64)
    levels = model.forward_image(pixels)["backbone_fpn"]
    found = loaded.get_image_features(pixels).fpn_hidden_states
    for level_BCHW, found_NBC in zip(levels, found, strict=True):
        assert torch.equal(level_BCHW.flatten(2), found_NBC.permute(1, 2, 0))


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("prompt", ["points", "box"])
def test_masks_and_scores_of_an_image(model, folder, prompt, several):
    predictor = image_predictor(model)
    predictor.set_image(FRAMES[0])
    given = {"point_coords": np.array(POINTS), "point_labels": np.array(LABELS)}
    _, scores, logits = predictor.predict(
        **(given if prompt == "points" else {"box": np.array(BOX)}), multimask_output=several, return_logits=True
    )
    found = transformers.Sam2Model.from_pretrained(folder)(
        predictor._transforms(FRAMES[0])[None],
        **(
            {"input_points": torch.tensor([[POINTS]]), "input_labels": torch.tensor([[LABELS]])}
            if prompt == "points"
            else {"input_boxes": torch.tensor([[BOX]])}
        ),
        multimask_output=several,
    )
    assert found.iou_scores[0, 0].tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    assert difference(found.pred_masks[0, 0].clamp(-32, 32), torch.from_numpy(logits)) < 1e-5  # as stock SAM 2 clips


def test_the_processor_makes_the_pixels_that_the_model_was_trained_on(model, folder):
    inputs = transformers.Sam2Processor.from_pretrained(folder)(
        images=FRAMES[0], input_points=[[POINTS]], return_tensors="pt"
    )
    expected = image_predictor(model)._transforms(FRAMES[0])
    assert difference(inputs["pixel_values"][0], expected) < 1e-6
    assert inputs["input_points"].tolist() == [[POINTS]]


@pytest.mark.parametrize("name", ["sam2_nano", "sam2.1_hiera_tiny"])
def test_tracked_masks_of_a_video(model, folder, tmp_path, name):
    """Two objects, one by clicks and one by a box; tiny also splits object pointers into tokens of a memory's size."""
    if name != "sam2_nano":
        torch.manual_seed(0)
        model, folder = build_model(ModelConfig(name=name, image_size=64)).eval(), tmp_path
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        model.sam_mask_decoder.pred_obj_score_head.layers[2].bias += 10
        save_transformers(model, folder)
    with predicting(model) as predictor:
        state = new_state(predictor, FRAMES)
        pixels = torch.stack([state["images"][t] for t in range(len(FRAMES))])
        predictor.add_new_points_or_box(state, 0, 1, points=np.array(POINTS, np.float32), labels=np.array(LABELS))
        predictor.add_new_points_or_box(state, 0, 2, box=np.array(BOX, np.float32))
        expected = torch.stack([logits for _, _, logits in predictor.propagate_in_video(state)])

    loaded = transformers.Sam2VideoModel.from_pretrained(folder)
    processor = transformers.Sam2VideoProcessor.from_pretrained(folder)
    session = transformers.Sam2VideoInferenceSession(pixels, 64, 64, dtype=torch.float32)
    processor.add_inputs_to_inference_session(session, 0, 1, input_points=[[POINTS]], input_labels=[[LABELS]])
    loaded(session, 0)
    processor.add_inputs_to_inference_session(session, 0, 2, input_boxes=[[BOX]])
    loaded(session, 0)
    tracked = [found.pred_masks for found in loaded.propagate_in_video_iterator(session)]
    found = torch.stack([processor.post_process_masks([masks], [(64, 64)], binarize=False)[0] for masks in tracked])
    assert found.shape == expected.shape == (5, 2, 1, 64, 64)
    assert difference(found, expected) < 1e-4


@pytest.mark.parametrize(
    ("package", "code"), [(None, "transformers.missing"), (ModuleType("transformers"), "transformers.too-old")]
)
def test_transformers_missing_or_too_old_is_said(monkeypatch, package, code):
    if package is not None:
        package.__version__ = "4.40.0"
    monkeypatch.setitem(sys.modules, "transformers", package)
    with refuses(code) as caught:
        load_transformers()
    assert MINIMUM_VERSION in str(caught.value)
