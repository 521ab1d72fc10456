"""The one schema of the one YAML: what a run is, checked before anything starts.

``load_config(path, overrides)`` gives a :class:`Config` or raises :class:`~src.core.errors.UserError`, which lists
every mistake with its dotted key. ``Config.to_yaml`` writes the resolved config, from which the run can be repeated.
"""

from .adapter import ADAPTER_METHODS, LoraConfig, Method, RouterConfig
from .dataset import AugmentationConfig, ClipConfig, DatasetConfig, DomainConfig, MotionConfig, NamedSplit, SplitConfig
from .evaluation import ConceptEvaluationConfig, EvaluationConfig
from .loading import load_config, parse_config, parse_section, read_yaml, set_key
from .model import ModelConfig, image_size_of
from .run import Config
from .section import GATE_MODES, TAKEN_NAMES, DomainName, Format, Prompt, Protocol, Section, Split
from .training import (
    ConceptConfig,
    ConceptLossConfig,
    DistillConfig,
    FeatureCacheConfig,
    LossConfig,
    PenaltyConfig,
    PromptConfig,
    SaveEveryConfig,
    TrainingConfig,
)
from .yaml_text import MAX_YAML_CHARACTERS, one_line_yaml

__all__ = [
    "ADAPTER_METHODS",
    "GATE_MODES",
    "MAX_YAML_CHARACTERS",
    "TAKEN_NAMES",
    "AugmentationConfig",
    "ClipConfig",
    "ConceptConfig",
    "ConceptEvaluationConfig",
    "ConceptLossConfig",
    "Config",
    "DatasetConfig",
    "DistillConfig",
    "DomainConfig",
    "DomainName",
    "EvaluationConfig",
    "FeatureCacheConfig",
    "Format",
    "LoraConfig",
    "LossConfig",
    "Method",
    "ModelConfig",
    "MotionConfig",
    "NamedSplit",
    "PenaltyConfig",
    "Prompt",
    "PromptConfig",
    "Protocol",
    "RouterConfig",
    "SaveEveryConfig",
    "Section",
    "Split",
    "SplitConfig",
    "TrainingConfig",
    "image_size_of",
    "load_config",
    "one_line_yaml",
    "parse_config",
    "parse_section",
    "read_yaml",
    "set_key",
]
