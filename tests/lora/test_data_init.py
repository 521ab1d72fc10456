import math

import pytest
import torch
from torch import nn

from src.config import LoraConfig
from src.lora.data_init import DAMPING, data_driven_init, freeze_first_factors
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


class TestContrast:
    """General inputs vary along axes 0 to 3, the new domain along 0 (most), 4 and 5."""

    def started(self, method="lora", general=True, **options):
        generator = torch.Generator().manual_seed(0)
        general_ND = torch.randn(400, 8, generator=generator) * torch.tensor([9.0, 9, 9, 9, 0.1, 0.1, 0.1, 0.1])
        new_ND = torch.randn(400, 8, generator=generator) * torch.tensor([9.0, 0, 0, 0, 6, 5, 0, 0])
        model = base_model()
        adapters = apply_method(model, config(method, **{"rank": 2, "experts": 2, **options}))
        runs = {"general": lambda: model(general_ND)} if general else {}
        data_driven_init(model, adapters, lambda: model(new_ND), **runs)
        return adapters["0"], new_ND, general_ND

    @pytest.mark.parametrize("method", ["mope", "lora"])
    def test_rows_look_where_the_new_domain_varies_and_general_inputs_do_not(self, method):
        adapter, *_ = self.started(method)
        for A_RD in adapter.lora_A.reshape(-1, 2, 8).detach():
            shares = A_RD.square() / A_RD.square().sum(dim=1, keepdim=True)
            assert (shares[:, 4:6].sum(dim=1) > 0.95).all()
            assert A_RD.norm(dim=1).tolist() == pytest.approx([1 / math.sqrt(3)] * 2, rel=1e-3)

    def test_what_general_inputs_feel_is_bounded_as_the_guide_says(self):
        """E|Ax|² of general inputs, and how it grows without the contrast."""
        adapter, new_ND, general_ND = self.started()
        plain, *_ = self.started(general=False)
        felt, plainly = ((general_ND @ each.lora_A.detach().T).square().sum(dim=1).mean() for each in (adapter, plain))
        seen = (new_ND @ adapter.lora_A.detach().T).square().sum(dim=1).mean()
        assert felt < 0.05 * seen and plainly > 20 * felt

    def test_rows_are_the_generalised_eigenvectors(self):
        adapter, new_ND, general_ND = self.started()
        S = (general_ND.T @ general_ND / len(general_ND)).double()
        S += DAMPING * S.trace() / 8 * torch.eye(8, dtype=S.dtype)
        C = torch.cov(new_ND.T).double()
        for a_D in adapter.lora_A.detach().double():  # C S^-1 (S a) = ratio · (S a) in the metric's own coordinates
            left, right = torch.linalg.solve(S, C @ torch.linalg.solve(S, S @ a_D)), a_D
            assert torch.nn.functional.cosine_similarity(left, right, dim=0).item() == pytest.approx(1, abs=1e-3)

    def test_frozen_factors_stay(self):
        adapter, new_ND, _ = self.started("mope")
        freeze_first_factors({"0": adapter})
        adapter.lora_B.data.normal_()
        adapter(new_ND).square().mean().backward()
        assert adapter.lora_A.grad is None and adapter.lora_B.grad.any() and adapter.gate.weight.grad is not None
