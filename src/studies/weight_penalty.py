"""An objective that holds weights where they began, L2-SP or EWC: a baseline beside distillation."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ClipConfig, Config, image_size_of
from ..core import distributed
from ..core.console import progress_bar
from ..core.device import evaluating
from ..data.clips import sample_unlabelled
from ..data.records import DataSet
from ..data.unlabelled import open_unlabelled
from ..models.protocols import Tracked
from ..models.spec import spec_of
from ..tasks.base import LossTerms, Task
from ..tasks.tracking.distillation import PROMPTS, general_clips, pseudo_labels


class Anchor:
    """Half the weighted squared distance of the trainable parameters from where they were at first.

    With weight 1 for every parameter it is L2-SP (Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks", ICML 2018); with the diagonal of the Fisher information on the old domain,
    elastic weight consolidation (Kirkpatrick et al., PNAS 2017). Of adapters it is their distance from the start.

    Args:
        model: as it is before it trains.
        importance: parameter name → weights of its shape; None: 1 everywhere.
    """

    def __init__(self, model: nn.Module, importance: dict[str, Tensor] | None = None) -> None:
        self.model = model
        self.start = {name: p.detach().clone() for name, p in _trainable(model).items()}
        self.importance = importance

    def penalty(self) -> Tensor:
        """Return the penalty, a scalar with graph."""
        parts = []
        for name, parameter in _trainable(self.model).items():
            moved = (parameter - self.start[name].to(parameter.device)).square()
            if self.importance is not None:
                moved = moved * self.importance[name].to(parameter.device)
            parts.append(moved.sum())
        return torch.stack(parts).sum() / 2


class WeightPenalty:
    """The penalty of ``training.penalty`` as an objective of a run (:class:`src.train.step.Objective`).

    Args:
        anchor: the distance from where the weights began.
        weight: of the penalty.
    """

    source = "training.penalty"

    def __init__(self, anchor: Anchor, weight: float) -> None:
        self.anchor, self.weight = anchor, weight

    def is_due(self, step: int) -> bool:
        """Every step has it."""
        return True

    def losses(self, step: int) -> LossTerms:
        """Return this process' share, the same one as every other's."""
        share = self.anchor.penalty() / distributed.world_size()
        return LossTerms(self.weight * share, {"penalty": share})


def weight_penalty(task: Task, model: nn.Module) -> WeightPenalty:
    """Build the penalty that a run's config asks for, from where the model is now.

    Raises:
        UserError: the general clips or folders that the Fisher information needs cannot be read.
    """
    return WeightPenalty(build_anchor(model, task.config), task.config.training.penalty.weight)


def build_anchor(model: nn.Module, config: Config) -> Anchor:
    """Return the distance of ``config.training.penalty``, from where the model is now. Raises as above."""
    settings, seed = config.training.penalty, config.training.seed
    if settings.kind == "l2sp":
        return Anchor(model)
    follow_links = config.dataset.follow_links
    sets = [general_clips(config), *(open_unlabelled(folder, follow_links) for folder in settings.folders)]
    found = [
        fisher_information(model, data, settings.clips, config.dataset.clip, image_size_of(config.model), seed)
        for data in progress_bar(sets, desc="Fisher information", leave=False)
    ]
    return Anchor(model, {name: torch.stack([each[name] for each in found]).sum(dim=0) for name in found[0]})


def fisher_information(
    model: nn.Module, data: DataSet, clips: int, clip: ClipConfig, size: int, seed: int, objects: int = 2
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of the trainable parameters, on clips without labels.

    Each process of a run takes some of the clips.

    The model finds objects on a clip's first frame and tracks them; masks and object scores are drawn from what it then
    predicts, and the squared gradients of their log-likelihood are averaged over clips.

    Args:
        model: whose parameters and predictions these are; it is left as it was.
        data: videos and still images.
        clips: how many clips are drawn from them.
        clip: length of a clip, and simulated motion for stills.
        size: side of its frames in pixels.
        seed: random seed.
        objects: tracked per clip.

    Returns:
        Parameter name → values of its shape, on its device.
    """
    trainable = _trainable(model)
    information = {name: torch.zeros_like(p) for name, p in trainable.items()}
    with evaluating(model):
        for index in range(distributed.rank(), clips, distributed.world_size()):
            rng = np.random.default_rng((seed, index, 4))
            frames_THWC = sample_unlabelled(data.videos[index % len(data)], clip, size, rng)
            batch = pseudo_labels(model, f"general {index}", frames_THWC, objects, rng)
            out = spec_of(model).load().track_clips(model, batch, PROMPTS[index % len(PROMPTS)])
            draws = torch.Generator().manual_seed(int(rng.integers(2**31)))
            gradients = torch.autograd.grad(
                sampled_log_likelihood(out, draws), list(trainable.values()), allow_unused=True
            )
            for name, gradient in zip(trainable, gradients, strict=True):
                if gradient is not None:
                    information[name] += gradient.square() / clips
    distributed.all_reduce_(list(information.values()))
    return information


def sampled_log_likelihood(out: Tracked, generator: torch.Generator) -> Tensor:
    """The log-likelihood of masks (a mean over pixels, summed over objects and frames) and scores drawn from them."""
    total = torch.zeros((), device=out.scores_TO.device)
    for logits, pixels in ((out.logits_TOhw, out.logits_TOhw[0, 0].numel()), (out.scores_TO, 1)):
        drawn = torch.bernoulli(logits.detach().sigmoid().cpu(), generator=generator).to(logits.device)
        total = total - F.binary_cross_entropy_with_logits(logits, drawn, reduction="sum") / pixels
    return total


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
