import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from src.config import ClipConfig, LoraConfig, LossConfig, ModelConfig, PromptConfig
from src.core.errors import UserError
from src.data.clips import ClipBatch, sample_clip
from src.data.prompts import Prompt
from src.data.synthetic import CELLS, SOURCE, make_videos
from src.lora.injection import apply_method, routed_layers
from src.lora.moe_layer import MoELoRALinear
from src.lora.recording import RouterCall, RoutingRecord, record_routing
from src.lora.router import TopKGatingNetwork, watch_memory
from src.lora.router_losses import load_balancing_loss, router_z_loss, update_balance_bias
from src.models.activation_checkpointing import checkpoint_activations
from src.models.sam2.build import build_model
from src.models.sam2.streaming import StreamingTracker
from src.models.sam2.train_forward import build_loss, build_trainable, segmentation_losses
from src.models.spec import model_spec


def gate_with_logits(logits_E, **options):
    """A gate whose logits are the same for every token."""
    gate = TopKGatingNetwork(3, len(logits_E) - options.get("null_expert", False), **options)
    nn.init.zeros_(gate.weight)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor(logits_E))
    return gate


def call(logits, chosen, num_experts=None):
    logits, chosen = torch.tensor(logits, requires_grad=True), torch.tensor(chosen)
    chosen_NE = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, chosen, True)
    return RouterCall(logits, chosen_NE, num_experts or logits.shape[-1], chosen.shape[1])


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


def test_jitter_is_bounded_and_for_training_only():
    torch.manual_seed(0)
    gate = TopKGatingNetwork(1, 1, top_k=1, jitter=0.1, bias=False)
    nn.init.ones_(gate.weight)
    x = torch.full((2000, 1), 10.0)
    _, logits = gate(x)
    assert 9.0 <= logits.min() < 9.1
    assert 10.9 < logits.max() <= 11.0
    gate.eval()
    assert torch.equal(gate(x)[1], x)


def test_without_bias_there_is_no_bias():
    assert [name for name, _ in TopKGatingNetwork(3, 4, top_k=2, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_experts": 0, "top_k": 1}, "num_experts"),
        ({"num_experts": 3, "top_k": 0}, "top_k must be within 1 and 3"),
        ({"num_experts": 3, "top_k": 4}, "top_k must be within 1 and 3"),
        ({"num_experts": 3, "top_k": 5, "null_expert": True}, "top_k must be within 1 and 4"),
        ({"num_experts": 3, "top_k": 1, "jitter": -0.1}, "jitter"),
    ],
)
def test_wrong_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TopKGatingNetwork(4, **wrong)


def test_balance_by_hand():
    # Both tokens choose expert 0: f = (1, 0). P = mean of (3/4, 1/4) and (1/2, 1/2) = (5/8, 3/8).
    record = RoutingRecord({"layer": [call([[math.log(3.0), 0.0], [0.0, 0.0]], [[0], [0]])]})
    assert load_balancing_loss(record).item() == pytest.approx(2 * 5 / 8)


def test_balance_is_one_when_even_and_E_over_K_when_collapsed():
    even = call([[0.0] * 4] * 2, [[0, 1], [2, 3]])
    collapsed = call([[50.0, 50.0, -50.0, -50.0]] * 2, [[0, 1], [1, 0]])
    assert load_balancing_loss(RoutingRecord({"a": [even]})).item() == pytest.approx(1.0)
    assert load_balancing_loss(RoutingRecord({"a": [collapsed]})).item() == pytest.approx(2.0)
    both = RoutingRecord({"a": [even], "b": [collapsed], "never called": []})
    assert load_balancing_loss(both).item() == pytest.approx(1.5)


def test_balance_pools_the_calls_of_a_layer():
    # Each call alone is collapsed; together they are even.
    first = call([[50.0, -50.0]] * 3, [[0]] * 3)
    second = call([[-50.0, 50.0]] * 3, [[1]] * 3)
    assert load_balancing_loss(RoutingRecord({"a": [first, second]})).item() == pytest.approx(1.0)


def test_minimising_the_balance_loss_balances():
    torch.manual_seed(0)
    x = torch.randn(512, 8) + 1
    gate = TopKGatingNetwork(8, 4, top_k=1)
    with torch.no_grad():
        gate.bias[0] = 2.0
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for step in range(60):
        with record_routing(gate) as routing:
            gate(x)
        if step == 0:
            assert routing.utilization()[""].max() > 0.95
        loss = load_balancing_loss(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert routing.utilization()[""].max() < 0.4


def test_balance_is_asked_among_the_experts_given_that_null_was_not_chosen():
    # Token 0 chooses expert 0 and null, token 1 chooses null only in effect (weight 0), token 2 both experts.
    logits = [[math.log(3.0), 0.0, 1.0], [5.0, -5.0, 9.0], [0.0, 0.0, -2.0]]
    three = call(logits, [[0, 2], [0, 2], [0, 1]], num_experts=2)
    sure = math.e**5 / (math.e**5 + math.e**-5)
    # Choices of experts: 0, 0, 0, 1, so f = (3/4, 1/4); tokens weigh 1, 1, 2 in P.
    p_0 = (3 / 4 + sure + 2 * (1 / 2)) / 4
    expected = 2 * (3 / 4 * p_0 + 1 / 4 * (1 - p_0))
    loss = load_balancing_loss(RoutingRecord({"a": [three]}))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert not three.logits_NE.grad[:, 2].any()
    assert three.logits_NE.grad[:, :2].any()


def test_tokens_that_choose_only_null_say_nothing_about_balance():
    even = [[0.0, 0.0, -1.0]] * 2
    without = call(even, [[0], [1]], num_experts=2)
    with_null = call([*even, [9.0, 0.0, 10.0]], [[0], [1], [2]], num_experts=2)
    assert load_balancing_loss(RoutingRecord({"a": [without]})).item() == pytest.approx(1.0)
    assert load_balancing_loss(RoutingRecord({"a": [with_null]})).item() == pytest.approx(1.0)
    only_null = call([[9.0, 0.0, 10.0]], [[2]], num_experts=2)
    loss = load_balancing_loss(RoutingRecord({"a": [only_null]}))
    loss.backward()
    assert loss.item() == 0


def test_z_loss_by_hand():
    # logsumexp of (0, 0) is log 2, of (log 3, 0) is log 4 = 2 log 2.
    a = call([[0.0, 0.0], [math.log(3.0), 0.0]], [[0], [0]])
    b = call([[0.0, 0.0]], [[0]])
    record = RoutingRecord({"a": [a], "b": [b]})
    log2 = math.log(2)
    expected = ((log2**2 + (2 * log2) ** 2) / 2 + log2**2) / 2
    assert router_z_loss(record).item() == pytest.approx(expected)


def test_shares_of_parts_add_up_to_the_losses_of_the_whole():
    first = call([[1.0, 0.0, 0.3], [0.0, 2.0, 0.1]], [[0, 2], [1, 2]], num_experts=2)
    second = call([[0.5, -1.0, 0.2]], [[0, 1]], num_experts=2)
    whole, *parts = (RoutingRecord({"a": calls}) for calls in ([first, second], [first], [second]))
    for loss in (load_balancing_loss, router_z_loss):
        shares = [loss(part, whole.expert_counts()).item() for part in parts]
        assert sum(shares) == pytest.approx(loss(whole).item())


def test_losses_of_nothing_are_zero():
    for record in (RoutingRecord(), RoutingRecord({"a": []}), RoutingRecord({"a": [call([[0.0]], [[0]])][:0]})):
        assert load_balancing_loss(record).item() == router_z_loss(record).item() == 0


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "first": MoELoRALinear(nn.Linear(6, 6), num_experts=4),
            "second": MoELoRALinear(nn.Linear(6, 6), num_experts=3, null_expert=True),
            "idle": MoELoRALinear(nn.Linear(6, 6), num_experts=3),
        }
    )


def run(model, x, **checkpointing):
    for name in ("first", "second"):
        x = checkpoint(model[name], x, **checkpointing) if checkpointing else model[name](x)
    return x


def test_the_record_names_layers_and_keeps_every_call(model):
    with record_routing(model) as routing:
        run(model, torch.randn(2, 5, 6))
        run(model, torch.randn(3, 6))
        run(model, torch.randn(0, 6))
    assert [len(calls) for calls in routing.calls.values()] == [3, 3, 0]
    assert list(routing.calls) == ["first", "second", "idle"]
    layers = routing.layers()
    assert list(layers) == ["first", "second"]
    assert layers["first"].logits_NE.shape == (13, 4)
    assert layers["second"].logits_NE.shape == (13, 4)
    assert layers["second"].selected_NK().shape == (13, 2)
    assert layers["second"].num_experts == 3


def test_nothing_is_recorded_outside_the_scope_or_after_an_exception(model):
    x = torch.randn(5, 6)
    with pytest.raises(KeyError), record_routing(model) as routing:
        raise KeyError
    run(model, x)
    assert not any(routing.calls.values())
    assert not model["first"].gate.recorders


def test_scopes_nest(model):
    x = torch.randn(5, 6)
    with record_routing(model) as outer:
        with record_routing(model) as inner:
            pass
        run(model, x)
        with record_routing(model) as second:
            run(model, x)
        run(model, x)
    assert [len(record.calls["first"]) for record in (outer, inner, second)] == [3, 0, 1]


def test_disabled_layers_are_not_recorded(model):
    model["first"].enabled = False
    with record_routing(model) as routing:
        run(model, torch.randn(5, 6))
    assert [len(calls) for calls in routing.calls.values()] == [0, 1, 0]


def test_recomputation_under_checkpointing_counts_once_and_gives_the_same_gradients(model):
    x = torch.randn(5, 6)
    gradients, forwards = [], []
    model["first"].register_forward_pre_hook(lambda *_: forwards.append(1))
    for checkpointing in ({}, {"use_reentrant": False}):
        model.zero_grad()
        forwards.clear()
        with record_routing(model) as routing:
            out = run(model, x, **checkpointing)
            (out.sum() + load_balancing_loss(routing) + router_z_loss(routing)).backward()
        assert [len(calls) for calls in routing.calls.values()] == [1, 1, 0]
        gradients.append([p.grad.clone() for p in model["first"].adapter_parameters()])
    assert len(forwards) == 2, "the layer was not recomputed, so this test shows nothing"
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)
    assert gradients[0][2].any()


def test_usage_by_hand():
    calls = [call([[0.0] * 3] * 2, [[0, 1], [0, 2]], num_experts=2), call([[0.0] * 3] * 2, [[0, 1], [1, 0]], 2)]
    usage = RoutingRecord({"a": calls, "idle": []}).utilization()
    assert list(usage) == ["a"]
    torch.testing.assert_close(usage["a"], torch.tensor([4 / 8, 3 / 8, 1 / 8]))


def test_entropy_by_hand():
    record = RoutingRecord({"a": [call([[0.0] * 4, [100.0, 0.0, 0.0, 0.0]], [[0], [0]])]})
    assert record.entropy()["a"] == pytest.approx(math.log(4) / 2)


def test_defaults_decide_as_plain_top_k_does():
    torch.manual_seed(0)
    gate = TopKGatingNetwork(3, 5, top_k=2)
    x = torch.randn(4, 6, 3)
    top, chosen = torch.nn.functional.linear(x, gate.weight, gate.bias).topk(2)
    expected = torch.zeros(4, 6, 5).scatter(-1, chosen, top.softmax(-1))
    gates, _ = gate(x)
    assert torch.equal(gates > 0, expected > 0)
    torch.testing.assert_close(gates, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 2, 3, 3)])
def test_at_frame_level_all_tokens_of_an_element_decide_as_their_mean(shape):
    torch.manual_seed(0)
    gate = TopKGatingNetwork(3, 5, top_k=2)
    nn.init.normal_(gate.weight)
    x = torch.randn(shape)
    by_mean, _ = gate(x.flatten(1, -2).mean(1))
    gate.level = "frame"
    with record_routing(gate) as routing:
        gates, _ = gate(x)
    torch.testing.assert_close(
        gates.expand(*shape[:-1], 5), by_mean.reshape(4, *[1] * (len(shape) - 2), 5).expand(*shape[:-1], 5)
    )
    assert len(routing.layers()[""].logits_NE) == 4
    without_tokens = x.flatten(0, -2)
    assert gate(without_tokens)[0].shape == (len(without_tokens), 5)


def test_a_layer_at_frame_level_applies_one_decision_to_all_tokens():
    torch.manual_seed(0)
    layer = MoELoRALinear(nn.Linear(3, 4), num_experts=5, rank=2, top_k=1, level="frame")
    nn.init.normal_(layer.lora_B)
    nn.init.normal_(layer.gate.weight)
    x = torch.randn(2, 6, 3)
    _, logits = layer.gate(x)
    for element, expert in enumerate(logits.argmax(-1).flatten().tolist()):
        delta = layer.scale * x[element] @ layer.lora_A[expert].T @ layer.lora_B[expert].T
        torch.testing.assert_close(layer(x)[element], layer.base_layer(x[element]) + delta)


class Memory(nn.Module):
    """The arguments of SAM 2's memory attention: curr (N, B, D) or [it], memory (M, B, C)."""

    def __init__(self):
        super().__init__()
        self.layer = MoELoRALinear(nn.Linear(3, 4), 5, top_k=2, level="video", gate_features=2)
        nn.init.normal_(self.layer.lora_B)
        nn.init.normal_(self.layer.gate.weight)

    def forward(self, curr, memory):
        curr = curr[0] if isinstance(curr, list) else curr
        return self.layer(curr.transpose(0, 1))


def test_at_video_level_the_first_prompted_frame_decides_for_all_frames():
    torch.manual_seed(0)
    attention = Memory()
    watch_memory(attention)
    watch_memory(attention)
    assert len(attention._forward_pre_hooks) == 1
    prompted, frames = torch.randn(6, 2, 2), [torch.randn(6, 2, 3) for _ in range(3)]
    with record_routing(attention) as routing:
        for i, frame in enumerate(frames):
            attention(curr=[frame], memory=torch.cat([prompted, torch.randn(6 * i + 1, 2, 2)]))
        attention(frames[0], torch.cat([torch.randn(6, 2, 2), prompted]))
    first, *rest, other = [call.logits_NE for call in routing.calls["layer"]]
    assert all(torch.equal(logits, first) for logits in rest)
    assert not torch.equal(other, first)
    expected = nn.functional.linear(prompted.mean(0), attention.layer.gate.weight, attention.layer.gate.bias)
    torch.testing.assert_close(first, expected)


def test_at_video_level_a_copied_model_has_its_own_context_and_rows_keep_theirs():
    torch.manual_seed(0)
    attention = Memory()
    watch_memory(attention)
    prompted, frame = torch.randn(6, 3, 2, requires_grad=True), torch.randn(6, 3, 3)
    out = attention(frame, prompted)
    copied = copy.deepcopy(attention)
    copied(frame, torch.randn(6, 3, 2))
    x = frame.transpose(0, 1)
    assert torch.equal(attention.layer(x), out)
    assert not torch.equal(copied.layer(x), out)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(attention.layer.forward_rows(x, rows), out[rows])
    assert torch.equal(attention.layer(x), out)
    with pytest.raises(ValueError, match="batch size 2 came with the memory of 3 objects"):
        attention.layer(x[:2])
    with pytest.raises(ValueError, match="no memory"):
        Memory()(frame, prompted)


def test_noise_is_for_training_only_and_not_in_the_logits():
    torch.manual_seed(0)
    gate = gate_with_logits([0.0, 1.0, 2.0], top_k=1, noise=1.0)
    x = torch.randn(3000, 3)
    gates, logits = gate(x)
    assert torch.equal(logits, torch.tensor([0.0, 1.0, 2.0]).expand(3000, 3))
    # The difference of two unit normals has deviation √2: expert 2 beats expert 1 with chance Φ(1 / √2) = 0.76.
    beaten = (gates[:, 1] > 0).sum() / ((gates[:, 1] > 0).sum() + (gates[:, 2] > 0).sum())
    assert 0.15 < beaten < 0.3
    assert torch.equal(gate.eval()(x)[0], torch.tensor([0.0, 0.0, 1.0]).expand(3000, 3))


def test_noise_moves_weights_too_and_its_gradient_is_the_logits_own():
    torch.manual_seed(0)
    gate = gate_with_logits([0.0, 0.0], top_k=2, noise=1.0)
    gates, _ = gate(torch.randn(50, 3))
    assert gates.std() > 0.1
    gates[:, 0].sum().backward()
    assert gate.bias.grad.abs().min() > 0


def test_the_balance_bias_chooses_and_does_not_weigh():
    gate = gate_with_logits([0.0, 1.0, 2.0], top_k=2, balance_bias=True)
    gate.balance_bias.copy_(torch.tensor([5.0, 0.0, -5.0]))
    gates, logits = gate(torch.randn(4, 3))
    first = 1 / (1 + math.e)
    torch.testing.assert_close(gates, torch.tensor([first, 1 - first, 0.0]).expand(4, 3))
    torch.testing.assert_close(logits, torch.tensor([0.0, 1.0, 2.0]).expand(4, 3))


def test_updates_move_the_balance_bias_by_the_sign_of_the_load_error():
    model = nn.ModuleDict({name: nn.Module() for name in "abc"})
    for name in "abc":
        model[name].gate = TopKGatingNetwork(3, 4, top_k=1, balance_bias=name != "c")
    model["b"].gate.requires_grad_(False)
    usage = {name: torch.tensor([4.0, 1.0, 0.0, 3.0]) for name in "abc"}
    update_balance_bias(model, usage, 0.1)
    torch.testing.assert_close(model["a"].gate.balance_bias, torch.tensor([-0.1, 0.1, 0.1, -0.1]))
    assert not model["b"].gate.balance_bias.any()
    update_balance_bias(model, {"a": torch.tensor([9.0, 1.0, 1.0, 1.0])}, 0.1)
    torch.testing.assert_close(model["a"].gate.balance_bias, torch.tensor([-0.25, 0.15, 0.15, -0.05]))


def test_the_null_experts_bias_stays_zero():
    gate = TopKGatingNetwork(3, 2, top_k=1, null_expert=True, balance_bias=True)
    update_balance_bias(gate, {"": torch.tensor([0.1, 0.1, 0.8])}, 0.1)
    assert not gate.balance_bias.any()
    update_balance_bias(gate, {"": torch.tensor([0.2, 0.0, 0.8])}, 0.1)
    torch.testing.assert_close(gate.balance_bias, torch.tensor([-0.1, 0.1, 0.0]))


def test_the_balance_bias_balances_without_a_loss():
    torch.manual_seed(0)
    gate = TopKGatingNetwork(8, 4, top_k=1, balance_bias=True)
    with torch.no_grad():
        gate.bias[0] = 2.0
    x = torch.randn(512, 8)
    for _ in range(60):
        with record_routing(gate) as routing, torch.no_grad():
            gate(x)
        update_balance_bias(gate, routing.utilization(), 0.05)
    assert routing.utilization()[""].max() < 0.5
    assert gate.bias[0] == 2.0


def test_without_options_no_further_state_is_kept():
    assert list(TopKGatingNetwork(3, 4, top_k=2).state_dict()) == ["weight", "bias"]
    assert "balance_bias" in TopKGatingNetwork(3, 4, top_k=2, balance_bias=True).state_dict()
    with pytest.raises(ValueError, match="noise"):
        TopKGatingNetwork(3, 4, top_k=2, noise=-0.1)


def adapted(model, level):
    """Routed layers in memory attention that are far from zero."""
    torch.manual_seed(1)
    apply_method(model, LoraConfig(experts=3, router={"level": level}))
    for layer in routed_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
        nn.init.normal_(layer.gate.weight)
    return model


@pytest.mark.parametrize("level", ["frame", "video"])
def test_levels_in_sam2_training_with_and_without_activation_checkpointing(level):
    video = make_videos(CELLS, 2, 0, frames=1, side=64)
    clips = [sample_clip(v, ClipConfig(frames=4, max_objects=2), 64, 0, np.random.default_rng(0)) for v in video.videos]
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = adapted(build_trainable(ModelConfig(image_size=64), PromptConfig(), 4).train(), level)
        if checkpointed:
            checkpoint_activations(model, model_spec("sam2_nano").checkpointed_blocks)
        with record_routing(model) as routing:
            losses = segmentation_losses(model, build_loss(LossConfig()), ClipBatch.collate(clips))
        losses["total"].backward()
        objects = sum(clip.masks_TOHW.shape[1] for clip in clips)
        for calls in routing.calls.values():
            assert len(calls) >= 2
            assert {call.logits_NE.shape[0] for call in calls} == {objects}
            same = all(torch.equal(call.logits_NE, calls[0].logits_NE) for call in calls)
            assert same == (level == "video")
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(g is not None and g.any() for name, g in found[0].items() if name.endswith("gate.weight"))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_at_video_level_objects_and_streams_do_not_touch_each_other():
    torch.manual_seed(0)
    model = adapted(build_model(ModelConfig(image_size=64)).eval(), "video")
    tracker = StreamingTracker(model)
    clip = make_videos(SOURCE, 1, 0, frames=4, side=64).videos[0]
    frames = [source.read() for source in clip.frames]
    prompts = [Prompt(object_id=i, box=box) for i, box in enumerate([(5.0, 5.0, 30.0, 30.0), (20.0, 30.0, 60.0, 60.0)])]

    def logits(*streams):
        """Each stream's logits; the streams take turns, frame by frame."""
        banks = [tracker.start(len(frames)) for _ in streams]
        out = [[] for _ in streams]
        for t, frame in enumerate(frames):
            for i, prompted in enumerate(streams):
                prediction, banks[i] = tracker.step(frame, banks[i], prompted if t == 0 else ())
                out[i].append(prediction.logits)
        return out

    alone = logits(prompts[:1])[0]
    together, again = logits(prompts, prompts[:1])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, again, strict=True))


def test_at_video_level_layers_outside_memory_attention_are_refused():
    model = build_model(ModelConfig(image_size=64))
    before = list(model.state_dict())
    config = LoraConfig(target_modules=["memory_attention.*.q_proj", "obj_ptr_tpos_proj"], router={"level": "video"})
    with pytest.raises(UserError, match=r"lora\.router\.level is video.*obj_ptr_tpos_proj"):
        apply_method(model, config)
    assert list(model.state_dict()) == before
