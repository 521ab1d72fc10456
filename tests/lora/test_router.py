import math

import pytest
import torch
from torch import nn

from src.lora.router import TopKGatingNetwork


def gate_with_logits(logits_E, **options):
    """A gate whose logits are the same for every token."""
    gate = TopKGatingNetwork(3, len(logits_E) - options.get("null_expert", False), **options)
    nn.init.zeros_(gate.weight)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor(logits_E))
    return gate


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_experts": 0, "top_k": 1}, "num_experts"),
        ({"num_experts": 3, "top_k": 0}, "top_k must be within 1 and 3"),
        ({"num_experts": 3, "top_k": 4}, "top_k must be within 1 and 3"),
        ({"num_experts": 3, "top_k": 5, "null_expert": True}, "top_k must be within 1 and 4"),
    ],
)
def test_wrong_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TopKGatingNetwork(4, **wrong)


def test_defaults_decide_as_plain_top_k_does():
    torch.manual_seed(0)
    gate = TopKGatingNetwork(3, 5, top_k=2)
    x = torch.randn(4, 6, 3)
    top, chosen = torch.nn.functional.linear(x, gate.weight, gate.bias).topk(2)
    expected = torch.zeros(4, 6, 5).scatter(-1, chosen, top.softmax(-1))
    gates, _ = gate(x)
    assert torch.equal(gates > 0, expected > 0)
    torch.testing.assert_close(gates, expected, rtol=0, atol=1e-6)


def test_the_state_is_weight_and_bias():
    assert list(TopKGatingNetwork(3, 4, top_k=2).state_dict()) == ["weight", "bias"]
