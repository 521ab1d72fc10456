import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import nn

from src.config import LoraConfig
from src.lora.injection import (
    apply_method,
    count_parameters,
    describe_adapters,
    find_targets,
    freeze_base,
    inject_adapters,
    remove_adapters,
    routed_layers,
)
from src.lora.lora_layer import LoRALinear
from src.lora.moe_layer import MoELoRALinear
from tests.errors import refuses


def module(**children):
    parent = nn.Module()
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def attention():
    return module(q_proj=nn.Linear(8, 8), k_proj=nn.Linear(4, 8), out_proj=nn.Linear(8, 8))


def block():
    return module(self_attn=attention(), cross_attn=attention(), linear1=nn.Linear(8, 16))


@pytest.fixture
def model():
    """The names of SAM 2, with its traps: ``proj`` and ``out_proj`` also name convolutions."""
    torch.manual_seed(0)
    return module(
        image_encoder=module(
            patch_embed=module(proj=nn.Conv2d(3, 8, 1)),
            blocks=nn.ModuleList([module(attn=module(qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8)))]),
        ),
        memory_attention=module(layers=nn.ModuleList([block(), block()]), norm=nn.LayerNorm(8)),
        memory_encoder=module(out_proj=nn.Conv2d(8, 4, 1), pix_feat_proj=nn.Conv2d(8, 8, 1)),
        obj_ptr_proj=nn.Linear(8, 8),
        head=nn.MultiheadAttention(8, 2),
    )


MEMORY = [f"memory_attention.layers.{i}" for i in (0, 1)]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["q_proj"], [f"{layer}.{kind}.q_proj" for layer in MEMORY for kind in ("self_attn", "cross_attn")]),
        (["self_attn.q_proj"], [f"{layer}.self_attn.q_proj" for layer in MEMORY]),
        (["memory_attention.layers.1.linear1"], ["memory_attention.layers.1.linear1"]),
        (["memory_attention.*.linear1"], [f"{layer}.linear1" for layer in MEMORY]),
        (["layers.?.linear1"], [f"{layer}.linear1" for layer in MEMORY]),
        (["layers.[0].linear*"], ["memory_attention.layers.0.linear1"]),
        (["linear1", "layers.*.linear1"], [f"{layer}.linear1" for layer in MEMORY]),
        # Suffixes end at dots: obj_ptr_proj is no `proj`, and of the two `proj` one is a convolution.
        (["proj"], ["image_encoder.blocks.0.attn.proj"]),
        (
            ["memory_*.out_proj"],
            [f"{layer}.{kind}.out_proj" for layer in MEMORY for kind in ("self_attn", "cross_attn")],
        ),
        (["*ptr_proj"], ["obj_ptr_proj"]),
    ],
)
def test_what_an_entry_selects(model, entries, expected):
    found = find_targets(model, entries)
    assert list(found) == expected
    assert all(found[name] is model.get_submodule(name) for name in expected)


def test_all_selects_every_linear_that_is_called(model):
    found = find_targets(model, ["all"])
    assert len(found) == 2 * 7 + 3
    assert "head.out_proj" not in found
    assert all(type(linear) is nn.Linear for linear in found.values())


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("q_porj", "'q_porj' matches no layer; near names: q_proj"),
        ("memory_atention.*.q_proj", "near names: memory_attention.*.q_proj"),
        ("_proj", "'_proj' matches no layer"),
        ("Q_PROJ", "'Q_PROJ' matches no layer"),
        ("", "'' matches no layer"),
        ("zzz", "Linear layers here: k_proj, linear1, obj_ptr_proj, out_proj, proj, q_proj, qkv"),
        ("memory_encoder.out_proj", "matches no Linear layer, only Conv2d"),
        ("patch_embed.proj", "matches no Linear layer, only Conv2d"),
        ("memory_attention.norm", "matches no Linear layer, only LayerNorm"),
        ("self_attn", "matches no Linear layer, only Module"),
        ("head.out_proj", "matches no Linear layer, only NonDynamicallyQuantizableLinear"),
    ],
)
def test_an_entry_that_selects_nothing_is_named_with_near_names(model, entry, said):
    with refuses("targets.no-match") as error:
        find_targets(model, [entry])
    assert said in str(error.value)


def test_all_wrong_entries_are_reported_together(model):
    with refuses("targets.no-match") as error:
        find_targets(model, ["q_porj", "q_proj", "memory_encoder.out_proj"])
    assert "'q_porj'" in str(error.value)
    assert "'memory_encoder.out_proj'" in str(error.value)
    assert "'q_proj'" not in str(error.value)


@pytest.mark.parametrize(("method", "kind"), [("lora", LoRALinear), ("mope", MoELoRALinear)])
def test_injection_wraps_the_targets_with_the_configured_adapter(model, method, kind):
    linear = model.obj_ptr_proj
    config = LoraConfig(
        method=method,
        rank=2,
        alpha=6,
        experts=5,
        top_k=3,
        dropout=0.25,
        target_modules=["obj_ptr_proj", "qkv"],
        router={"null_expert": True},
    )
    adapters = inject_adapters(model.eval(), config)
    assert list(adapters) == ["image_encoder.blocks.0.attn.qkv", "obj_ptr_proj"]
    adapter = adapters["obj_ptr_proj"]
    assert type(adapter) is kind
    assert model.obj_ptr_proj is adapter
    assert adapter.base_layer is linear
    assert not adapter.training
    assert adapter.settings()["scale"] == 3.0
    if method == "mope":
        assert (adapter.num_experts, adapter.gate.top_k, adapter.gate.null_expert) == (5, 3, True)
        assert adapter.dropout.p == 0.25
        assert routed_layers(model) == adapters
    else:
        assert adapter.adapter.dropout.p == 0.25
        assert routed_layers(model) == {}


def test_injection_keeps_the_dtype_of_the_base_and_makes_float32_adapters(model):
    adapters = inject_adapters(model.bfloat16(), LoraConfig(target_modules=["q_proj"]))
    for adapter in adapters.values():
        assert adapter.base_layer.weight.dtype == torch.bfloat16
        assert {p.dtype for p in adapter.adapter_parameters()} == {torch.float32}


def test_injection_in_a_sequential_and_a_list():
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)]))
    assert list(inject_adapters(model, LoraConfig(target_modules=["all"]))) == ["0", "1.0"]
    assert isinstance(model[0], MoELoRALinear)
    assert isinstance(model[1][0], MoELoRALinear)


def test_a_failed_injection_leaves_the_model_alone(model):
    before = list(model.named_modules())
    with refuses("targets.no-match"):
        inject_adapters(model, LoraConfig(target_modules=["q_proj", "nowhere"]))
    assert list(model.named_modules()) == before


def test_injecting_twice_is_refused(model):
    config = LoraConfig(target_modules=["q_proj"])
    inject_adapters(model, config)
    with pytest.raises(ValueError, match="adapters already"):
        inject_adapters(model, config)


def test_targets_of_an_adapted_model_are_those_of_its_base(model):
    bare = {entry: find_targets(model, [entry]) for entry in ("q_proj", "all")}
    inject_adapters(model, LoraConfig(target_modules=["q_proj", "qkv"]))
    assert {entry: find_targets(model, [entry]) for entry in bare} == bare


def test_removing_undoes_injecting(model):
    before = list(model.named_modules())
    inject_adapters(model, LoraConfig(target_modules=["all"]))
    remove_adapters(model)
    assert list(model.named_modules()) == before


@pytest.mark.parametrize("method", ["mope", "lora"])
def test_adapters_train_and_the_base_does_not(model, method):
    adapters = apply_method(model, LoraConfig(method=method, target_modules=["q_proj"]))
    expected = {p for adapter in adapters.values() for p in adapter.adapter_parameters()}
    assert {p for p in model.parameters() if p.requires_grad} == expected
    model.requires_grad_(True)
    freeze_base(model)
    assert {p for p in model.parameters() if p.requires_grad} == expected


@pytest.mark.parametrize(("method", "trains"), [("full", True), ("none", False)])
def test_methods_without_adapters(model, method, trains):
    before = list(model.named_modules())
    model.requires_grad_(not trains)
    assert apply_method(model, LoraConfig(method=method)) == {}
    assert list(model.named_modules()) == before
    assert all(p.requires_grad is trains for p in model.parameters())


def test_the_decoder_alone_trains_where_the_model_says_it_is(model):
    assert apply_method(model, LoraConfig(method="decoder"), decoder=("obj_ptr_", "head.")) == {}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {name for name, _ in model.named_parameters() if name.startswith(("obj_ptr_proj.", "head."))}
    for nowhere in ((), ("mask_decoder.",)):
        with pytest.raises(ValueError, match="no parameters named"):
            apply_method(model, LoraConfig(method="decoder"), decoder=nowhere)


def test_counts_and_description(model):
    base = sum(p.numel() for p in model.parameters())
    config = LoraConfig(method="lora", rank=2, alpha=1, target_modules=["q_proj", "cross_attn.k_proj"])
    adapters = apply_method(model, config)
    count = count_parameters(model)
    # Four q_proj of 2 · (8 + 8), two k_proj of 2 · (4 + 8).
    assert count.trainable == count.adapter == 4 * 32 + 2 * 24
    assert count.total == base + count.adapter
    lines = [line.split() for line in describe_adapters(model, adapters).splitlines()]
    assert ["memory_attention.layers.*.cross_attn.k_proj", "×2", "4→8", "48"] in lines
    assert "6 adapted layers: method=lora, rank=2, scale=0.5" in describe_adapters(model, adapters)
    assert f"176 of {count.total:,} parameters train ({176 / count.total:.2%})" in describe_adapters(model, adapters)


def test_description_without_adapters(model):
    adapters = apply_method(model, LoraConfig(method="none"))
    assert "no adapters" in describe_adapters(model, adapters)
    assert "0 of " in describe_adapters(model, adapters)


@pytest.fixture(scope="module")
def memory_attention():
    """The memory attention of sam2.1_hiera_b+ as SAM 2's own YAML describes it."""
    if not GlobalHydra.instance().is_initialized():
        initialize_config_module("sam2", version_base="1.2")
    config = compose("configs/sam2.1/sam2.1_hiera_b+.yaml")
    return module(memory_attention=instantiate(config.model.memory_attention, _recursive_=True))


def test_the_default_configuration_on_sam2_base_plus_trains_660_800_parameters(memory_attention):
    apply_method(memory_attention, LoraConfig())
    count = count_parameters(memory_attention)
    assert count.trainable == count.adapter == 660_800
    assert len(routed_layers(memory_attention)) == 4 * 2 * 4
