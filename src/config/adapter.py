"""The section ``lora``: which adapters, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..models.spec import model_spec
from ..models.zoo import DEFAULT_MODEL
from .section import Section

Method = Literal["mope", "lora", "full", "decoder", "none"]
ADAPTER_METHODS: tuple[Method, ...] = ("mope", "lora")


class RouterConfig(Section):
    """The top-k gate of a MoPE layer."""

    balance_weight: float = Field(0.01, ge=0, description="weight of the load-balancing loss")
    z_weight: float = Field(0.001, ge=0, description="weight of the router z-loss")
    null_expert: bool = Field(False, description="one more expert to choose, which adds nothing")
    jitter: float = Field(0.0, ge=0, lt=1, description="multiplicative noise on the gate's input, training only")
    bias: bool = Field(True, description="whether the gate has a bias")
    level: Literal["token", "frame", "video"] = Field("token", description="what one decision of the gate holds for")
    noise: float = Field(0.0, ge=0, description="standard deviation of noise on the gate's logits, training only")
    bias_rate: float = Field(
        0.0, ge=0, description="balance without a loss: how far an expert's selection bias moves per step; 0: off"
    )


class LoraConfig(Section):
    """Which adapters, and where."""

    method: Method = "mope"
    rank: int = Field(4, gt=0)
    alpha: float = Field(8.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    experts: int = Field(10, gt=0, description="experts per layer (mope)")
    top_k: int = Field(2, gt=0, description="experts chosen per token (mope)")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = Field(
        default_factory=lambda: list(model_spec(DEFAULT_MODEL).default_targets),
        min_length=1,
        description="dotted suffixes or globs of Linear layers, or 'all'; left out: the model's own default",
    )
    router: RouterConfig = Field(default_factory=RouterConfig)

    @model_validator(mode="after")
    def _top_k_fits(self) -> LoraConfig:
        choices = self.experts + self.router.null_expert
        if self.top_k > choices:
            raise ValueError(f"top_k is {self.top_k}, but there are only {choices} experts to choose from")
        return self
