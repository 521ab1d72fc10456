import pytest
import torch
from torch import nn

from src.lora.adapter import disable_adapters, iter_adapter_layers, set_adapters_enabled
from src.lora.lora_layer import LoRALinear
from src.lora.moe_layer import MoELoRALinear


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [LoRALinear(nn.Linear(6, 6)), nn.ReLU(), MoELoRALinear(nn.Linear(6, 4, bias=False), num_experts=3)]
    for layer in (layers[0], layers[2]):
        nn.init.normal_(layer.lora_B)
    return nn.Sequential(*layers)


def test_adapters_are_found_by_type(model):
    assert dict(iter_adapter_layers(model)) == {"0": model[0], "2": model[2]}


def test_a_layer_stands_in_for_its_linear(model):
    assert (model[2].in_features, model[2].out_features) == (6, 4)
    assert model[0].weight is model[0].base_layer.weight
    assert model[0].bias is model[0].base_layer.bias
    assert model[2].bias is None


def test_adapter_parameters_leave_out_the_base(model):
    assert [name for name, _ in model[0].named_adapter_parameters()] == ["adapter.lora_A", "adapter.lora_B"]
    names = {name for name, _ in model[2].named_adapter_parameters()}
    assert names == {"lora_A", "lora_B", "gate.weight", "gate.bias"}
    assert len(list(model[2].adapter_parameters())) == 4


def test_disabled_is_the_base_and_runs_no_branch(model, monkeypatch):
    x = torch.randn(5, 6)
    base = model[2].base_layer(torch.relu(model[0].base_layer(x)))
    assert not torch.equal(model(x), base)

    def refuse(*_):
        raise AssertionError("the branch ran")

    monkeypatch.setattr(model[0].adapter, "forward", refuse)
    monkeypatch.setattr(model[2].gate, "forward", refuse)
    with disable_adapters(model):
        assert torch.equal(model(x), base)
    with pytest.raises(AssertionError, match="the branch ran"):
        model(x)


def test_the_scope_restores_each_layer_even_after_an_exception(model):
    model[2].enabled = False
    with pytest.raises(KeyError), disable_adapters(model):
        assert not model[0].enabled
        raise KeyError
    assert model[0].enabled
    assert not model[2].enabled
    set_adapters_enabled(model, True)
    assert model[2].enabled


def test_the_switch_is_not_in_the_state_dict(model):
    before = set(model.state_dict())
    set_adapters_enabled(model, False)
    assert set(model.state_dict()) == before
    assert not any("enabled" in key for key in before)
