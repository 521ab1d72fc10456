"""Utilization counts selections, decision by decision and frame by frame; pruning is scored on a whole model."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from src.config import LoraConfig, MotionConfig
from src.data.records import DataSet, ObjectTrack
from src.data.synthetic import SOURCE, make_videos
from src.evaluation.domains import Domain
from src.evaluation.expert_report import as_json, heat_maps_of, summary
from src.evaluation.expert_utilization import (
    NULL,
    DomainUtilization,
    GroupUtilization,
    LayerUtilization,
    Pruning,
    dead_experts,
    mean_overlap,
    mean_utilization,
    measure_pruning,
    measure_utilization,
    overlap,
)
from src.evaluation.results import DomainResult
from src.lora.expert_groups import add_adapter, group_adapters
from src.lora.recording import record_routing
from src.tasks.tracking.evaluation import evaluate_domain
from tests.errors import refuses

QUERY = "memory_attention.layers.0.self_attn.q_proj"
KEY = "memory_attention.layers.0.cross_attn_image.k_proj"
TOKENS = 16  # of a frame at 64 pixels
FRAMES = 3
SCORE = partial(evaluate_domain, prompt="mask")


@pytest.fixture(scope="module")
def domain() -> Domain:
    """Two clips of one object each, prompted on frame 0."""
    clips = make_videos(SOURCE, 2, 0, frames=FRAMES, side=64).videos
    one_object = [replace(video, objects=video.objects[:1]) for video in clips]
    assert all(video.objects[0].segmentations[0] is not None for video in one_object)
    return Domain("d", DataSet("d", one_object), FRAMES, 1, 64, MotionConfig())


@pytest.fixture
def with_experts(model):
    """``with_experts(**lora)``: the model with a group "g" of random experts; further groups by ``name=``."""
    adapted = copy.deepcopy(model)

    def make(name="g", **settings):
        config = LoraConfig(experts=3, top_k=2, rank=2).model_copy(update=settings)
        torch.manual_seed(len(name))
        for adapter in add_adapter(adapted, name, config).values():
            torch.nn.init.normal_(adapter.lora_B, std=0.3)
            torch.nn.init.normal_(adapter.gate.weight, std=0.3)
        return adapted.eval(), config

    return make


def router(**settings):
    return LoraConfig().router.model_copy(update=settings)


def never(model, expert):
    """Let no gate choose an expert."""
    for adapter in group_adapters(model, "g").values():
        with torch.no_grad():
            adapter.gate.bias[expert] = -1e6


def layer_utilization(*shares, decisions=1):
    share_E = np.array(shares)
    return LayerUtilization([str(e) for e in range(len(shares))], np.array([decisions]), share_E[None], np.array([0.5]))


def domain_utilization(name="d", group="g", **layers):
    return DomainUtilization(name, group, DomainResult({"J&F": 0.5, "J": 0.5, "F": 0.5}, []), layers)


def test_each_decision_counts_once_whatever_the_frame(with_experts, domain):
    model, _ = with_experts(router=router(null_expert=True))
    with record_routing(model) as routing:
        evaluate_domain(model, domain, "mask")
    utilization = measure_utilization(model, "g", domain, SCORE)
    assert list(utilization.layers) == list(group_adapters(model, "g"))
    for layer, of in utilization.layers.items():
        assert of.names == ["0", "1", "2", NULL]
        np.testing.assert_allclose(of.share_E, routing.utilization()[f"{layer}.groups.g"].numpy(), atol=1e-6)
        assert of.entropy == pytest.approx(routing.entropy()[f"{layer}.groups.g"], abs=1e-5)
        assert of.entropy_share == pytest.approx(of.entropy / math.log(4))
        assert of.null_share == of.share_E[-1]
    assert utilization.mean("null_share") > 0.05, "null is chosen in this test"
    keys = utilization.layers[KEY]
    assert keys.decisions_T[2] > keys.decisions_T[1] > TOKENS, "memory grows, so frames weigh differently in this test"
    assert not np.allclose(keys.share_E, np.nanmean(keys.share_TE, axis=0), atol=1e-4)


def test_memory_attention_has_no_use_where_objects_are_prompted(with_experts, domain):
    utilization = measure_utilization(with_experts()[0], "g", domain, SCORE).layers[QUERY]
    assert utilization.decisions_T.tolist() == [0, 2 * TOKENS, 2 * TOKENS]
    assert np.isnan(utilization.share_TE[0]).all()
    np.testing.assert_allclose(utilization.share_TE[1:].sum(axis=1), 1)


def test_frames_are_those_of_the_clip_not_since_the_prompt(with_experts, domain):
    model, _ = with_experts(target_modules=["memory_attention.*.q_proj", "image_encoder.trunk.blocks.0.attn.qkv"])
    late = [
        replace(video, objects=[ObjectTrack(o.object_id, [None, *o.segmentations[1:]]) for o in video.objects])
        for video in domain.data.videos
    ]
    utilization = measure_utilization(model, "g", replace(domain, data=DataSet("d", late)), SCORE)
    assert utilization.layers[QUERY].decisions_T.tolist() == [0, 0, 2 * TOKENS]
    encoder = utilization.layers["image_encoder.trunk.blocks.0.attn.qkv"]
    assert (encoder.decisions_T > 0).all(), "the encoder sees the first frame too"
    assert len(set(encoder.decisions_T.tolist())) == 1


def test_a_group_of_method_lora_has_no_experts(model, domain):
    adapted = copy.deepcopy(model)
    add_adapter(adapted, "g", LoraConfig(method="lora"))
    with refuses("experts.no-experts"):
        measure_utilization(adapted, "g", domain, SCORE)


def test_dead_experts_are_unused_on_every_domain():
    a = domain_utilization("a", x=layer_utilization(0.96, 0.02, 0.02), y=layer_utilization(0.4, 0.3, 0.3))
    b = domain_utilization("b", x=layer_utilization(0.50, 0.49, 0.01), y=layer_utilization(0.4, 0.3, 0.3))
    assert dead_experts([a, b], below=0.1) == {"x": [2]}
    assert dead_experts([a], below=0.1) == {"x": [1, 2]}
    silent = domain_utilization("c", x=layer_utilization(math.nan, math.nan, math.nan, decisions=0))
    assert dead_experts([silent], below=0.1) == {}
    assert dead_experts([silent, a], below=0.1) == {"x": [1, 2]}


def test_the_null_expert_is_never_dead():
    utilization = LayerUtilization(["0", "1", NULL], np.array([9]), np.array([[1.0, 0.0, 0.0]]), np.array([0.0]))
    assert dead_experts([domain_utilization(x=utilization)], below=0.1) == {"x": [1]}


def test_domains_count_the_same_however_large():
    utilizations = [
        domain_utilization("a", x=layer_utilization(1.0, 0.0, decisions=1000)),
        domain_utilization("b", x=layer_utilization(0.2, 0.8)),
    ]
    torch.testing.assert_close(mean_utilization(utilizations)["x"], torch.tensor([0.6, 0.4], dtype=torch.float64))


def test_overlap_is_one_less_total_variation():
    a = domain_utilization("a", x=layer_utilization(0.5, 0.5, 0.0), y=layer_utilization(1.0, 0.0))
    b = domain_utilization("b", x=layer_utilization(0.2, 0.5, 0.3), y=layer_utilization(0.0, 1.0))
    assert overlap(a, b) == pytest.approx({"x": 0.7, "y": 0.0})
    assert overlap(a, a) == pytest.approx({"x": 1.0, "y": 1.0})
    assert mean_overlap(a, b) == pytest.approx(0.35)
    assert math.isnan(
        mean_overlap(
            a, domain_utilization("c", "other", x=layer_utilization(0.5, 0.5, 0.0), y=layer_utilization(1.0, 0.0))
        )
    )


def test_projections_are_layers_of_one_last_name():
    utilization = domain_utilization(
        **{
            "0.q_proj": layer_utilization(1.0, 0.0),
            "1.q_proj": layer_utilization(0.5, 0.5),
            "0.k_proj": layer_utilization(1, 0),
        }
    )
    parts = utilization.by_projection()
    assert {name: list(part.layers) for name, part in parts.items()} == {
        "q_proj": ["0.q_proj", "1.q_proj"],
        "k_proj": ["0.k_proj"],
    }
    assert parts["q_proj"].mean("entropy") == 0.5


def test_pruning_unused_experts_costs_nothing_and_used_ones_are_kept(with_experts, domain):
    model, config = with_experts()
    never(model, 1)
    utilization = measure_utilization(model, "g", domain, SCORE)
    pruning = measure_pruning(model, config, [utilization], [domain], SCORE, [2, 1, 3])
    assert list(pruning.results) == [3, 2, 1]
    assert pruning.change(2, "d") == 0
    assert all(kept == [0, 2] for kept in pruning.kept[2].values())
    assert pruning.results[1]["d"].scores != utilization.result.scores, "one expert is too few in this test"
    low, high = pruning.interval(1, "d")
    assert low <= pruning.change(1, "d") <= high
    assert [adapter.num_experts for adapter in group_adapters(model, "g").values()] == [3] * 16
    assert evaluate_domain(model, domain, "mask").scores == utilization.result.scores, "all experts are back"


def test_the_fewest_experts_that_no_domain_suffers_from():
    def results(**scores):
        return {name: DomainResult({"J&F": score}, []) for name, score in scores.items()}

    measured = {8: results(a=0.5, b=0.5), 4: results(a=0.6, b=0.496), 2: results(a=0.7, b=0.4)}
    pruning = Pruning(8, {}, measured)
    assert [pruning.recommended(tolerance) for tolerance in (0.0, 0.005, 0.2)] == [8, 4, 2]


def test_groups_of_different_sizes_are_reported_side_by_side(with_experts, domain, tmp_path):
    model, config = with_experts()
    model, other = with_experts("other", experts=2, router=router(null_expert=True))
    utilizations = [
        measure_utilization(model, "g", domain, SCORE),
        measure_utilization(model, "other", replace(domain, name="e"), SCORE),
    ]
    groups = {
        "g": GroupUtilization(config, utilizations[:1], {}, None),
        "other": GroupUtilization(other, utilizations[1:], {QUERY: [1]}, None),
    }
    content = json.loads(json.dumps(as_json(groups, {"tolerance": 0.0}), allow_nan=False))
    assert content["domains"]["d"]["layers"][QUERY]["experts"] == ["0", "1", "2"]
    assert content["domains"]["e"]["layers"][QUERY]["experts"] == ["0", "1", NULL]
    assert content["domains"]["e"]["layers"][QUERY]["frames"][0] is None
    assert content["overlap"]["mean"] == {"d": {"d": 1.0, "e": None}, "e": {"d": None, "e": 1.0}}
    assert set(heat_maps_of(utilizations)) == {"use_d", "frames_d", "use_e", "frames_e"}, "nothing to overlap"
    text = summary(groups, 0.1, 0.005)
    assert "dead experts of group g, with less than 0.1 of the even share on every domain: none" in text
    assert "q_proj: 1" in text


def test_layers_of_different_sizes_leave_cells_empty():
    null = LayerUtilization(["0", NULL], np.array([4]), np.array([[0.5, 0.5]]), np.array([0.1]))
    utilization = domain_utilization(**{"m.x": layer_utilization(0.7, 0.2, 0.1), "m.y": null})
    axes = heat_maps_of([utilization])["use_d"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", NULL]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    empty = np.ma.getmaskarray(axes.images[0].get_array())
    assert empty.tolist() == [[False, False, False, True], [False, True, True, False]]
