"""L2-SP and EWC: where they pull to, and what EWC finds important."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from src.config import ClipConfig, LoraConfig, ModelConfig, PromptConfig
from src.data.synthetic import SOURCE, make_videos
from src.lora.injection import apply_method
from src.models.sam2.train_forward import Tracked, build_trainable
from src.studies.weight_penalty import (
    Anchor,
    build_anchor,
    fisher_information,
    sampled_log_likelihood,
    weight_penalty,
)
from src.train.setup import build_run
from tests.errors import refuses

SIZE, FRAMES = 64, 2


class TestAnchor:
    def test_it_is_half_the_squared_distance(self):
        model = nn.Linear(2, 1)
        anchor = Anchor(model)
        assert anchor.penalty() == 0
        with torch.no_grad():
            model.weight += torch.tensor([[1.0, 2.0]])
        assert anchor.penalty().item() == pytest.approx(2.5)

    def test_importance_weights_it(self):
        model = nn.Linear(2, 1)
        anchor = Anchor(model, {"weight": torch.tensor([[3.0, 0.0]]), "bias": torch.ones(1)})
        with torch.no_grad():
            model.weight += torch.tensor([[1.0, 2.0]])
        anchor.penalty().backward()
        assert torch.allclose(model.weight.grad, torch.tensor([[3.0, 0.0]]))

    def test_frozen_parameters_have_no_part_in_it(self):
        model = nn.Linear(2, 1)
        model.bias.requires_grad_(False)
        anchor = Anchor(model)
        with torch.no_grad():
            model.bias += 5
        assert anchor.penalty() == 0


def test_the_likelihood_of_what_the_model_is_sure_of_has_no_gradient():
    logits = torch.full((1, 1, 4, 4), 50.0, requires_grad=True)
    scores = torch.zeros(1, 1, requires_grad=True)
    sampled_log_likelihood(Tracked(logits, scores), torch.Generator().manual_seed(0)).backward()
    assert logits.grad.abs().max() < 1e-6 < scores.grad.abs().max()


def test_fisher_information_is_positive_repeatable_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = build_trainable(ModelConfig(image_size=SIZE), PromptConfig(), FRAMES)
    apply_method(model, LoraConfig(method="decoder"), decoder=("sam_mask_decoder.",))
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = make_videos(SOURCE, 3, 0, FRAMES, SIZE)

    def measure():
        return fisher_information(model, data, 3, ClipConfig(frames=FRAMES), SIZE, seed=0)

    state = torch.get_rng_state()
    first, second = measure(), measure()
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert first.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(first[name], second[name]) and (first[name] >= 0).all() for name in first)
    assert sum(float(each.sum()) for each in first.values()) > 0
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


@pytest.mark.parametrize("penalty", ["{kind: l2sp, weight: 1000}", "{kind: ewc, weight: 1.0e+12, clips: 3}"])
def test_a_run_with_it_is_held_back(make_config, tmp_path, penalty):
    common = ["lora.method=decoder", "training.learning_rate=1e-2", "training.warmup_steps=0"]

    def penalty_after_training(name, *settings):
        objectives = [weight_penalty] if settings else []
        run = build_run(make_config(*common, f"output_dir={tmp_path / name}", *settings), objectives=objectives)
        anchor = build_anchor(run.model, make_config(*common, f"training.penalty={penalty}"))
        batches = iter(run.loader)
        for _ in range(3):  # the first step is the same: nothing has moved yet
            losses = run.train_step(run.next_micro_batches(batches), 0).losses
        assert ("penalty" in losses) == (name == "held")
        return anchor.penalty().item()

    assert penalty_after_training("held", f"training.penalty={penalty}") < 0.9 * penalty_after_training("free")


def test_a_run_does_not_forget_the_penalty_that_its_config_asks_for(make_config):
    with refuses("training.penalty"):
        build_run(make_config("training.penalty.weight=1"))
