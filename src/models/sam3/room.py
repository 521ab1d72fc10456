"""The functions of SAM 3's concept models, which the task of concepts reaches by the model's spec."""

from .build import build_model, save_folder
from .export import how_to_load, stock_name, write_official, write_transformers
from .forward import (
    ConceptOutput,
    TextFeatures,
    encode_images,
    encode_phrases,
    forward_concepts,
    has_frozen_encoder,
    has_frozen_text,
    input_size,
    query_count,
)
from .losses import ConceptTotals, concept_losses
from .video import build_video_model, track_phrases

__all__ = [
    "ConceptOutput",
    "ConceptTotals",
    "TextFeatures",
    "build_model",
    "build_video_model",
    "concept_losses",
    "encode_images",
    "encode_phrases",
    "forward_concepts",
    "has_frozen_encoder",
    "has_frozen_text",
    "how_to_load",
    "input_size",
    "query_count",
    "save_folder",
    "stock_name",
    "track_phrases",
    "write_official",
    "write_transformers",
]
