"""SAM 2's rotary attention with mixture-of-experts projections, for a SAM 2 config to name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn

from ...lora.moe_layer import MoELoRALinear
from ...lora.recording import record_routing
from .patches import take_class

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class MoERoPEAttention(RoPEAttention):
    """RoPEAttention whose four projections are :class:`~src.lora.moe_layer.MoELoRALinear`.

    A drop-in: being a RoPEAttention, SAM 2's memory attention treats it as one, and a SAM 2 config can name it as
    ``_target_: src.models.sam2.moe_attention.MoERoPEAttention``. At initialisation its output is that of its base
    layers, bit for bit. Modules and weights have the names they get when adapters are injected into ``q_proj``,
    ``k_proj``, ``v_proj`` and ``out_proj``, so both ways of building a model read the same adapter folders.

    SAM 2 clones one layer into all layers of memory attention, so named in a config the experts of all layers start
    from the same random A and router; injected adapters are drawn one by one.

    Args:
        args, kwargs: RoPEAttention's own.
        num_experts: E, per projection.
        lora_rank: R, of each expert.
        top_k: K, experts chosen per token.
        lora_alpha: experts are scaled by lora_alpha / lora_rank.
        lora_dropout: on the experts' input; ``dropout`` is the attention's own.
        null_expert: whether the router may also select an expert that adds nothing.
    """

    def __init__(
        self,
        *args: Any,
        num_experts: int = 10,
        lora_rank: int = 4,
        top_k: int = 2,
        lora_alpha: float = 8.0,
        lora_dropout: float = 0.0,
        null_expert: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _wrap_projections(self, num_experts, lora_rank, top_k, lora_alpha, lora_dropout, null_expert)

    @torch.no_grad()
    def get_expert_statistics(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> dict[str, Tensor]:
        """Run the attention and return the mean routing weight of each expert over all tokens.

        How often each expert was selected, the null expert among them, says
        :func:`~src.lora.recording.record_routing`.

        Args:
            q, k, v: (B, N, D) as for ``forward``.
            num_k_exclude_rope: as for ``forward``.

        Returns:
            For each of ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` (E,); sums to 1, less the null expert's mean
            weight. A projection that is switched off is left out.
        """
        with record_routing(self) as routing:
            self(q, k, v, num_k_exclude_rope=num_k_exclude_rope)
        return routing.mean_weights()


def name_moe_attentions(model: nn.Module) -> None:
    """Make every RoPEAttention whose four projections have experts a MoERoPEAttention, in place.

    Weights, names and output stay as they are. Attention in which other layers are adapted keeps its class.
    """
    for module in model.modules():
        stock = type(module) is RoPEAttention
        if stock and all(isinstance(getattr(module, name), MoELoRALinear) for name in PROJECTIONS):
            take_class(module, MoERoPEAttention)


def convert_rope_attention_to_moe(
    attention: RoPEAttention,
    num_experts: int = 10,
    lora_rank: int = 4,
    top_k: int = 2,
    lora_alpha: float = 8.0,
    lora_dropout: float = 0.0,
    null_expert: bool = False,
) -> MoERoPEAttention:
    """Return a MoERoPEAttention with copies of the attention's weights and settings, and its output, bit for bit.

    Rotary settings, dropout, dtype, device, mode and what is frozen are the original's, which is not changed. Experts
    are float32 and trainable. Further arguments are those of :class:`MoERoPEAttention`.

    Raises:
        TypeError: ``attention`` is not a plain RoPEAttention, whose forward the result would run.
    """
    if type(attention) is not RoPEAttention:
        raise TypeError(f"expected a RoPEAttention, not {type(attention).__name__}")
    # Copying the whole object keeps every setting, also those that are no arguments of RoPEAttention.
    converted = take_class(copy.deepcopy(attention), MoERoPEAttention)
    _wrap_projections(converted, num_experts, lora_rank, top_k, lora_alpha, lora_dropout, null_expert)
    return converted


def _wrap_projections(
    attention: RoPEAttention,
    num_experts: int,
    rank: int,
    top_k: int,
    alpha: float,
    dropout: float,
    null_expert: bool,
) -> None:
    for name in PROJECTIONS:
        base = getattr(attention, name)
        layer = MoELoRALinear(base, num_experts, rank, top_k, alpha, dropout, null_expert)
        setattr(attention, name, layer.train(base.training))
