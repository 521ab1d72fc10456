"""The section ``evaluation``: which frames of which domains are scored, and how."""

from __future__ import annotations

from pydantic import Field

from .dataset import NamedSplit
from .section import Prompt, Protocol, Section


class ConceptEvaluationConfig(Section):
    """What is asked beside the phrases of data sets, to find out what was forgotten."""

    nouns: list[str] = Field(
        default_factory=list,
        description="Nouns asked of pictures of the new domain, where none of them is, and of unlabelled pictures. "
        "Empty: 24 everyday ones.",
    )
    pictures: str | None = Field(
        None,
        description="Folder of unlabelled pictures, on which answers of base and adapted model to these nouns are "
        "compared. null: none.",
    )


class EvaluationConfig(Section):
    """What is scored, and how."""

    prompt: Prompt = Field("mask", description="Prompt that each object gets once, on the first frame that shows it.")
    protocol: Protocol = Field(
        "after_prompt",
        description="Frames that are scored: all after the prompt, or as the official tools of DAVIS or SA-V do.",
    )
    clicks: int = Field(0, ge=0, description="Correction clicks in the table of single images. 0: no such table.")
    frames: int = Field(8, ge=2, description="Frames of the clips that still images become.")
    max_images: int | None = Field(None, gt=0, description="Images or videos scored per domain. null: all.")
    max_objects: int = Field(5, gt=0, description="Objects scored per image or video, the largest first.")
    max_side: int = Field(
        1024, gt=0, description="Longest side of still images in pixels. Larger ones are scaled down to it."
    )
    source_clips: int = Field(
        24, ge=0, description="Held-out synthetic clips of the domain that the bundled base was trained on. 0: none."
    )
    domains: list[NamedSplit] = Field(
        default_factory=list, description="Further data sets to score: what must not be forgotten."
    )
    concepts: ConceptEvaluationConfig = Field(
        default_factory=ConceptEvaluationConfig, description="Further questions to models that find concepts."
    )
    overlays: int = Field(3, ge=0, description="Best and worst cases drawn per domain.")
