"""The section ``dataset``: the domains to learn, and how clips are made of them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ..core.shipped import find_file
from .renames import FIRST_DOMAIN, nest_splits
from .section import DomainName, Format, Section, Split


class MotionConfig(Section):
    """Simulated camera and object motion that turns a still image into a clip; magnitudes are per clip."""

    degrees: float = Field(12.0, ge=0, le=180, description="rotation over the clip, up to ±")
    translate: float = Field(0.12, ge=0, le=1, description="shift over the clip, as a share of the image side, up to ±")
    scale: float = Field(0.15, ge=0, lt=1, description="growth or shrinking over the clip, up to ±")
    shear: float = Field(5.0, ge=0, le=45, description="degrees, up to ±")
    brightness: float = Field(0.15, ge=0, lt=1)
    contrast: float = Field(0.15, ge=0, lt=1)
    elastic: float = Field(
        0.02, ge=0, le=0.2, description="smooth warp: its deviation, as a share of half the image side"
    )
    occlusion: float = Field(0.2, ge=0, le=1, description="chance that something passes in front")


class ClipConfig(Section):
    """How clips are cut from videos."""

    frames: int = Field(4, ge=1)
    max_objects: int = Field(3, ge=1, description="objects drawn per clip")
    max_stride: int = Field(1, ge=1, description="frames of a video are taken in steps of 1 to this many, drawn a clip")
    reverse: float = Field(0.0, ge=0, le=1, description="chance that a video is played backwards")
    motion: MotionConfig = Field(default_factory=MotionConfig)


class AugmentationConfig(Section):
    """What is drawn for a whole training clip, and for each frame (``frame_*``); the defaults are SAM 2's recipe."""

    flip: float = Field(0.5, ge=0, le=1, description="chance that the clip is mirrored")
    degrees: float = Field(25.0, ge=0, le=180, description="rotation, up to ±")
    shear: float = Field(20.0, ge=0, le=45, description="degrees, up to ±")
    scale: float = Field(0.0, ge=0, lt=1, description="growth or shrinking, up to ±")
    translate: float = Field(0.0, ge=0, le=1, description="shift, as a share of the image side, up to ±")
    brightness: float = Field(0.1, ge=0, le=1, description="times a number within 1 ± this; so are the next two")
    contrast: float = Field(0.03, ge=0, le=1)
    saturation: float = Field(0.03, ge=0, le=1)
    grey: float = Field(0.05, ge=0, le=1, description="chance that the clip loses its colours")
    frame_brightness: float = Field(
        0.1, ge=0, le=1, description="as brightness, drawn for each frame; so are the next two"
    )
    frame_contrast: float = Field(0.05, ge=0, le=1)
    frame_saturation: float = Field(0.05, ge=0, le=1)


class SplitConfig(Section):
    """The images or videos of one split, and their annotations."""

    img_folder: str = Field(description="images, frames or videos; what the annotations' file names are relative to")
    ann_file: str | None = Field(None, description="annotation file or folder; null: looked for in img_folder")
    videos: str | list[str] | None = Field(
        None, description="only these: names, or a text file with one a line (DAVIS' ImageSets); null: all"
    )


class NamedSplit(SplitConfig):
    """A split that stands on its own: all that is needed to open it."""

    name: DomainName
    format: Format = Field("auto", description="auto: recognised by the files")


class DomainConfig(Section):
    """A domain to learn: its splits, and what is said of all of them."""

    name: DomainName = "target"
    weight: float = Field(1.0, gt=0, description="its share of the training clips is weight / sum of weights")
    license: str | None = Field(None, description="of the data, as the adapter's model card states it")
    format: Format = Field("auto", description="auto: recognised by the files")
    train: SplitConfig
    val: SplitConfig | None = None
    test: SplitConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _splits_in_either_form(cls, value: Any) -> Any:
        """Accept flat names such as ``val_img_folder``; a split whose ``img_folder`` is null is none."""
        if not isinstance(value, dict):
            return value
        domain = dict(value)
        nest_splits(domain)
        for split in ("val", "test"):
            place = domain.get(split)
            if isinstance(place, dict) and place.get("img_folder", "") is None:
                domain[split] = None
        return domain

    def split(self, split: Split) -> NamedSplit | None:
        """Return one of the splits on its own; None where the config does not have it."""
        place = {"train": self.train, "valid": self.val, "test": self.test}[split]
        if place is None:
            return None
        files = None if place.ann_file is None else str(find_file(place.ann_file))
        return NamedSplit(
            name=self.name, format=self.format, img_folder=str(find_file(place.img_folder)), ann_file=files,
            videos=place.videos,
        )  # fmt: skip


class DatasetConfig(Section):
    """The domains to learn, one or several in one run, and how clips are made of them."""

    domains: list[DomainConfig] = Field(
        default_factory=lambda: [DomainConfig.model_validate(FIRST_DOMAIN)],
        min_length=1,
        description="domains to learn; the keys of the first may stand directly under dataset, in flat form",
    )
    skip_bad: bool = Field(False, description="leave damaged entries out, listed in skipped.json, instead of stopping")
    follow_links: bool = Field(
        False, description="use images, masks and videos outside their folder that a link leads to"
    )
    max_ann_per_img: int = Field(200, gt=0, description="annotations kept per image, largest first")
    min_object_side: float = Field(
        1.0, ge=0, description="objects smaller than this, in pixels at the model's resolution, are not trained on"
    )
    clip: ClipConfig = Field(default_factory=ClipConfig)
    augmentation: AugmentationConfig | None = Field(
        default_factory=AugmentationConfig, description="of training clips; null: none"
    )
