"""The section ``evaluation``: which frames of which domains are scored, and how."""

from __future__ import annotations

from pydantic import Field

from .dataset import NamedSplit
from .section import Prompt, Protocol, Section


class EvaluationConfig(Section):
    """What the table says."""

    prompt: Prompt = "mask"
    protocol: Protocol = Field("after_prompt", description="which frames are scored; davis, sav: as their own tools")
    clicks: int = Field(0, ge=0, description="correction clicks of the table of single images; 0: no such table")
    frames: int = Field(8, ge=2, description="frames of the clips that still images become")
    max_images: int | None = Field(None, gt=0, description="images per domain; null: all")
    max_objects: int = Field(5, gt=0, description="objects per image, largest first")
    max_side: int = Field(1024, gt=0, description="larger still images are scored at this many pixels")
    source_clips: int = Field(
        24, ge=0, description="held-out clips of the bundled base's source domain (sam2_nano); 0: none"
    )
    domains: list[NamedSplit] = Field(default_factory=list)
    overlays: int = Field(3, ge=0, description="best and worst cases drawn per domain")
