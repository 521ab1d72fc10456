"""A whole run: its sections, and what must fit between them."""

from __future__ import annotations

from pydantic import Field, model_validator

from ..models.spec import model_spec
from .adapter import ADAPTER_METHODS, LoraConfig
from .dataset import DatasetConfig
from .evaluation import EvaluationConfig
from .model import ModelConfig
from .section import TAKEN_NAMES, Section
from .training import TrainingConfig
from .yaml_text import dump_yaml


class Config(Section):
    """A whole run."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="Which model, with which weights.")
    lora: LoraConfig = Field(default_factory=LoraConfig, description="Which adapters, and where.")
    dataset: DatasetConfig = Field(default_factory=DatasetConfig, description="Domains to learn, and clips.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The trainer.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="What the table says.")
    output_dir: str = Field("experiments", description="Folder for checkpoints, adapter, logs and results.")

    @model_validator(mode="after")
    def _targets_of_the_model(self) -> Config:
        """Let the model say what is adapted by default, and what its short names stand for."""
        spec, given = model_spec(self.model.name), "target_modules" in self.lora.model_fields_set
        targets = spec.expand_targets(self.lora.target_modules) if given else list(spec.default_targets)
        if targets != self.lora.target_modules:
            self.lora = self.lora.model_copy(update={"target_modules": targets})
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        training = self.training
        if training.extend and training.start_from:
            raise ValueError("training.extend and training.start_from exclude each other")
        if training.extend and (len(self.dataset.domains) > 1 or self.lora.method not in ADAPTER_METHODS):
            raise ValueError("training.extend learns one domain at a time, with lora.method mope or lora")
        if training.adapter_scales != [1.0] and (training.start_from or self.lora.method not in ADAPTER_METHODS):
            raise ValueError("training.adapter_scales needs new adapters: lora.method mope or lora, and no start_from")
        if training.adapter_init == "data" and self.lora.method not in ADAPTER_METHODS:
            raise ValueError(f"training.adapter_init is data, but lora.method {self.lora.method} has no adapters")
        if training.adapter_init == "data" and training.start_from:
            raise ValueError("training.adapter_init is data, but training.start_from says how the adapters begin")
        return self

    @model_validator(mode="after")
    def _unique_domains(self) -> Config:
        names = [data.name for data in self.dataset.domains] + [domain.name for domain in self.evaluation.domains]
        taken = {name for name in names if names.count(name) > 1 or name in TAKEN_NAMES}
        if taken:
            raise ValueError(
                "names of domains, under dataset and under evaluation, must be unique and none of "
                f"{', '.join(TAKEN_NAMES)}: {', '.join(sorted(taken))}"
            )
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults included, as YAML that :func:`load_config` reads back to an equal one."""
        return dump_yaml(self.model_dump(mode="json"))
