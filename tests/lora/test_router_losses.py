import math

import pytest
import torch

from src.lora.recording import RoutingRecord, record_routing
from src.lora.router import TopKGatingNetwork
from src.lora.router_losses import load_balancing_loss, router_z_loss
from tests.lora.routing import call


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
            assert routing.utilization()[""].max() > 0.95
        loss = load_balancing_loss(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert routing.utilization()[""].max() < 0.4


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


def test_shares_of_parts_add_up_to_the_losses_of_the_whole():
    first = call([[1.0, 0.0, 0.3], [0.0, 2.0, 0.1]], [[0, 2], [1, 2]], num_experts=2)
    second = call([[0.5, -1.0, 0.2]], [[0, 1]], num_experts=2)
    whole, *parts = (RoutingRecord({"a": calls}) for calls in ([first, second], [first], [second]))
    for loss in (load_balancing_loss, router_z_loss):
        shares = [loss(part, whole.expert_counts()).item() for part in parts]
        assert sum(shares) == pytest.approx(loss(whole).item())


def test_losses_of_nothing_are_zero():
    for record in (RoutingRecord(), RoutingRecord({"a": []}), RoutingRecord({"a": [call([[0.0]], [[0]])][:0]})):
        assert load_balancing_loss(record).item() == router_z_loss(record).item() == 0
