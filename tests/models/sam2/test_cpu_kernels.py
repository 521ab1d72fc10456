"""Fast parts of SAM 2: the stock parts' numbers, or for dropout their distribution, and gradients that fit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from torch import nn
from torch.nn import functional as F

from src.config import ModelConfig, PromptConfig
from src.models.activation_checkpointing import checkpoint_activations
from src.models.sam2.build import build_model
from src.models.sam2.cpu_kernels import (
    FastDropout,
    SharedPositions,
    attention_with_dropout,
    use_fast_cpu_kernels,
    use_fast_dropout,
    use_reference_kernels,
)
from src.models.sam2.train_forward import build_trainable


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(ModelConfig(image_size=64)).eval()


def stock_copy(model):
    stock = copy.deepcopy(model)
    use_reference_kernels(stock)
    return stock


class TestPositions:
    @pytest.fixture
    def both(self):
        stock = PositionEmbeddingSine(16)
        lean = copy.deepcopy(stock)
        use_fast_cpu_kernels(lean)
        assert type(lean) is SharedPositions
        return stock, lean

    def test_they_are_the_stock_ones_at_the_first_call_and_later(self, both):
        stock, lean = both
        for frames, size in ((3, (4, 6)), (3, (4, 6)), (1, (4, 6)), (2, (8, 8))):
            x = torch.randn(frames, 5, *size)
            assert torch.equal(lean(x), stock(x))

    def test_frames_share_their_memory(self, both):
        positions = both[1](torch.randn(3, 5, 4, 4))
        assert positions.stride(0) == 0
        assert positions.untyped_storage().nbytes() == positions[0].nbytes

    def test_those_made_in_inference_mode_can_train(self, both):
        with torch.inference_mode():
            both[1](torch.randn(1, 5, 4, 4))
        x = torch.randn(2, 16, 4, 4, requires_grad=True)
        (x * both[1](x)).sum().backward()
        assert x.grad.any()


class TestEncoder:
    def test_features_are_the_stock_ones_also_the_second_time(self, model):
        stock = stock_copy(model)
        for _ in range(2):
            image = torch.randn(2, 3, 64, 64)
            with torch.inference_mode():
                found, expected = model.forward_image(image), stock.forward_image(image)
            for key in ("backbone_fpn", "vision_pos_enc"):
                assert all(map(torch.equal, found[key], expected[key]))

    def test_learned_positions_are_made_once(self, model, monkeypatch):
        calls = []
        resize = F.interpolate
        monkeypatch.setattr(F, "interpolate", lambda *a, **k: calls.append(k["mode"]) or resize(*a, **k))
        with torch.no_grad():
            for _ in range(3):
                model.image_encoder.trunk(torch.randn(1, 3, 64, 64))
        assert calls.count("bicubic") == 1

    def test_changed_ones_are_made_anew_however_they_changed(self, model):
        trunk, image = model.image_encoder.trunk, torch.randn(1, 3, 64, 64)
        nn.init.normal_(trunk.pos_embed)
        with torch.no_grad():
            before = trunk(image)[0]
            trunk.pos_embed.data.mul_(2)
            assert not torch.equal(trunk(image)[0], before)
            trunk.pos_embed.data.div_(2)
            assert torch.equal(trunk(image)[0], before)

    def test_they_have_the_models_precision(self, model):
        with torch.no_grad():
            for dtype in (torch.float32, torch.bfloat16):
                trunk = model.image_encoder.trunk.to(dtype)
                assert trunk(torch.randn(1, 3, 64, 64, dtype=dtype))[0].dtype == dtype

    def test_ones_that_train_get_a_gradient(self, model):
        trunk = model.image_encoder.trunk
        with torch.no_grad():
            trunk(torch.randn(1, 3, 64, 64))
        trunk(torch.randn(1, 3, 64, 64))[-1].sum().backward()
        assert trunk.pos_embed.grad is not None

    def test_stock_is_stock(self, model):
        modules = [*stock_copy(model).modules()]
        assert not any(type(module).__module__ == "src.models.sam2.cpu_kernels" for module in modules)
        assert any(type(module).__module__ == "src.models.sam2.cpu_kernels" for module in model.modules())


class TestDropout:
    def test_numbers_are_dropped_at_random_and_the_others_scaled(self):
        torch.manual_seed(0)
        layer, x = FastDropout(0.25), torch.rand(300, 401) + 1
        out = layer(x)
        kept = out != 0
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
        assert torch.allclose(out[kept], x[kept] / 0.75)
        assert kept.float().mean(dim=0).std().item() == pytest.approx(math.sqrt(0.75 * 0.25 / 300), rel=0.2)

    def test_the_gradient_passes_where_numbers_were_kept(self):
        x = torch.rand(30, 41, requires_grad=True)
        out = FastDropout(0.5)(x)
        out.sum().backward()
        assert torch.equal(x.grad, (out != 0) * 2.0)

    def test_torchs_seed_decides(self):
        layer, x = FastDropout(0.5), torch.ones(100)
        torch.manual_seed(1)
        first, second = layer(x), layer(x)
        torch.manual_seed(1)
        assert torch.equal(layer(x), first)
        assert not torch.equal(first, second)

    def test_nearly_and_really_all_numbers_are_dropped(self):
        assert not FastDropout(1.0)(torch.ones(1000)).any()
        assert FastDropout(1 - 1e-9)(torch.ones(1000)).isfinite().all()

    @pytest.mark.parametrize("layer", [FastDropout(0.5).eval(), FastDropout(0.0), FastDropout(1e-9)])
    def test_without_dropout_nothing_changes(self, layer):
        x = torch.randn(50)
        assert torch.equal(layer(x), x)


class TestAttention:
    @staticmethod
    def tensors(dtype=torch.float32, n=6, m=9):
        torch.manual_seed(0)
        return [torch.randn(2, 3, rows, 8, dtype=dtype, requires_grad=True) for rows in (n, m, m)]

    def test_without_dropout_it_is_torchs_own_with_its_gradients(self):
        q, k, v = self.tensors(torch.float64)
        found, expected = attention_with_dropout(q, k, v, 0.0), F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(found, expected)
        grad = torch.randn_like(found)
        ours, torchs = (torch.autograd.grad(out, (q, k, v), grad) for out in (found, expected))
        torch.testing.assert_close(ours, torchs)

    @pytest.mark.parametrize("at_once", [1, 20, 2**18])
    def test_weights_are_those_of_the_softmax_dropped_and_scaled_whatever_is_done_at_once(self, monkeypatch, at_once):
        monkeypatch.setattr("src.models.sam2.cpu_kernels.SCORES_AT_ONCE", at_once)
        q, k, _ = self.tensors(m=200)
        dropped = attention_with_dropout(q, k, torch.eye(200).expand(2, 3, -1, -1), 0.25)
        whole = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(dim=-1)
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)

    def test_gradients_are_those_of_what_was_computed(self):
        def seeded(q, k, v):
            torch.manual_seed(3)
            return attention_with_dropout(q, k, v, 0.5)

        torch.autograd.gradcheck(seeded, self.tensors(torch.float64, 3, 4))

    def test_a_lean_layer_has_the_stock_layers_output_without_dropout(self):
        stock = RoPEAttention(embedding_dim=32, num_heads=2, feat_sizes=(4, 4), dropout=0.1)
        lean = copy.deepcopy(stock)
        use_fast_dropout(lean)
        x = torch.randn(1, 16, 32)
        assert torch.equal(lean.eval()(x, x, x), stock.eval()(x, x, x))

    @pytest.mark.parametrize(("dtype", "own"), [(torch.float32, True), (torch.bfloat16, False)])
    def test_its_dropout_is_ours_in_float32(self, monkeypatch, dtype, own):
        calls = []
        ours = attention_with_dropout
        monkeypatch.setattr(
            "src.models.sam2.cpu_kernels.attention_with_dropout", lambda *a, **k: calls.append(k) or ours(*a, **k)
        )
        lean = RoPEAttention(embedding_dim=32, num_heads=2, feat_sizes=(4, 4), dropout=0.1)
        use_fast_dropout(lean)
        x = torch.randn(1, 16, 32)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            lean(x, x, x).sum().backward()
        assert calls == ([{"dropout_p": 0.1}] if own else [])
        assert lean.q_proj.weight.grad.any()


def test_a_model_to_train_drops_out_lean_and_recomputes_what_it_dropped():
    model = build_trainable(ModelConfig(name="sam2.1_hiera_tiny", image_size=64), PromptConfig(), 2).memory_attention
    assert not any(type(module) in (nn.Dropout, RoPEAttention) for module in model.modules())
    current, memory = torch.randn(16, 1, 256), torch.randn(20, 1, 64)

    def gradients(part):
        torch.manual_seed(5)
        part.zero_grad()
        part(current, memory, torch.zeros_like(current), torch.zeros_like(memory), 4).sum().backward()
        return [parameter.grad.clone() for parameter in part.parameters()]

    expected = gradients(model)
    whole = nn.Module()
    whole.memory_attention = model
    assert checkpoint_activations(whole, ["memory_attention.layers.*"])
    assert all(map(torch.equal, gradients(model), expected))
