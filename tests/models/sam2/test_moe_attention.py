"""A drop-in for RoPEAttention: same output until trained, named by a SAM 2 config, same adapters as injected ones."""

from __future__ import annotations

import pytest
import torch
from sam2.build_sam import build_sam2
from sam2.modeling.sam.transformer import Attention, RoPEAttention

from src.config import LoraConfig, ModelConfig
from src.data.synthetic import SOURCE, make_video
from src.lora.adapter import disable_adapters, iter_adapter_layers
from src.lora.adapter_io import adapter_state_dict, base_state_dict, save_adapter
from src.lora.injection import inject_adapters, replace_module
from src.lora.moe_layer import MoELoRALinear
from src.lora.recording import record_routing
from src.models.sam2.build import build_model, config_overrides
from src.models.sam2.moe_attention import PROJECTIONS, MoERoPEAttention, convert_rope_attention_to_moe
from src.models.sam2.predictors import build_sam2_moe
from src.tasks.tracking.predict import predicting, track
from tests.errors import refuses

SETTINGS = {"num_experts": 3, "lora_rank": 2, "top_k": 2}
SELF = {"embedding_dim": 32, "num_heads": 1, "feat_sizes": (4, 4)}
CROSS = {**SELF, "kv_in_dim": 16, "rope_k_repeat": True, "num_heads": 2, "downsample_rate": 2, "rope_theta": 500.0}
OVERRIDES = [
    f"++model.memory_attention.layer.{part}_attention.{key}={value}"
    for part in ("self", "cross")
    for key, value in {"_target_": "src.models.sam2.moe_attention.MoERoPEAttention", **SETTINGS}.items()
]


def inputs(arguments: dict) -> dict:
    """Tokens of a 4 × 4 map; in cross-attention, to two memories of that size and three object pointers."""
    torch.manual_seed(1)
    if arguments is SELF:
        return {"q": torch.randn(2, 16, 32), "k": torch.randn(2, 16, 32), "v": torch.randn(2, 16, 32)}
    k, v = torch.randn(2, 35, 16), torch.randn(2, 35, 16)
    return {"q": torch.randn(2, 16, 32), "k": k, "v": v, "num_k_exclude_rope": 3}


def train_a_little(module: torch.nn.Module) -> None:
    for _, adapter in iter_adapter_layers(module):
        torch.nn.init.normal_(adapter.lora_B)


@pytest.mark.parametrize("arguments", [SELF, CROSS], ids=["self", "cross"])
class TestConversion:
    def test_the_output_is_the_originals(self, arguments):
        original = RoPEAttention(**arguments).eval()
        converted = convert_rope_attention_to_moe(original, **SETTINGS)
        expected = original(**inputs(arguments))
        assert torch.equal(converted(**inputs(arguments)), expected)
        train_a_little(converted)
        assert not torch.allclose(converted(**inputs(arguments)), expected)
        with disable_adapters(converted):
            assert torch.equal(converted(**inputs(arguments)), expected)

    def test_weights_are_copies_and_the_original_stays(self, arguments):
        original = RoPEAttention(**arguments)
        converted = convert_rope_attention_to_moe(original, **SETTINGS)
        assert type(original) is RoPEAttention
        assert all(type(getattr(original, name)) is torch.nn.Linear for name in PROJECTIONS)
        copied = base_state_dict(converted)
        assert copied.keys() == original.state_dict().keys()
        for name, tensor in original.state_dict().items():
            assert torch.equal(copied[name], tensor)
            assert copied[name].data_ptr() != tensor.data_ptr()

    def test_it_equals_one_made_with_the_same_arguments(self, arguments):
        original = RoPEAttention(**arguments, dropout=0.25)
        made = MoERoPEAttention(**arguments, dropout=0.25, **SETTINGS)
        converted = convert_rope_attention_to_moe(original, **SETTINGS)
        assert str(converted) == str(made)
        made.load_state_dict(converted.state_dict())
        assert torch.equal(made.eval()(**inputs(arguments)), converted.eval()(**inputs(arguments)))

    def test_dropout_mode_and_what_is_frozen_are_kept(self, arguments):
        original = RoPEAttention(**arguments, dropout=0.25).requires_grad_(False)
        for training in (True, False):
            converted = convert_rope_attention_to_moe(original.train(training), **SETTINGS)
            assert converted.dropout_p == 0.25
            assert {module.training for module in converted.modules()} == {training}
        trains = {name for name, p in converted.named_parameters() if p.requires_grad}
        assert trains == {f"{p}.{n}" for p in PROJECTIONS for n in ("lora_A", "lora_B", "gate.weight", "gate.bias")}

    def test_half_precision_is_kept(self, arguments):
        original = RoPEAttention(**arguments).bfloat16()
        converted = convert_rope_attention_to_moe(original, **SETTINGS)
        assert converted.q_proj.weight.dtype == torch.bfloat16
        assert converted.q_proj.lora_A.dtype == torch.float32
        given = {key: x.bfloat16() if torch.is_tensor(x) else x for key, x in inputs(arguments).items()}
        assert torch.equal(converted(**given), original(**given))

    def test_statistics_are_mean_routing_weights(self, arguments):
        attention = convert_rope_attention_to_moe(RoPEAttention(**arguments), **SETTINGS)
        given = inputs(arguments)
        with record_routing(attention) as routing:
            statistics = attention.get_expert_statistics(**given)
        assert set(statistics) == set(PROJECTIONS)
        assert all(weight_E.sum().item() == pytest.approx(1) for weight_E in statistics.values())
        for name, x in (("q_proj", given["q"]), ("k_proj", given["k"]), ("v_proj", given["v"])):
            layer = getattr(attention, name)
            logits, chosen = torch.nn.functional.linear(x, layer.gate.weight, layer.gate.bias).topk(2)
            expected_E = torch.zeros(*x.shape[:2], 3).scatter(-1, chosen, logits.softmax(-1)).mean((0, 1))
            assert torch.allclose(statistics[name], expected_E, atol=1e-6)
            with record_routing(layer) as asked:
                assert torch.allclose(layer.get_expert_usage(x), expected_E, atol=1e-6)
            assert not asked.layers()
        assert len(routing.layers()) == 4

    def test_statistics_tell_where_the_gates_point(self, arguments):
        attention = MoERoPEAttention(**arguments, num_experts=4, top_k=1)
        for expert, name in enumerate(PROJECTIONS):
            gate = getattr(attention, name).gate
            torch.nn.init.zeros_(gate.weight)
            torch.nn.init.constant_(gate.bias[expert], 1.0)
        statistics = attention.get_expert_statistics(**inputs(arguments))
        assert [statistics[name].argmax().item() for name in PROJECTIONS] == [0, 1, 2, 3]
        assert all(weight_E.max() == 1 for weight_E in statistics.values())
        attention.q_proj.enabled = False
        assert set(attention.get_expert_statistics(**inputs(arguments))) == set(PROJECTIONS[1:])


def test_every_setting_reaches_the_layers():
    attention = MoERoPEAttention(**SELF, num_experts=5, lora_rank=3, top_k=4, lora_alpha=6.0, lora_dropout=0.5)
    for name in PROJECTIONS:
        layer = getattr(attention, name)
        assert isinstance(layer, MoELoRALinear)
        assert (layer.num_experts, layer.rank, layer.gate.top_k, layer.scale) == (5, 3, 4, 2.0)
        assert layer.dropout.p == 0.5
    assert attention.dropout_p == 0
    with_null = MoERoPEAttention(**SELF, null_expert=True)
    torch.nn.init.constant_(with_null.q_proj.gate.bias[10:], 1.0)
    weight_E = with_null.get_expert_statistics(**inputs(SELF))["q_proj"]
    assert weight_E.shape == (10,)
    assert 0.1 < weight_E.sum() < 0.5  # the rest is the null expert's


def test_defaults_are_those_of_a_run():
    config, layer = LoraConfig(), MoERoPEAttention(**SELF).q_proj
    assert layer.settings() == {
        "method": "mope", "experts": config.experts, "rank": config.rank, "top_k": config.top_k,
        "null_expert": config.router.null_expert, "scale": config.alpha / config.rank,
    }  # fmt: skip
    assert convert_rope_attention_to_moe(RoPEAttention(**SELF)).q_proj.settings() == layer.settings()


def test_only_a_plain_rope_attention_is_converted():
    for other in (Attention(32, 1), MoERoPEAttention(**SELF)):
        with pytest.raises(TypeError, match=f"expected a RoPEAttention, not {type(other).__name__}"):
            convert_rope_attention_to_moe(other)


class TestInSAM2:
    NANO = ModelConfig(image_size=64)
    CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"

    @pytest.fixture(scope="class")
    def base(self):
        torch.manual_seed(0)
        return build_model(self.NANO).eval()

    @pytest.fixture(scope="class")
    def base_file(self, base, tmp_path_factory):
        path = tmp_path_factory.mktemp("base") / "nano.pt"
        torch.save({"model": base.state_dict()}, path)
        return path

    def overrides(self, *further):
        of_predictors = "++model.binarize_mask_from_pts_for_mem_enc=true"  # what build_model sets for every model
        return {"hydra_overrides_extra": [*config_overrides(self.NANO), *further, of_predictors]}

    def build(self, base_file, **options):
        return build_sam2_moe(self.CONFIG, base_file, "cpu", **self.overrides(*OVERRIDES), **options)

    def test_a_config_names_it_and_masks_are_stock_until_trained(self, base, base_file, capsys):
        model = self.build(base_file)
        assert "335 base keys; 64 adapter keys are new" in capsys.readouterr().out
        attentions = [m for m in model.modules() if isinstance(m, RoPEAttention)]
        assert [type(attention) for attention in attentions] == [MoERoPEAttention] * 4
        assert self.logits(model).equal(self.logits(base))
        train_a_little(model)
        assert not self.logits(model).equal(self.logits(base))

    def test_stock_sam2_builds_it(self):
        model = build_sam2(self.CONFIG, device="cpu", hydra_overrides_extra=OVERRIDES)
        adapters = dict(iter_adapter_layers(model))
        assert len(adapters) == 32
        assert {adapter.settings()["experts"] for adapter in adapters.values()} == {3}

    def test_exactly_its_experts_train(self, base_file):
        model = self.build(base_file, mode="train")
        assert {n for n, p in model.named_parameters() if p.requires_grad} == adapter_state_dict(model).keys()

    def test_folders_of_injected_adapters_load(self, base, base_file, tmp_path):
        lora = LoraConfig(experts=3, rank=2)
        injected = build_model(self.NANO.model_copy(update={"checkpoint": str(base_file)})).eval()
        inject_adapters(injected, lora)
        train_a_little(injected)
        save_adapter(injected, tmp_path, lora, {})
        model = self.build(base_file, adapter=tmp_path)
        assert self.logits(model).equal(self.logits(injected))
        assert sum(p.requires_grad for p in model.parameters()) == len(adapter_state_dict(model))
        save_adapter(model, tmp_path / "again", lora, {})

    def test_folders_of_other_adapters_are_refused(self, base_file, tmp_path):
        lora = LoraConfig(experts=4, rank=2)
        other = build_model(self.NANO.model_copy(update={"checkpoint": str(base_file)}))
        inject_adapters(other, lora)
        save_adapter(other, tmp_path, lora, {})
        with refuses("adapter.mismatch") as caught:
            self.build(base_file, adapter=tmp_path)
        assert "'experts': 4" in str(caught.value)

    def test_adapters_are_not_put_in_twice(self, base_file):
        with pytest.raises(ValueError, match="has adapters already"):
            self.build(base_file, lora=LoraConfig())

    def test_builders_name_attentions_with_injected_experts(self, base, base_file):
        everywhere = {**self.overrides(), "lora": LoraConfig(experts=2)}
        model = build_sam2_moe(self.CONFIG, base_file, "cpu", **everywhere)
        attentions = [m for m in model.memory_attention.modules() if isinstance(m, RoPEAttention)]
        assert [type(attention) for attention in attentions] == [MoERoPEAttention] * 4
        assert self.logits(model).equal(self.logits(base))
        some = LoraConfig(experts=2, target_modules=["memory_attention.*.q_proj"])
        model = build_sam2_moe(self.CONFIG, base_file, "cpu", **{**everywhere, "lora": some})
        assert not any(isinstance(m, MoERoPEAttention) for m in model.modules())

    def test_the_attentions_of_a_built_model_convert(self, base_file, base):
        model = build_model(self.NANO.model_copy(update={"checkpoint": str(base_file)})).eval()
        for name, module in list(model.named_modules()):
            if isinstance(module, RoPEAttention):
                replace_module(model, name, convert_rope_attention_to_moe(module, **SETTINGS))
        assert len(dict(iter_adapter_layers(model))) == 16
        assert self.logits(model).equal(self.logits(base))

    def logits(self, model) -> torch.Tensor:
        """Mask logits of an object tracked from its mask, with memories and object pointers in use."""
        video = make_video(SOURCE, 0, frames=3, side=64)
        collected = []
        with predicting(model) as predictor:
            forward = predictor._forward_sam_heads
            predictor._forward_sam_heads = lambda *a, **k: collected.append(out := forward(*a, **k)) or out
            track(predictor, video, "mask")
        assert len(collected) > 2
        return torch.cat([tensor.flatten() for out in collected for tensor in out[:6]])
