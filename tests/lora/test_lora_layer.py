import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.lora.lora_layer import LoRALinear


def trained_layer(alpha=8.0, dtype=torch.float32, bias=True):
    """B random: an untrained layer would pass most of these tests whatever its branch does."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(12, 7, bias=bias, dtype=dtype), rank=3, alpha=alpha)
    nn.init.normal_(layer.lora_B)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_init_the_output_is_the_base_bit_for_bit(dtype):
    base = nn.Linear(12, 7, dtype=dtype)
    x = torch.randn(2, 5, 12, dtype=dtype)
    out = LoRALinear(base)(x)
    assert out.dtype == dtype
    assert torch.equal(out, base(x))


def test_output_by_hand():
    layer = LoRALinear(nn.Linear(2, 2), rank=1, alpha=3.0)
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.eye(2))
        layer.base_layer.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.copy_(torch.tensor([[1.0], [-1.0]]))
    # A x = 1 + 2 · 10 = 21; times alpha / rank = 3: ±63.
    torch.testing.assert_close(layer(torch.tensor([1.0, 10.0])), torch.tensor([1.5 + 63, 10.0 - 63]))
    torch.testing.assert_close(layer.get_delta_weight(), torch.tensor([[3.0, 6.0], [-3.0, -6.0]]))


def test_lora_A_starts_within_one_over_root_fan_in():
    bound = 1 / math.sqrt(400)
    largest = LoRALinear(nn.Linear(400, 8), rank=8).lora_A.abs().max().item()
    assert 0.95 * bound < largest <= bound


@pytest.mark.parametrize("bias", [True, False])
def test_merged_equals_unmerged(bias):
    layer = trained_layer(bias=bias)
    x = torch.randn(4, 12)
    unmerged = layer(x)
    layer.merge()
    assert layer.merged
    assert not torch.allclose(layer(x), layer.base_layer(x), atol=1e-2)
    torch.testing.assert_close(layer(x), unmerged)


def test_merging_three_times_is_merging_once():
    layer = trained_layer()
    layer.merge()
    once = layer.merged_weight.clone()
    layer.merge()
    layer.merge()
    assert torch.equal(layer.merged_weight, once)
    layer.unmerge()
    layer.unmerge()
    assert not layer.merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_restores_weight_and_output_bit_for_bit(dtype):
    layer = trained_layer(dtype=dtype)
    x = torch.randn(4, 12, dtype=dtype)
    weight, out = layer.base_layer.weight.clone(), layer(x)
    keys = set(layer.state_dict())
    layer.merge()
    assert set(layer.state_dict()) == keys
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, weight)
    assert torch.equal(layer(x), out)


def test_merging_is_rounded_once_from_float32():
    layer = trained_layer(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.merge()
    exact = layer.base_layer.weight.float() + layer.adapter.scale * layer.lora_B @ layer.lora_A
    assert torch.equal(layer.merged_weight, exact.to(torch.bfloat16))


def test_a_merged_layer_does_not_run_its_branch_and_follows_the_switch(monkeypatch):
    layer = trained_layer()
    x = torch.randn(4, 12)
    layer.merge()
    monkeypatch.setattr(layer.adapter, "forward", None)
    layer(x)
    layer.enabled = False
    assert torch.equal(layer(x), layer.base_layer(x))


def test_a_merged_layer_follows_its_dtype():
    layer = trained_layer()
    layer.merge()
    assert layer.double()(torch.randn(2, 12, dtype=torch.float64)).dtype == torch.float64


def test_dropout_acts_on_the_branch_in_training_only():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 4), dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_only_the_branch_gets_gradients_when_the_base_is_frozen():
    layer = trained_layer()
    layer.base_layer.requires_grad_(False)
    layer(torch.randn(4, 12)).sum().backward()
    assert layer.base_layer.weight.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.adapter_parameters())


def test_under_autocast_the_output_has_the_autocast_dtype():
    layer = trained_layer()
    x = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 0, 12), (2, 3, 5, 12)])
def test_any_leading_shape(shape):
    layer = trained_layer()
    x = torch.randn(shape)
    expected = F.linear(x, layer.base_layer.weight + layer.get_delta_weight(), layer.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("merged", [False, True])
def test_deep_copy_and_state_dict_round_trip(merged):
    layer = trained_layer()
    if merged:
        layer.merge()
    x = torch.randn(4, 12)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    nn.init.zeros_(twin.lora_B)
    twin.unmerge()
    assert not torch.allclose(twin(x), layer(x), atol=1e-2)
    fresh = LoRALinear(nn.Linear(12, 7), rank=3, alpha=8.0)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(x), layer(x))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoRALinear(nn.Linear(4, 4), **wrong)
