"""Data-driven initialisation of new adapters.

The first factor A of an adapter gets the directions in which its layer's inputs vary most. The router's rows point at
clusters of these inputs, so that each expert starts with a part of the data. B stays zero: the model's output does not
change. Sources: Paischer et al., One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation
(EVA), 2024, for A; the clusters are this project's extension to experts.

Where general inputs are given, the directions are those in which the new domain varies most relative to them: the
generalised eigenvectors of the two, as in discriminant analysis. With A frozen, what training can do to general inputs
is bounded by how little of them A lets through. Related: CorDA (Yang et al., 2024) keeps adapters out of the directions
that general inputs use by a decomposition of weights; gradient projection (Saha et al., 2021) and InfLoRA (Liang and
Li, 2024) by an orthogonal projection. Here nothing is cut off: a direction counts by the ratio of the two variances.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .adapter import AdapterLayer, disable_adapters
from .lora_layer import LoRALinear
from .moe_layer import MoELoRALinear

DAMPING = 0.1
"""Share of the mean variance of general inputs that every direction has at least."""


def data_driven_init(
    model: nn.Module,
    adapters: Mapping[str, AdapterLayer],
    run: Callable[[], object],
    samples: int = 4096,
    seed: int = 0,
    general: Callable[[], object] | None = None,
) -> None:
    """Initialise untrained adapters from the inputs that their layers get in the base model.

    The inputs of a layer with experts are clustered into E clusters. Expert e's A gets the R principal directions of
    cluster e, each as long as a random row is on average; where a cluster has fewer, the other rows stay random. The
    router's logits become those of the nearest centroid (c·x − ‖c‖² / 2). They are scaled to differ between experts as
    much as a random router's do, and the null expert's row stays random. A LoRA
    layer's inputs are one cluster.

    Args:
        model: the model with the adapters.
        adapters: by dotted name, as :func:`~src.lora.injection.apply_method` and
            :func:`~src.lora.expert_groups.add_adapter` return them.
        run: runs the model on some batches of the new data; adapters are off and no graph is kept meanwhile.
        samples: tokens kept per layer, drawn from all that it sees.
        seed: random seed of drawing and clustering.
        general: runs the model on general inputs, whose directions A avoids; None: it avoids none.

    Raises:
        ValueError: a layer did not run, or all of its inputs have numbers that are not finite.
    """
    inputs = _collect_inputs(model, adapters, run, samples, seed)
    avoided = {} if general is None else _collect_inputs(model, adapters, general, samples, seed)
    for layer, adapter in adapters.items():
        x_ND, metric_DD = inputs[layer], _inverse_root(avoided[layer]) if layer in avoided else None
        if isinstance(adapter, MoELoRALinear):
            _init_experts(adapter, x_ND, seed, metric_DD)
        elif isinstance(adapter, LoRALinear):
            _init_rows(adapter.lora_A, x_ND, metric_DD)


def freeze_first_factors(adapters: Mapping[str, AdapterLayer]) -> None:
    """Let no adapter's A train."""
    for adapter in adapters.values():
        adapter.lora_A.requires_grad_(False)


def _inverse_root(general_ND: Tensor) -> Tensor:
    """Return S^(-1/2) of the second moment S of general inputs, its diagonal raised by a share of its mean: (D, D)."""
    x = general_ND.double()
    moment = x.T @ x / len(x)
    diagonal = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    raised = moment + DAMPING * moment.trace() / len(moment) * diagonal
    values, vectors = torch.linalg.eigh(raised)
    root: Tensor = (vectors / values.clamp(min=1e-12).sqrt()) @ vectors.T
    return root.to(general_ND.dtype)


def _collect_inputs(
    model: nn.Module, adapters: Mapping[str, AdapterLayer], run: Callable[[], object], samples: int, seed: int
) -> dict[str, Tensor]:
    """Return (N, D) float32 tokens per layer, N ≤ samples, each token of all calls with the same chance."""
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(layer: str, x_ND: Tensor) -> None:
        x_ND = x_ND[x_ND.isfinite().all(dim=1)]
        # Each token draws a number, and those with the smallest ones are kept.
        draw_N = torch.rand(len(x_ND), generator=generator).to(x_ND.device)
        if layer in kept:
            x_ND, draw_N = torch.cat([kept[layer][0], x_ND]), torch.cat([kept[layer][1], draw_N])
        first = draw_N.argsort()[:samples]
        kept[layer] = (x_ND[first], draw_N[first])

    hooks = [
        adapter.base_layer.register_forward_pre_hook(
            lambda _, args, layer=layer: keep(layer, args[0].detach().flatten(0, -2).float())
        )
        for layer, adapter in adapters.items()
    ]
    try:
        with disable_adapters(model), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if empty := [layer for layer in adapters if layer not in kept or not len(kept[layer][0])]:
        raise ValueError(f"no finite input was seen by {', '.join(empty[:3])}")
    return {layer: x_ND for layer, (x_ND, _) in kept.items()}


@torch.no_grad()
def _init_experts(layer: MoELoRALinear, x_ND: Tensor, seed: int, metric_DD: Tensor | None) -> None:
    centroids_ED, cluster_N = _clusters(x_ND, layer.num_experts, seed)
    for expert, A_RD in enumerate(layer.lora_A):
        _init_rows(A_RD, x_ND[cluster_N == expert], metric_DD)
    router = layer.gate
    weight_ED = centroids_ED - centroids_ED.mean(dim=0)
    bias_E = -centroids_ED.square().sum(dim=1) / 2
    bias_E -= bias_E.mean()
    drawn_ED = router.weight[: layer.num_experts]
    drawn, found = ((x_ND @ w_ED.T).std(dim=1, correction=0).mean() for w_ED in (drawn_ED, weight_ED))
    if not found > 0:  # a single expert, or inputs that are all the same
        return
    scale = drawn / found
    router.weight[: layer.num_experts] = scale * weight_ED
    router.bias[: layer.num_experts] = scale * bias_E


def _clusters(x_ND: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the centroids (count, D) of k-means and each token's cluster (N,)."""
    from scipy.cluster.vq import kmeans2  # it takes seconds, and few runs need it

    points = x_ND.cpu().numpy().astype(np.float64)
    rng = np.random.default_rng(seed)
    if len(np.unique(points, axis=0)) <= count:  # too few to cluster: each of the first points by itself
        centroids = np.resize(points, (count, points.shape[1]))
        clusters = np.arange(len(points)) % count
    else:
        with warnings.catch_warnings():  # an empty cluster's expert keeps its random A
            warnings.simplefilter("ignore", UserWarning)
            centroids, clusters = kmeans2(points, count, minit="++", rng=rng)
    return torch.from_numpy(centroids).to(x_ND), torch.from_numpy(clusters).to(x_ND.device)


@torch.no_grad()
def _init_rows(A_RD: Tensor, x_ND: Tensor, metric_DD: Tensor | None = None) -> None:
    """Write the principal directions of the inputs into the rows of A, as far as there are any.

    With a metric they are those of the inputs seen through it, mapped back, and each of length 1.
    """
    centred = x_ND - x_ND.mean(dim=0)
    seen = centred if metric_DD is None else centred @ metric_DD
    directions_KD = torch.linalg.svd(seen, full_matrices=False).Vh if len(x_ND) > 1 else centred[:0]
    if metric_DD is not None:
        directions_KD = torch.nn.functional.normalize(directions_KD @ metric_DD, dim=1)
    rows = min(len(A_RD), len(x_ND) - 1, len(directions_KD))
    if rows > 0:
        # A row of numbers uniform within ±1/√D has squared length 1/3 on average.
        A_RD[:rows] = directions_KD[:rows] / 3**0.5
