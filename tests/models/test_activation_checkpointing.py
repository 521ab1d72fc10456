"""A block that is computed a second time is in the mode of its first time."""

from __future__ import annotations

import torch
from torch import nn

from src.models.activation_checkpointing import checkpoint_activations


def test_a_forward_pass_in_eval_mode_is_repeated_in_eval_mode():
    """As of a student of self-distillation, whose backward pass comes when the model trains again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 8)))
    inputs, found = torch.randn(4, 8), []
    for checkpointed in (False, True):
        if checkpointed:
            assert checkpoint_activations(model, ["*"]) == ["0"]
        model.zero_grad()
        loss = model.eval()(inputs).square().sum()
        model.train()
        model[0][3].eval()
        loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        assert [module.training for module in model[0]] == [True, True, True, False]
    assert all(map(torch.equal, *found))
