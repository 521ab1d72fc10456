import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from src.lora.moe_layer import MoELoRALinear
from src.lora.recording import RoutingRecord, record_routing
from src.lora.router_losses import load_balancing_loss, router_z_loss
from tests.lora.routing import call


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "first": MoELoRALinear(nn.Linear(6, 6), num_experts=4),
            "second": MoELoRALinear(nn.Linear(6, 6), num_experts=3, null_expert=True),
            "idle": MoELoRALinear(nn.Linear(6, 6), num_experts=3),
        }
    )


def run(model, x, **checkpointing):
    for name in ("first", "second"):
        x = checkpoint(model[name], x, **checkpointing) if checkpointing else model[name](x)
    return x


def test_the_record_names_layers_and_keeps_every_call(model):
    with record_routing(model) as routing:
        run(model, torch.randn(2, 5, 6))
        run(model, torch.randn(3, 6))
        run(model, torch.randn(0, 6))
    assert [len(calls) for calls in routing.calls.values()] == [3, 3, 0]
    assert list(routing.calls) == ["first", "second", "idle"]
    layers = routing.layers()
    assert list(layers) == ["first", "second"]
    assert layers["first"].logits_NE.shape == (13, 4)
    assert layers["second"].logits_NE.shape == (13, 4)
    assert layers["second"].selected_NK().shape == (13, 2)
    assert layers["second"].num_experts == 3


def test_nothing_is_recorded_outside_the_scope_or_after_an_exception(model):
    x = torch.randn(5, 6)
    with pytest.raises(KeyError), record_routing(model) as routing:
        raise KeyError
    run(model, x)
    assert not any(routing.calls.values())
    assert not model["first"].gate.recorders


def test_scopes_nest(model):
    x = torch.randn(5, 6)
    with record_routing(model) as outer:
        with record_routing(model) as inner:
            pass
        run(model, x)
        with record_routing(model) as second:
            run(model, x)
        run(model, x)
    assert [len(record.calls["first"]) for record in (outer, inner, second)] == [3, 0, 1]


def test_disabled_layers_are_not_recorded(model):
    model["first"].enabled = False
    with record_routing(model) as routing:
        run(model, torch.randn(5, 6))
    assert [len(calls) for calls in routing.calls.values()] == [0, 1, 0]


def test_recomputation_under_checkpointing_counts_once_and_gives_the_same_gradients(model):
    x = torch.randn(5, 6)
    gradients, forwards = [], []
    model["first"].register_forward_pre_hook(lambda *_: forwards.append(1))
    for checkpointing in ({}, {"use_reentrant": False}):
        model.zero_grad()
        forwards.clear()
        with record_routing(model) as routing:
            out = run(model, x, **checkpointing)
            (out.sum() + load_balancing_loss(routing) + router_z_loss(routing)).backward()
        assert [len(calls) for calls in routing.calls.values()] == [1, 1, 0]
        gradients.append([p.grad.clone() for p in model["first"].adapter_parameters()])
    assert len(forwards) == 2, "the layer was not recomputed, so this test shows nothing"
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)
    assert gradients[0][2].any()


def test_usage_by_hand():
    calls = [call([[0.0] * 3] * 2, [[0, 1], [0, 2]], num_experts=2), call([[0.0] * 3] * 2, [[0, 1], [1, 0]], 2)]
    usage = RoutingRecord({"a": calls, "idle": []}).utilization()
    assert list(usage) == ["a"]
    torch.testing.assert_close(usage["a"], torch.tensor([4 / 8, 3 / 8, 1 / 8]))


def test_entropy_by_hand():
    record = RoutingRecord({"a": [call([[0.0] * 4, [100.0, 0.0, 0.0, 0.0]], [[0], [0]])]})
    assert record.entropy()["a"] == pytest.approx(math.log(4) / 2)
