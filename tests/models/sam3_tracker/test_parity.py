"""With the same random weights, transformers' SAM 3 tracker computes the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam3TrackerVideoModel
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from src.config import LoraConfig, ModelConfig
from src.lora.injection import apply_method
from src.models.build import build_model

FRAMES = 4
PROMPTS: dict[str, list[Any]] = {  # of two objects, in units of a 56-pixel frame
    "click": [([[20.0, 25.0], [35.0, 30.0]], [1, 0]), ([[40.0, 11.5]], [1])],
    "box": [([[10.0, 12.0], [33.0, 40.0]], [2, 3]), ([[30.0, 5.0], [50.0, 22.0]], [2, 3])],
    "mask": [(slice(10, 40), slice(12, 33)), (slice(5, 22), slice(30, 50))],
}


@pytest.fixture(scope="module", params=[56, 112])
def pair(request: pytest.FixtureRequest, sam3_tracker_folder: str) -> tuple[Any, Sam3TrackerVideoModel]:
    """The tracker as it is built here and as transformers builds it, for frames of the same size."""
    from tests.sam3 import tiny_tracker

    model = build_model(
        ModelConfig(name="sam3_tracker", checkpoint=sam3_tracker_folder, image_size=request.param)
    ).eval()
    return model, tiny_tracker(request.param)


def video(side: int) -> Tensor:
    noise = torch.randn(FRAMES, 3, side, side, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1)


def inputs(kind: str, prompt: Any, side: int) -> dict[str, Tensor]:
    """Return an object's prompt in pixels of the frame."""
    if kind == "mask":
        mask = torch.zeros(1, 1, 56, 56)
        mask[0, 0][prompt] = 1
        return {"mask": mask.repeat_interleave(side // 56, 2).repeat_interleave(side // 56, 3)}
    points, labels = prompt
    return {"points": torch.tensor(points)[None] * side / 56, "labels": torch.tensor(labels, dtype=torch.int32)[None]}


@torch.inference_mode()
def ours(model: Any, frames: Tensor, kind: str, prompt: dict[str, Tensor]) -> list[Tensor]:
    """Track an object as ``SAM2VideoPredictor`` does, which keeps memories in bfloat16 as transformers does."""
    outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    side = frames.shape[-1]
    points = mask = None
    if kind == "mask":
        mask = torch.nn.functional.interpolate(prompt["mask"], (model.image_size,) * 2, mode="bilinear", antialias=True)
    else:
        points = {"point_coords": prompt["points"] * model.image_size / side, "point_labels": prompt["labels"]}
    found = []
    for t, frame in enumerate(frames):
        _, features, positions, sizes = model._prepare_backbone_features(model.forward_image(frame[None]))
        output = model.track_step(
            frame_idx=t, is_init_cond_frame=t == 0, current_vision_feats=features, current_vision_pos_embeds=positions,
            feat_sizes=sizes, point_inputs=None if t else points, mask_inputs=None if t else mask,
            output_dict=outputs, num_frames=FRAMES, run_mem_encoder=True,
        )  # fmt: skip
        output["maskmem_features"] = output["maskmem_features"].to(torch.bfloat16)
        outputs["non_cond_frame_outputs" if t else "cond_frame_outputs"][t] = output
        found.append(output["pred_masks"])
    return found


@torch.inference_mode()
def theirs(model: Sam3TrackerVideoModel, frames: Tensor, kind: str, prompts: list[dict[str, Tensor]]) -> list[Tensor]:
    side = frames.shape[-1]
    session = Sam3TrackerVideoInferenceSession(video=frames, video_height=side, video_width=side, dtype=torch.float32)
    for number, prompt in enumerate(prompts, 1):
        index = session.obj_id_to_idx(number)
        if kind == "mask":
            session.add_mask_inputs(index, 0, prompt["mask"])
        else:
            points = {"point_coords": prompt["points"][None], "point_labels": prompt["labels"][None]}
            session.add_point_inputs(index, 0, points)
        session.obj_with_new_inputs.append(number)
    return [model(session, frame_idx=t).pred_masks for t in range(FRAMES)]


def test_image_features_are_equal(pair):
    model, reference = pair
    frames = video(reference.config.image_size)
    with torch.no_grad():
        found, expected = model.forward_image(frames), reference.get_image_features(frames)
    for name, values in (
        ("backbone_fpn", expected.fpn_hidden_states),
        ("vision_pos_enc", expected.fpn_position_encoding),
    ):
        for level, value in zip(found[name], values, strict=True):
            assert torch.equal(level.flatten(2).permute(2, 0, 1), value), name


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_are_those_of_transformers(pair, kind, monkeypatch):
    model, reference = pair
    if kind == "mask":  # which transformers takes at the frame's size, and Meta's predictor and this one at memory's
        given = reference._use_mask_as_output

        def at_memory_size(*arguments: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(reference, "image_size", model.image_size)
                return given(*arguments)

        monkeypatch.setattr(reference, "_use_mask_as_output", at_memory_size)
    frames = video(reference.config.image_size)
    prompts = [inputs(kind, prompt, frames.shape[-1]) for prompt in PROMPTS[kind]]
    expected = torch.stack(theirs(reference, frames, kind, prompts))
    found = torch.stack(
        [torch.cat(frame) for frame in zip(*(ours(model, frames, kind, p) for p in prompts), strict=True)]
    )
    largest = expected.abs().amax()
    assert (found[0] - expected[0]).abs().max() < 1e-6
    assert (found - expected).abs().max() < 1e-3 * largest


@pytest.mark.parametrize("method", ["mope", "lora"])
def test_untrained_adapters_change_nothing(pair, method):
    model, reference = pair
    frames = video(reference.config.image_size)
    prompt = inputs("box", PROMPTS["box"][0], frames.shape[-1])
    before = ours(model, frames, "box", prompt)
    model = copy.deepcopy(model)
    adapters = apply_method(model, LoraConfig(method=method, target_modules=["all"]), ())
    assert any(name.startswith("image_encoder.") for name in adapters)
    assert all(map(torch.equal, ours(model.eval(), frames, "box", prompt), before))
