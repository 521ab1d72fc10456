import math

import pytest
import torch
from torch import nn

from src.config import LoraConfig
from src.lora.data_init import data_driven_init
from src.lora.expert_groups import add_adapter, set_adapter
from src.lora.injection import apply_method

CENTRES = torch.eye(3, 8) * 20


def clustered(count=300, seed=0):
    """Tokens in three clusters, each varying along an axis of its own; and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    cluster_N = torch.randint(3, (count,), generator=generator)
    x_ND = CENTRES[cluster_N] + 0.01 * torch.randn(count, 8, generator=generator)
    x_ND[torch.arange(count), 3 + cluster_N] += torch.randn(count, generator=generator)
    return x_ND, cluster_N


def base_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))


def config(method="mope", **options):
    options = {"rank": 1, "experts": 3, "top_k": 1, "target_modules": ["0"], **options}
    return LoraConfig(method=method, **options)


def test_experts_get_a_cluster_each_and_look_along_its_axis():
    model = base_model()
    adapters = apply_method(model, config())
    x_ND, cluster_N = clustered()
    data_driven_init(model, adapters, lambda: model(x_ND.reshape(10, 30, 8)))
    chosen_N = adapters["0"].gate(x_ND)[1].argmax(dim=1)
    expert_of = [int(chosen_N[cluster_N == c][0]) for c in range(3)]
    assert sorted(expert_of) == [0, 1, 2]
    assert torch.equal(chosen_N, torch.tensor(expert_of)[cluster_N])
    for cluster, expert in enumerate(expert_of):
        A_D = adapters["0"].lora_A[expert, 0]
        assert A_D.norm().item() == pytest.approx(1 / math.sqrt(3), rel=1e-4)
        assert A_D[3 + cluster].abs() > 0.99 * A_D.norm()


@pytest.mark.parametrize("method", ["mope", "lora"])
def test_the_model_computes_what_it_did_and_its_state_is_its_own(method):
    model = base_model()
    adapters = apply_method(model, config(method))
    modes = [module.training for module in model.modules()]
    x_ND, _ = clustered()
    data_driven_init(model, adapters, lambda: model(x_ND))
    assert torch.equal(model(x_ND), base_model()(x_ND))
    assert not adapters["0"].lora_B.any()
    assert adapters["0"].enabled
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_lora_gets_the_principal_directions_of_all_inputs():
    model = base_model()
    adapters = apply_method(model, config("lora", rank=2))
    x_ND, _ = clustered()
    data_driven_init(model, adapters, lambda: model(x_ND))
    between = torch.linalg.svd(CENTRES - CENTRES.mean(dim=0)).Vh[:2]
    A_RD = adapters["0"].lora_A * math.sqrt(3)
    torch.testing.assert_close((A_RD @ between.T).norm(dim=1), torch.ones(2), rtol=0, atol=1e-2)


def test_the_gate_is_as_soft_as_a_random_one():
    model = base_model()
    adapters = apply_method(model, config(experts=4))
    x_ND, _ = clustered()
    before = adapters["0"].gate(x_ND)[1].std(dim=1).mean()
    data_driven_init(model, adapters, lambda: model(x_ND))
    assert before / 3 < adapters["0"].gate(x_ND)[1].std(dim=1).mean() < 3 * before


def test_a_group_sees_the_base_and_leaves_other_groups_alone():
    model = base_model()
    add_adapter(model, "first", config(target_modules=["all"]))
    nn.init.normal_(model[0].adapters["first"].lora_B)
    before = {name: tensor.clone() for name, tensor in model[0].adapters["first"].state_dict().items()}
    adapters = add_adapter(model, "second", config(target_modules=["1"]))
    set_adapter(model, "first")
    x_ND, _ = clustered()
    seen = base_model()[0](x_ND)
    data_driven_init(model, adapters, lambda: model(x_ND))
    alone = apply_method(plain := nn.Sequential(nn.Linear(4, 4)), config())
    alone["0"].load_state_dict({**adapters["1"].state_dict(), "gate.weight": alone["0"].gate.weight})
    torch.manual_seed(0)
    data_driven_init(plain, alone, lambda: plain(seen))
    torch.testing.assert_close(alone["0"].lora_A, adapters["1"].lora_A)
    assert all(torch.equal(before[name], t) for name, t in model[0].adapters["first"].state_dict().items())


def test_what_is_drawn_follows_from_the_seed():
    x_ND, _ = clustered(1000)

    def initialised(**options):
        model = base_model()
        adapters = apply_method(model, config())
        data_driven_init(model, adapters, lambda: [model(part) for part in x_ND.split(100)], samples=64, **options)
        return adapters["0"].lora_A

    assert torch.equal(initialised(seed=1), initialised(seed=1))
    assert not torch.equal(initialised(seed=1), initialised(seed=2))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_tokens_leave_the_rest_as_drawn(count):
    model = base_model()
    adapters = apply_method(model, config(rank=4))
    data_driven_init(model, adapters, lambda: model(torch.ones(count, 8)))
    assert all(tensor.isfinite().all() for tensor in adapters["0"].state_dict().values())
    assert adapters["0"].lora_A.any(dim=2).all()


def test_the_null_row_stays():
    model = base_model()
    adapters = apply_method(model, config(router={"null_expert": True}))
    null_row = adapters["0"].gate.weight[3].clone()
    x_ND, _ = clustered()
    data_driven_init(model, adapters, lambda: model(x_ND))
    assert torch.equal(adapters["0"].gate.weight[3], null_row)
    assert adapters["0"].gate.bias[3] == 0


@pytest.mark.parametrize("x", [None, torch.full((5, 8), math.nan)])
def test_a_layer_that_saw_nothing_is_named(x):
    model = base_model()
    adapters = apply_method(model, config())
    with pytest.raises(ValueError, match="no finite input was seen by 0"):
        data_driven_init(model, adapters, lambda: None if x is None else model(x))
