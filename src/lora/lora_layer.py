"""LoRA: a frozen Linear layer plus a learned product of two thin matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapter import AdapterLayer, check_rank_and_dropout, match_dtype


class LoRAAdapter(nn.Module):
    """The low-rank branch alone: x ↦ scale · B A dropout(x), with scale = alpha / rank.

    ``lora_A`` (R, D) starts uniform within ±1/√D and ``lora_B`` (O, R) at zero, so that the branch starts as zero.
    Source: Hu et al., LoRA, 2021, section 4.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 4,
        alpha: float = 1.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_rank_and_dropout(rank, dropout)
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A and set B to zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O), in the dtype of the weights, or of autocast."""
        h = F.linear(match_dtype(self.dropout(x), self.lora_A), self.lora_A)
        return F.linear(h * self.scale, self.lora_B)


class LoRALinear(AdapterLayer):
    """A Linear layer with a LoRA branch: base(x) + (alpha / rank) · B A x, in the dtype of base(x).

    At initialisation the output is the base layer's, bit for bit.

    Merging is for inference. The merged weight is kept beside the base weight, which is never written to. So unmerging
    restores the base bit for bit, a merged layer saves and fingerprints as an unmerged one, and a disabled one is its
    base layer. Merged weights get no gradient and do not follow later changes of the adapter: unmerge to train or load.

    Args:
        base_layer: the layer to adapt, (…, D) → (…, O).
        rank: R, at least 1.
        alpha: the branch is scaled by alpha / rank.
        dropout: on the branch's input, 0 ≤ dropout < 1.
    """

    merged_weight: Tensor | None

    def __init__(self, base_layer: nn.Linear, rank: int = 4, alpha: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__(base_layer)
        device = base_layer.weight.device
        self.adapter = LoRAAdapter(self.in_features, self.out_features, rank, alpha, dropout, device)
        # A buffer, so that it follows .to(); not persistent, because it follows from the other weights.
        self.register_buffer("merged_weight", None, persistent=False)

    @property
    def lora_A(self) -> nn.Parameter:
        """(R, D)."""
        return self.adapter.lora_A

    @property
    def lora_B(self) -> nn.Parameter:
        """(O, R)."""
        return self.adapter.lora_B

    @property
    def merged(self) -> bool:
        """Whether the branch is folded into one weight."""
        return self.merged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, O)."""
        base: Tensor
        if not self.enabled:
            base = self.base_layer(x)
            return base
        if self.merged_weight is not None:
            return F.linear(x, self.merged_weight, self.bias)
        base = self.base_layer(x)
        branch: Tensor = self.adapter(x)
        return base + branch.to(base.dtype)

    def get_delta_weight(self) -> Tensor:
        """Return what the branch adds to the base weight: (alpha / rank) · B A, (O, D), at least float32."""
        dtype = torch.promote_types(self.lora_B.dtype, torch.float32)
        with torch.autocast(self.lora_B.device.type, enabled=False):
            return self.adapter.scale * (self.lora_B.to(dtype) @ self.lora_A.to(dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the branch into one weight, summed in float32 or wider; a merged layer does not change."""
        if not self.merged:
            weight = self.base_layer.weight
            delta = self.get_delta_weight()
            wide = torch.promote_types(weight.dtype, delta.dtype)
            self.merged_weight = (weight.to(wide) + delta.to(wide)).to(weight.dtype)

    def unmerge(self) -> None:
        """Go back to base plus branch; a layer that is not merged does not change."""
        self.merged_weight = None

    def settings(self) -> dict[str, int | float | bool | str]:
        return {"method": "lora", "rank": self.adapter.rank, "scale": self.adapter.scale}
