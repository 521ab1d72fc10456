import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from src.lora.moe_layer import MoELoRALinear
from src.lora.routing import (
    GateCall,
    RoutingRecord,
    TopKGatingNetwork,
    load_balancing_loss,
    record_routing,
    router_z_loss,
)


def gate_with_logits(logits_E, **options):
    """A gate whose logits are the same for every token."""
    gate = TopKGatingNetwork(3, len(logits_E) - options.get("null_expert", False), **options)
    nn.init.zeros_(gate.weight)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor(logits_E))
    return gate


def call(logits, chosen, num_experts=None):
    logits = torch.tensor(logits, requires_grad=True)
    return GateCall(logits, torch.tensor(chosen), num_experts or logits.shape[-1])


def test_gates_are_the_softmax_over_the_chosen_logits():
    gate = gate_with_logits([0.0, 2.0, 1.0, -5.0], top_k=2)
    gates, logits = gate(torch.randn(2, 5, 3))
    first = math.e / (1 + math.e)
    torch.testing.assert_close(gates, torch.tensor([0.0, first, 1 - first, 0.0]).expand(2, 5, 4))
    assert logits.shape == (2, 5, 4)


def test_a_chosen_null_expert_takes_its_share_of_the_weight():
    gates, logits = gate_with_logits([0.0, 2.0, 2.0], top_k=2, null_expert=True)(torch.randn(5, 3))
    torch.testing.assert_close(gates, torch.tensor([0.0, 0.5]).expand(5, 2))
    assert logits.shape == (5, 3)


def test_a_null_expert_that_is_not_chosen_changes_nothing():
    gates, _ = gate_with_logits([0.0, 2.0, -9.0], top_k=1, null_expert=True)(torch.randn(5, 3))
    torch.testing.assert_close(gates, torch.tensor([0.0, 1.0]).expand(5, 2))


def test_the_gate_is_float32_whatever_comes_in():
    gate = TopKGatingNetwork(3, 4, top_k=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates, logits = gate(torch.randn(5, 3).bfloat16())
    assert gates.dtype == logits.dtype == torch.float32
    gates, logits = gate.bfloat16()(torch.randn(5, 3).bfloat16())
    assert gates.dtype == logits.dtype == torch.float32


def test_jitter_is_bounded_and_for_training_only():
    torch.manual_seed(0)
    gate = TopKGatingNetwork(1, 1, top_k=1, jitter=0.1, bias=False)
    nn.init.ones_(gate.weight)
    x = torch.full((2000, 1), 10.0)
    _, logits = gate(x)
    assert 9.0 <= logits.min() < 9.1
    assert 10.9 < logits.max() <= 11.0
    gate.eval()
    assert torch.equal(gate(x)[1], x)


def test_without_bias_there_is_no_bias():
    assert [name for name, _ in TopKGatingNetwork(3, 4, top_k=2, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_experts": 0, "top_k": 1}, "num_experts"),
        ({"num_experts": 3, "top_k": 0}, "top_k must be within 1 and 3"),
        ({"num_experts": 3, "top_k": 4}, "top_k must be within 1 and 3"),
        ({"num_experts": 3, "top_k": 5, "null_expert": True}, "top_k must be within 1 and 4"),
        ({"num_experts": 3, "top_k": 1, "jitter": -0.1}, "jitter"),
    ],
)
def test_wrong_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TopKGatingNetwork(4, **wrong)


def test_balance_by_hand():
    # Both tokens choose expert 0: f = (1, 0). P = mean of (3/4, 1/4) and (1/2, 1/2) = (5/8, 3/8).
    record = RoutingRecord({"layer": [call([[math.log(3.0), 0.0], [0.0, 0.0]], [[0], [0]])]})
    assert load_balancing_loss(record).item() == pytest.approx(2 * 5 / 8)


def test_balance_is_one_when_even_and_E_over_K_when_collapsed():
    even = call([[0.0] * 4] * 2, [[0, 1], [2, 3]])
    collapsed = call([[50.0, 50.0, -50.0, -50.0]] * 2, [[0, 1], [1, 0]])
    assert load_balancing_loss(RoutingRecord({"a": [even]})).item() == pytest.approx(1.0)
    assert load_balancing_loss(RoutingRecord({"a": [collapsed]})).item() == pytest.approx(2.0)
    both = RoutingRecord({"a": [even], "b": [collapsed], "never called": []})
    assert load_balancing_loss(both).item() == pytest.approx(1.5)


def test_balance_pools_the_calls_of_a_layer():
    # Each call alone is collapsed; together they are even.
    first = call([[50.0, -50.0]] * 3, [[0]] * 3)
    second = call([[-50.0, 50.0]] * 3, [[1]] * 3)
    assert load_balancing_loss(RoutingRecord({"a": [first, second]})).item() == pytest.approx(1.0)


def test_minimising_the_balance_loss_balances():
    torch.manual_seed(0)
    x = torch.randn(512, 8) + 1
    gate = TopKGatingNetwork(8, 4, top_k=1)
    with torch.no_grad():
        gate.bias[0] = 2.0
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for step in range(60):
        with record_routing(gate) as routing:
            gate(x)
        if step == 0:
            assert routing.usage()[""].max() > 0.95
        loss = load_balancing_loss(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert routing.usage()[""].max() < 0.4


def test_balance_is_asked_among_the_experts_given_that_null_was_not_chosen():
    # Token 0 chooses expert 0 and null, token 1 chooses null only in effect (weight 0), token 2 both experts.
    logits = [[math.log(3.0), 0.0, 1.0], [5.0, -5.0, 9.0], [0.0, 0.0, -2.0]]
    three = call(logits, [[0, 2], [0, 2], [0, 1]], num_experts=2)
    sure = math.e**5 / (math.e**5 + math.e**-5)
    # Choices of experts: 0, 0, 0, 1, so f = (3/4, 1/4); tokens weigh 1, 1, 2 in P.
    p_0 = (3 / 4 + sure + 2 * (1 / 2)) / 4
    expected = 2 * (3 / 4 * p_0 + 1 / 4 * (1 - p_0))
    loss = load_balancing_loss(RoutingRecord({"a": [three]}))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert not three.logits_NE.grad[:, 2].any()
    assert three.logits_NE.grad[:, :2].any()


def test_tokens_that_choose_only_null_say_nothing_about_balance():
    even = [[0.0, 0.0, -1.0]] * 2
    without = call(even, [[0], [1]], num_experts=2)
    with_null = call([*even, [9.0, 0.0, 10.0]], [[0], [1], [2]], num_experts=2)
    assert load_balancing_loss(RoutingRecord({"a": [without]})).item() == pytest.approx(1.0)
    assert load_balancing_loss(RoutingRecord({"a": [with_null]})).item() == pytest.approx(1.0)
    only_null = call([[9.0, 0.0, 10.0]], [[2]], num_experts=2)
    loss = load_balancing_loss(RoutingRecord({"a": [only_null]}))
    loss.backward()
    assert loss.item() == 0


def test_z_loss_by_hand():
    # logsumexp of (0, 0) is log 2, of (log 3, 0) is log 4 = 2 log 2.
    a = call([[0.0, 0.0], [math.log(3.0), 0.0]], [[0], [0]])
    b = call([[0.0, 0.0]], [[0]])
    record = RoutingRecord({"a": [a], "b": [b]})
    log2 = math.log(2)
    expected = ((log2**2 + (2 * log2) ** 2) / 2 + log2**2) / 2
    assert router_z_loss(record).item() == pytest.approx(expected)


def test_losses_of_nothing_are_zero():
    for record in (RoutingRecord(), RoutingRecord({"a": []}), RoutingRecord({"a": [call([[0.0]], [[0]])][:0]})):
        assert load_balancing_loss(record).item() == router_z_loss(record).item() == 0


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
    assert layers["second"].chosen_NK.shape == (13, 2)
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
    model["first"].gate.register_forward_hook(lambda *_: forwards.append(1))
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
    usage = RoutingRecord({"a": calls, "idle": []}).usage()
    assert list(usage) == ["a"]
    torch.testing.assert_close(usage["a"], torch.tensor([4 / 8, 3 / 8, 1 / 8]))


def test_entropy_by_hand():
    record = RoutingRecord({"a": [call([[0.0] * 4, [100.0, 0.0, 0.0, 0.0]], [[0], [0]])]})
    assert record.entropy()["a"] == pytest.approx(math.log(4) / 2)
