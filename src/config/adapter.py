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
    """The router of a MoPE layer, which chooses experts for each token."""

    balance_weight: float = Field(0.01, ge=0, description="Weight of the load-balancing loss.")
    z_weight: float = Field(0.001, ge=0, description="Weight of the router's z-loss, which keeps its logits small.")
    null_expert: bool = Field(
        False, description="Adds one more expert to choose from, which adds nothing to the layer's output."
    )
    jitter: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Noise on the router's input in training: it is multiplied by a number within 1 ± this.",
    )
    bias: bool = Field(True, description="Whether the router has a bias.")
    level: Literal["token", "frame", "video"] = Field("token", description="What one decision of the router holds for.")
    noise: float = Field(
        0.0, ge=0, description="Standard deviation of noise on the router's logits in training. 0: none."
    )
    bias_rate: float = Field(
        0.0, ge=0, description="Balance without a loss: how far an expert's selection bias moves per step. 0: off."
    )


class LoraConfig(Section):
    """Which adapters, and where."""

    method: Method = Field(
        "mope",
        description="What trains: MoPE or LoRA adapters, every parameter (`full`), the mask decoder (`decoder`), or "
        "nothing (`none`).",
    )
    rank: int = Field(4, gt=0, description="Rank of each adapter, or of each expert of a MoPE layer.")
    alpha: float = Field(8.0, gt=0, description="Scale of the adapters: their output is multiplied by alpha / rank.")
    experts: int = Field(10, gt=0, description="Experts per layer, for method mope.")
    top_k: int = Field(2, gt=0, description="Experts chosen per token, for method mope.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's input that is dropped in training.")
    target_modules: list[str] = Field(
        default_factory=lambda: list(model_spec(DEFAULT_MODEL).default_targets),
        min_length=1,
        description="Linear layers to adapt: dotted suffixes or globs of their names, or `all`. Left out: the "
        "model's own default.",
    )
    router: RouterConfig = Field(default_factory=RouterConfig, description="Router of a MoPE layer.")

    @model_validator(mode="after")
    def _top_k_fits(self) -> LoraConfig:
        choices = self.experts + self.router.null_expert
        if self.top_k > choices:
            raise ValueError(f"top_k is {self.top_k}, but there are only {choices} experts to choose from")
        return self
