import copy
import math

import pytest
import torch
from torch import nn

from src.lora.lora_layer import LoRALinear
from src.lora.moe_layer import MoELoRALinear
from src.lora.recording import record_routing
from src.lora.router_losses import load_balancing_loss, router_z_loss


def trained_layer(num_experts=5, top_k=2, dtype=torch.float64, **options):
    """Random B and a decided gate: an untrained layer would pass most of these tests whatever its experts do."""
    torch.manual_seed(0)
    layer = MoELoRALinear(nn.Linear(12, 7), num_experts, rank=3, top_k=top_k, alpha=6.0, **options).to(dtype)
    nn.init.normal_(layer.lora_B)
    nn.init.normal_(layer.gate.weight)
    nn.init.normal_(layer.gate.bias)
    return layer


def by_loop(layer, x_ND):
    """The formula token by token and expert by expert."""
    gate = layer.gate
    rows = []
    for x_D in x_ND:
        logits = gate.weight @ x_D + gate.bias
        chosen = sorted(range(len(logits)), key=lambda e: -logits[e].item())[: gate.top_k]
        weights = torch.softmax(torch.stack([logits[e] for e in chosen]), 0)
        row = layer.base_layer(x_D)
        for weight, expert in zip(weights, chosen, strict=True):
            if expert < layer.num_experts:
                row = row + 2.0 * weight * (layer.lora_B[expert] @ (layer.lora_A[expert] @ x_D))  # 2 = alpha / rank
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("null_expert", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_the_reference_is_the_formula(top_k, null_expert):
    layer = trained_layer(top_k=top_k, null_expert=null_expert)
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    expected = by_loop(layer, x.flatten(0, 1)).unflatten(0, (4, 5))
    torch.testing.assert_close(layer.reference_forward(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"null_expert": True}, {"dropout": 0.4}], ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("frozen_base", [False, True])
def test_the_fast_forward_equals_the_reference_in_outputs_and_all_gradients(frozen_base, top_k, options):
    layer = trained_layer(top_k=top_k, **options)
    layer.base_layer.requires_grad_(not frozen_base)
    x = torch.randn(4, 5, 12, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(4, 5, 7, dtype=torch.float64)
    trained = {"x": x} | {name: p for name, p in layer.named_parameters() if p.requires_grad}
    found = []
    for forward in (layer, layer.reference_forward):
        torch.manual_seed(1)
        out = forward(x)
        gradients = torch.autograd.grad((out * direction).sum(), list(trained.values()))
        found.append({"out": out, **dict(zip(trained, gradients, strict=True))})
    assert found[0]["x"].abs().max() > 0.1
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


OPTIONS = {
    "router and experts on the same input": {},
    "one expert a token": {"top_k": 1},
    "null expert": {"null_expert": True},
    "dropout": {"dropout": 0.4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_those_of_finite_differences_with_the_losses_on_routing(options):
    layer = trained_layer(num_experts=3, **options)
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)

    def run(x, *_):
        torch.manual_seed(0)
        with record_routing(layer) as routing:
            out = layer(x)
        return out, load_balancing_loss(routing), router_z_loss(routing)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("frozen", ["base_layer", "lora_A", "lora_B", "gate", "base_layer lora gate"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    layer = trained_layer(null_expert=True)
    x = torch.randn(20, 12, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    expected = {name: p.grad for name, p in [("x", x), *layer.named_parameters()]}
    layer.zero_grad()
    x.grad = None
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen.split())))
    layer(x).square().sum().backward()
    for name, parameter in [("x", x), *layer.named_parameters()]:
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-12)
        else:
            assert parameter.grad is None


def test_losses_on_routing_alone_train_the_gate_alone():
    layer = trained_layer()
    with record_routing(layer) as routing:
        layer(torch.randn(20, 12, dtype=torch.float64))
    router_z_loss(routing).backward()
    assert layer.gate.weight.grad.any()
    assert not layer.lora_A.grad.any()
    assert not layer.lora_B.grad.any()


def test_nothing_of_the_size_of_the_output_is_kept_for_backward():
    layer = MoELoRALinear(nn.Linear(8, 1000).requires_grad_(False), 4, rank=2)
    x = torch.randn(300, 8, requires_grad=True)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t):
        layer(x)
    own = {p.data_ptr() for p in layer.parameters()}
    sizes = [t.untyped_storage().nbytes() // 4 for t in kept.values() if t.data_ptr() not in own]
    assert max(sizes) <= max(300 * 16, layer.lora_B.numel())


INFERENCE_OPTIONS = {
    "plain": {},
    "one expert a token": {"top_k": 1},
    "all experts": {"top_k": 5},
    "null expert": {"null_expert": True},
}


@pytest.mark.parametrize("options", INFERENCE_OPTIONS.values(), ids=INFERENCE_OPTIONS)
@pytest.mark.parametrize("scope", [torch.no_grad, torch.inference_mode])
def test_inference_computes_what_training_does(options, scope):
    layer = trained_layer(dtype=torch.float32, **options).eval()
    x = torch.randn(40, 3, 12).transpose(0, 1)
    expected = layer(x).detach()
    with scope():
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        with record_routing(layer) as routing:
            torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert len(routing.calls[""]) == 1


def test_inference_chooses_among_equal_logits_as_training_does():
    layer = trained_layer(dtype=torch.float32)
    with torch.no_grad():
        layer.gate.weight[1:4] = layer.gate.weight[0]
        layer.gate.bias[1:4] = layer.gate.bias[0]
    x = torch.randn(50, 12)
    expected = layer(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"dropout": 1e-9}], ids=str)
def test_gradients_under_autocast_are_nearly_those_without(dtype, options):
    layer = trained_layer(dtype=torch.float32, **options)
    x = torch.randn(4, 50, 12, requires_grad=True)
    wanted = [x, *layer.parameters()]
    direction = torch.randn(4, 50, 7)
    expected = torch.autograd.grad((layer(x) * direction).sum(), wanted)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    assert out.dtype == dtype
    for found, exact in zip(torch.autograd.grad((out.float() * direction).sum(), wanted), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_at_init_the_output_is_the_base_bit_for_bit(dtype):
    base = nn.Linear(12, 7, dtype=dtype)
    x = torch.randn(2, 5, 12, dtype=dtype)
    out = MoELoRALinear(base)(x)
    assert out.dtype == dtype
    assert torch.equal(out, base(x))


def test_one_expert_is_lora():
    moe = trained_layer(num_experts=1, top_k=1)
    lora = LoRALinear(moe.base_layer, rank=3, alpha=6.0).double()
    with torch.no_grad():
        lora.lora_A.copy_(moe.lora_A[0])
        lora.lora_B.copy_(moe.lora_B[0])
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(moe(x), lora(x), rtol=0, atol=1e-12)


def test_all_experts_with_equal_gates_are_their_mean():
    layer = trained_layer(num_experts=4, top_k=4)
    nn.init.zeros_(layer.gate.weight)
    nn.init.zeros_(layer.gate.bias)
    x = torch.randn(9, 12, dtype=torch.float64)
    mean_delta = torch.stack([2.0 * B @ A for A, B in zip(layer.lora_A, layer.lora_B, strict=True)]).mean(0)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ mean_delta.T, rtol=0, atol=1e-12)


def test_permuting_experts_changes_nothing():
    layer = trained_layer()
    permuted = copy.deepcopy(layer)
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        for stacked in permuted.adapter_parameters():
            stacked.copy_(stacked[order])
    x = torch.randn(50, 12, dtype=torch.float64)
    torch.testing.assert_close(permuted(x), layer(x), rtol=0, atol=1e-12)
    with torch.no_grad():
        permuted.lora_B.copy_(permuted.lora_B[order])
    assert not torch.allclose(permuted(x), layer(x), atol=1e-2)


def test_a_chosen_null_expert_adds_nothing():
    layer = trained_layer(null_expert=True)
    x = torch.randn(30, 12, dtype=torch.float64)
    assert not torch.allclose(layer(x), layer.base_layer(x), atol=1e-2)
    with torch.no_grad():
        layer.gate.bias[-1] = 1000.0
    assert torch.equal(layer(x), layer.base_layer(x))


def test_each_expert_starts_as_if_alone():
    torch.manual_seed(0)
    layer = MoELoRALinear(nn.Linear(400, 8), num_experts=6, rank=4)
    bound = 1 / math.sqrt(400)
    for lora_A_RD in layer.lora_A:
        assert 0.95 * bound < lora_A_RD.abs().max().item() <= bound
        assert lora_A_RD.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not torch.equal(layer.lora_A[0], layer.lora_A[1])
    assert not layer.lora_B.any()


def test_tokens_differ_in_their_experts_from_the_start():
    torch.manual_seed(0)
    layer = MoELoRALinear(nn.Linear(64, 8))
    gates, _ = layer.gate(torch.randn(500, 64))
    assert (gates > 0).any(dim=0).all()


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 0, 12), (6, 12), (2, 3, 12), (2, 3, 4, 12)])
def test_any_leading_shape(shape):
    layer = trained_layer()
    x = torch.randn(shape, dtype=torch.float64)
    out = layer(x)
    assert out.shape == (*shape[:-1], 7)
    if x.numel():
        torch.testing.assert_close(out.reshape(-1, 7), by_loop(layer, x.reshape(-1, 12)), rtol=0, atol=1e-9)
    out.sum().backward()


def test_under_bfloat16_autocast_the_gate_stays_float32_and_the_experts_do_not(monkeypatch):
    layer = trained_layer(dtype=torch.float32)
    x = torch.randn(200, 12)
    expected_gates, expected_logits = layer.gate(x)
    seen = []
    monkeypatch.setattr(
        layer.gate, "forward", lambda x: seen.append(type(layer.gate).forward(layer.gate, x)) or seen[0]
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    gates, logits = seen[0]
    assert torch.equal(logits, expected_logits)
    assert torch.equal(gates, expected_gates)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.5)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.adapter_parameters())


@pytest.mark.parametrize("adapters_too", [False, True])
def test_a_bfloat16_base_without_autocast(adapters_too):
    layer = trained_layer(dtype=torch.float32)
    (layer if adapters_too else layer.base_layer).bfloat16()
    x = torch.randn(40, 12).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), copy.deepcopy(layer).float()(x.float()), rtol=0.05, atol=0.3)


def test_dropout_acts_on_the_experts_in_training_only():
    layer = trained_layer(dropout=0.5)
    x = torch.randn(9, 12, dtype=torch.float64)
    with record_routing(layer) as routing:
        assert not torch.equal(layer(x), layer(x))
    first, second = routing.calls[""]
    assert torch.equal(first.logits_NE, second.logits_NE)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_deep_copy_and_state_dict_round_trip():
    layer = trained_layer(null_expert=True)
    x = torch.randn(30, 12, dtype=torch.float64)
    fresh = MoELoRALinear(nn.Linear(12, 7), 5, rank=3, alpha=6.0, null_expert=True).double()
    assert not torch.allclose(fresh(x), layer(x), atol=1e-2)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    shapes = {name: tuple(p.shape) for name, p in layer.named_adapter_parameters()}
    assert shapes == {"lora_A": (5, 3, 12), "lora_B": (5, 7, 3), "gate.weight": (6, 12), "gate.bias": (6,)}


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"num_experts": 0}, {"top_k": 11}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MoELoRALinear(nn.Linear(4, 4), **wrong)
