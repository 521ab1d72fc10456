import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from src.config import LoraConfig
from src.lora.adapter import MultiAdapterLinear, disable_adapters, iter_adapter_layers, list_groups
from src.lora.adapter_io import adapter_state_dict, base_fingerprint, base_state_dict
from src.lora.expert_groups import (
    ExpertGroup,
    active_adapter,
    add_adapter,
    adopt_unnamed,
    delete_adapter,
    freeze_groups_except,
    group_adapters,
    set_adapter,
    use_adapter,
)
from src.lora.injection import apply_method, count_parameters, describe_adapters, find_targets, remove_adapters
from src.lora.merging import merge_adapters, merge_groups
from src.lora.moe_layer import MoELoRALinear
from src.lora.pruning import expert_sizes, experts_used, prune_experts, pruned
from src.lora.recording import record_routing
from src.lora.router_losses import load_balancing_loss
from tests.errors import refuses


def config(method="mope", targets=("0", "2"), **options):
    return LoraConfig(**{"method": method, "rank": 2, "experts": 3, "target_modules": list(targets), **options})


def base_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def train_a_little(model, steps=3):
    """As training does: everything that asks for gradients moves."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().sum().backward()
        optimizer.step()


def learned(*names, method="mope"):
    """A model that learned one domain after another."""
    model = base_model()
    for seed, name in enumerate(names):
        torch.manual_seed(100 + seed)
        add_adapter(model, name, config(method))
        train_a_little(model)
    return model


@pytest.fixture
def x():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["mope", "lora"])
def method(request):
    return request.param


def test_a_new_group_is_the_base_bit_for_bit_active_and_all_that_trains(x, method):
    model = base_model()
    adapters = add_adapter(model, "cells", config(method))
    assert list_groups(model) == ["cells"]
    assert active_adapter(model) == "cells"
    assert group_adapters(model, "cells") == adapters
    assert list(adapters) == ["0", "2"]
    assert torch.equal(model(x), base_model()(x))
    own = {p for adapter in adapters.values() for p in adapter.adapter_parameters()}
    assert {p for p in model.parameters() if p.requires_grad} == own


def test_a_group_is_the_plain_layer_bit_for_bit(x, method):
    model = learned("cells", method=method)
    plain = base_model()
    apply_method(plain, config(method))
    for (_, theirs), (_, ours) in zip(iter_adapter_layers(model), iter_adapter_layers(plain), strict=True):
        ours.load_state_dict(theirs.state_dict())
    assert not torch.allclose(model(x), base_model()(x), atol=1e-2)
    assert torch.equal(model(x), plain(x))


def test_learning_a_second_domain_leaves_the_first_as_it_was(x, method):
    model = learned("cells", method=method)
    out = model(x)
    weights = {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}
    add_adapter(model, "endoscopy", config(method, experts=5, targets=["0"]))
    train_a_little(model)
    changed = model(x)
    set_adapter(model, "cells")
    assert not torch.allclose(changed, out, atol=1e-2)
    assert torch.equal(model(x), out)
    assert all(torch.equal(adapter_state_dict(model)[name], tensor) for name, tensor in weights.items())


def test_adding_and_removing_others_changes_no_group(x, method):
    model = learned("a", "b", "c", method=method)
    out = {}
    for name in "abc":
        with use_adapter(model, name):
            out[name] = model(x)
    set_adapter(model, "b")
    delete_adapter(model, "a")
    assert torch.equal(model(x), out["b"])
    delete_adapter(model, "b")
    assert active_adapter(model) is None
    assert torch.equal(model(x), base_model()(x))
    set_adapter(model, "c")
    assert torch.equal(model(x), out["c"])
    delete_adapter(model, "c")
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert list(model.state_dict()) == list(base_model().state_dict())


def test_without_an_active_group_only_the_base_layer_runs(x, monkeypatch):
    model = learned("cells")

    def never(*_):
        raise AssertionError("an adapter ran")

    monkeypatch.setattr(MoELoRALinear, "forward", never)
    set_adapter(model, None)
    assert torch.equal(model(x), base_model()(x))


def test_adapters_disabled_is_the_base_whatever_group_is_active(x):
    model = learned("cells", "endoscopy")
    out = model(x)
    with disable_adapters(model):
        assert torch.equal(model(x), base_model()(x))
    assert torch.equal(model(x), out)


def test_a_scope_ends_as_it_began_also_on_errors():
    model = learned("cells", "endoscopy")
    with pytest.raises(KeyError), use_adapter(model, "cells"):
        assert active_adapter(model) == "cells"
        raise KeyError
    assert active_adapter(model) == "endoscopy"
    with refuses("groups.unknown", "cells, endoscopy"), use_adapter(model, "cell"):
        pass
    assert active_adapter(model) == "endoscopy"


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=7))
@settings(max_examples=20, deadline=None)
def test_each_element_of_a_batch_may_use_its_own_group(groups):
    model = learned("a", "b", "c")
    delete_adapter(model, "c")
    add_adapter(model, "c", config("lora", targets=["2"]))
    train_a_little(model)
    x = torch.randn(len(groups), 4, 6)
    set_adapter(model, groups)
    out = model(x)
    for i, group in enumerate(groups):
        with use_adapter(model, group):
            torch.testing.assert_close(out[i], model(x[i : i + 1])[0], rtol=0, atol=1e-5)


def test_the_batch_must_be_that_of_the_active_groups(x):
    model = learned("a")
    set_adapter(model, ["a", None])
    with pytest.raises(ValueError, match="2 active adapters were given for a batch of 20"):
        model(x)
    delete_adapter(model, "a")
    assert torch.equal(model(x), base_model()(x))


def test_removing_a_group_takes_it_out_of_a_mixed_batch():
    model = learned("a", "b")
    set_adapter(model, ["a", "b"])
    delete_adapter(model, "a")
    assert active_adapter(model) == (None, "b")


def test_gradients_of_a_mixed_batch_reach_each_group_and_only_its_elements_are_recorded():
    model = learned("a", "b")
    model.requires_grad_(True)
    set_adapter(model, ["a", None, "b", "b"])
    with record_routing(model) as routing:
        model(torch.randn(4, 3, 6)).sum().backward()
    tokens = {name: len(call.logits_NE) for name, call in routing.layers().items()}
    assert tokens == {"0.groups.a": 3, "0.groups.b": 6, "2.groups.a": 3, "2.groups.b": 6}
    assert load_balancing_loss(routing) > 0
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if "lora_" in name)


def test_naming_adapters_changes_nothing_else(x, method):
    model = base_model()
    apply_method(model, config(method))
    train_a_little(model)
    out, trains = model(x), {p for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="adopt_unnamed"):
        add_adapter(model, "endoscopy", config())
    adopt_unnamed(model, "cells")
    assert list_groups(model) == ["cells"]
    assert torch.equal(model(x), out)
    assert {p for p in model.parameters() if p.requires_grad} == trains
    with pytest.raises(ValueError, match="no adapters, or they are in groups"):
        adopt_unnamed(model, "again")
    with pytest.raises(ValueError, match="no adapters, or they are in groups"):
        adopt_unnamed(base_model(), "nothing")


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "ä", "pop", "training", "cells"])
def test_names_that_are_refused(name, x):
    model = learned("cells")
    before = list(model.state_dict())
    with refuses("groups.name-taken" if name == "cells" else "groups.invalid-name") as caught:
        add_adapter(model, name, config())
    assert f"'{name}'" in str(caught.value)
    assert list(model.state_dict()) == before


def test_a_config_that_does_not_fit_leaves_the_model_alone(x):
    model = learned("cells")
    before, out = list(model.state_dict()), model(x)
    with refuses("targets.no-match"):
        add_adapter(model, "endoscopy", config(targets=["nowhere"]))
    with pytest.raises(ValueError, match="no adapters"):
        add_adapter(model, "endoscopy", config("full"))
    assert list(model.state_dict()) == before
    assert torch.equal(model(x), out)


@pytest.mark.parametrize("action", [delete_adapter, freeze_groups_except, set_adapter])
def test_unknown_groups_are_named(action):
    with refuses("groups.unknown"):
        action(learned("a"), "b")
    with refuses("groups.unknown"):
        action(base_model(), "b")


def test_freezing_all_but_one():
    model = learned("a", "b")
    freeze_groups_except(model, "a")
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"a"}


def test_a_layer_with_groups_stands_in_for_its_linear():
    model = learned("a")
    assert isinstance(model[0], MultiAdapterLinear)
    assert (model[0].in_features, model[0].out_features) == (6, 8)
    assert model[0].weight is model[0].base_layer.weight
    assert model[0].bias is model[0].base_layer.bias


def test_the_base_is_told_apart_from_the_groups():
    model, base = learned("a", "b"), base_model()
    assert base_state_dict(model).keys() == base.state_dict().keys()
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in base_state_dict(model).items())
    assert base_fingerprint(model) == base_fingerprint(base)
    assert "0.groups.a.lora_A" in adapter_state_dict(model)
    assert list(find_targets(model, ["all"])) == ["0", "2"]
    remove_adapters(model)
    assert list(model.state_dict()) == list(base.state_dict())


def test_a_copied_model_is_its_own(x):
    model = learned("a", "b")
    copied = copy.deepcopy(model)
    set_adapter(copied, None)
    assert torch.equal(copied(x), base_model()(x))
    assert active_adapter(model) == "b"
    assert copied[0].adapters["a"].base_layer is copied[0].base_layer is not model[0].base_layer


def test_counts_and_description():
    model = learned("a", "b")
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in base_model().parameters()) + count.adapter
    assert count.trainable * 2 == count.adapter
    text = describe_adapters(model, dict(iter_adapter_layers(model)))
    assert "*.groups.a" in text
    assert "expert groups: a, b" in text


def test_lora_groups_merge_one_by_one(x):
    model = learned("a", "b", method="lora")
    out = model(x)
    merge_adapters(model)
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-4)
    set_adapter(model, None)
    assert torch.equal(model(x), base_model()(x))


def test_pruning_experts_that_are_never_chosen_keeps_the_output(x):
    model = learned("a", "b")
    set_adapter(model, "a")
    for adapter in group_adapters(model, "a").values():
        with torch.no_grad():
            adapter.gate.bias[1] = -1e6
    with record_routing(model) as routing:
        out = model(x)
    usage = {
        name.removesuffix(".groups.a"): use_E for name, use_E in routing.utilization().items() if name.endswith("a")
    }
    assert experts_used(usage, 0.01) == 2
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    found = prune_experts(model, "a", config(), experts_used(usage, 0.01), usage)
    assert (found.experts, found.top_k) == (2, 2)
    assert [adapter.num_experts for adapter in group_adapters(model, "a").values()] == [2, 2]
    assert active_adapter(model) == "a"
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trains
    torch.testing.assert_close(model(x), out, rtol=0, atol=1e-5)


def test_pruning_another_group_leaves_the_rest_as_it_was(x):
    model = learned("a", "b")
    out = model(x)
    prune_experts(model, "a", config(), 1)
    assert torch.equal(model(x), out)


def one_group(**options):
    """A group outside a model, with a null expert in its gate's last row."""
    model = base_model()
    lora = config(router={"null_expert": True}, **options)
    apply_method(model, lora)
    for i, tensor in enumerate(adapter_state_dict(model).values()):
        nn.init.normal_(tensor, generator=torch.Generator().manual_seed(i))
    return ExpertGroup(lora, dict(adapter_state_dict(model)))


def test_pruning_keeps_the_largest_experts_in_their_order_and_the_null_row():
    group = one_group()
    assert group.layers() == ["0", "2"]
    sizes = expert_sizes(group)
    A, B = group.weights["2.lora_A"], group.weights["2.lora_B"]
    torch.testing.assert_close(sizes["2"].float(), (B @ A).norm(dim=(1, 2)), rtol=1e-4, atol=0)
    found = pruned(group, 1, {"0": torch.tensor([0.0, 9.0, 1.0, 99.0]), "2": torch.tensor([0.0, 0.0, 1.0])})
    assert (found.config.experts, found.config.top_k) == (1, 2)
    assert torch.equal(found.weights["0.lora_A"], group.weights["0.lora_A"][[1]])
    assert torch.equal(found.weights["2.lora_B"], group.weights["2.lora_B"][[2]])
    for name in ("gate.weight", "gate.bias"):
        assert torch.equal(found.weights[f"0.{name}"], group.weights[f"0.{name}"][[1, 3]])
    both = pruned(group, 2, {"0": torch.tensor([5.0, 0.0, 9.0]), "2": torch.tensor([5.0, 0.0, 9.0])})
    assert torch.equal(both.weights["2.lora_A"], group.weights["2.lora_A"][[0, 2]])


def test_pruning_that_is_refused():
    for keep in (0, 4):
        with refuses("prune.keep"):
            pruned(one_group(), keep)
    with refuses("prune.scores"):
        pruned(one_group(), 1, {"0": torch.zeros(3)})
    with refuses("prune.no-experts"):
        prune_experts(learned("a", method="lora"), "a", config("lora"), 1)


def test_merged_groups_compete(x):
    model = learned("a", "b")
    groups = [
        ExpertGroup(
            config(),
            {
                f"{layer}.{key}": t
                for layer, a in group_adapters(model, name).items()
                for key, t in a.adapter_state().items()
            },
        )
        for name in "ab"
    ]
    both = merge_groups(groups)
    assert both.config.experts == 6
    joint = base_model()
    for layer, adapter in add_adapter(joint, "both", both.config).items():
        adapter.load_state_dict(
            {key.removeprefix(f"{layer}."): t for key, t in both.weights.items() if key.startswith(layer)}, strict=False
        )
    # Where b's experts are never chosen, the union is a.
    for adapter in group_adapters(joint, "both").values():
        with torch.no_grad():
            adapter.gate.bias[3:] = -1e6
    set_adapter(model, "a")
    torch.testing.assert_close(joint(x), model(x), rtol=0, atol=1e-5)


def test_merging_that_is_refused():
    plain = ExpertGroup(config(), {})
    with refuses("merge.one-group"):
        merge_groups([plain])
    with refuses("merge.method"):
        merge_groups([plain, one_group()])
    with refuses("merge.different") as caught:
        merge_groups([plain, ExpertGroup(config(rank=3, alpha=1.0), {})])
    assert "lora.rank, lora.alpha" in str(caught.value)
    with refuses("merge.different"):
        merge_groups([plain, ExpertGroup(config(), {"0.lora_A": torch.zeros(1)})])
