"""A whole run: its sections, and what must fit between them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from ..models.spec import model_spec
from .adapter import ADAPTER_METHODS, LoraConfig
from .dataset import DatasetConfig
from .evaluation import EvaluationConfig
from .model import ModelConfig
from .section import TAKEN_NAMES, Section
from .training import TrainingConfig
from .yaml_text import dump_yaml

TASK_KEYS: Mapping[str, tuple[str, ...]] = {
    "tracking": (
        "dataset.clip", "dataset.min_object_side", "dataset.augmentation.frame_brightness",
        "dataset.augmentation.frame_contrast", "dataset.augmentation.frame_saturation",
        "dataset.augmentation.saturation", "dataset.augmentation.grey", "training.prompts",
        "training.loss", "training.distill", "training.penalty", "evaluation.prompt", "evaluation.protocol",
        "evaluation.clicks", "evaluation.frames", "evaluation.max_objects",
    ),
    "concepts": ("dataset.phrases", "training.concepts", "evaluation.concepts"),
}  # fmt: skip
"""Keys that only models of one task read; in a run of another they are mistakes, unless they have their default."""


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
    def _keys_of_the_task(self) -> Config:
        """Refuse keys of a task that the model is not for: nothing would read them."""
        task, defaults = model_spec(self.model.name).task, type(self).model_construct()
        others = [key for other, keys in TASK_KEYS.items() if other != task for key in keys]
        wrong = [key for key in others if task in TASK_KEYS and _value(self, key) not in (None, _value(defaults, key))]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: not for model.name {self.model.name}, whose task is {task}; leave it out"
            )
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
        start = training.adapter_init
        if start != "random" and self.lora.method not in ADAPTER_METHODS:
            raise ValueError(f"training.adapter_init is {start}, but lora.method {self.lora.method} has no adapters")
        if start != "random" and training.start_from:
            raise ValueError(f"training.adapter_init is {start}, but training.start_from says how the adapters begin")
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


def _value(config: Config, dotted: str) -> object:
    """Return the value at a dotted key; None where its section is."""
    value: object = config
    for part in dotted.split("."):
        value = getattr(value, part, None)
    return value
