"""The section ``lora``: which adapters, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ..models.spec import model_spec
from ..models.zoo import DEFAULT_MODEL
from .section import REMOVED_KEY, Section

Method = Literal["mope", "lora", "full", "decoder", "none"]
ADAPTER_METHODS: tuple[Method, ...] = ("mope", "lora")


REMOVED_ROUTER_KEYS: dict[str, object] = {"level": "token", "jitter": 0.0, "noise": 0.0, "bias": True, "bias_rate": 0.0}
"""Options of version 0.1.0 that did not help, with the values that mean what the router does today."""


class RouterConfig(Section):
    """The router of a MoPE layer, which selects experts for each token."""

    balance_weight: float = Field(0.01, ge=0, description="Weight of the load-balancing loss.")
    z_weight: float = Field(0.001, ge=0, description="Weight of the router's z-loss, which keeps its logits small.")
    null_expert: bool = Field(
        False, description="Adds one more expert to choose from, which adds nothing to the layer's output."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_removed_options(cls, content: object) -> object:
        """Accept keys of earlier files that change nothing, and refuse those that would."""
        if not isinstance(content, dict):
            return content
        for key, value in content.items():
            if key in REMOVED_ROUTER_KEYS and str(value).lower() not in _spellings(REMOVED_ROUTER_KEYS[key]):
                raise PydanticCustomError(
                    REMOVED_KEY,
                    "{key}: {value} was removed, because it did not help (docs/forgetting.md, 'Options that did not "
                    "help'); leave it out",
                    {"key": key, "value": str(value)},
                )
        return {key: value for key, value in content.items() if key not in REMOVED_ROUTER_KEYS}


def _spellings(value: object) -> set[str]:
    """Return how YAML and ``--set`` may write a value."""
    return {"0", "0.0"} if value == 0 else {str(value).lower()}


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
        description="Linear layers to adapt: dotted suffixes or globs of their names, or `all`; `!name` takes back "
        "what entries before it select. Left out: the model's own default.",
    )
    router: RouterConfig = Field(default_factory=RouterConfig, description="Router of a MoPE layer.")

    @model_validator(mode="after")
    def _top_k_fits(self) -> LoraConfig:
        choices = self.experts + self.router.null_expert
        if self.top_k > choices:
            raise ValueError(f"top_k is {self.top_k}, but there are only {choices} experts to choose from")
        return self
