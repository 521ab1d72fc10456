"""The section ``dataset``: the domains to learn, and how clips are made of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ..core.shipped import find_file
from .renames import FIRST_DOMAIN, nest_splits
from .section import DomainName, Format, Section, Split


class MotionConfig(Section):
    """Simulated motion of camera and objects that turns a still image into a clip."""

    degrees: float = Field(12.0, ge=0, le=180, description="Rotation over the clip, up to ± this many degrees.")
    translate: float = Field(0.12, ge=0, le=1, description="Shift over the clip, up to ± this share of the image side.")
    scale: float = Field(0.15, ge=0, lt=1, description="Growth or shrinking over the clip, up to ± this share.")
    shear: float = Field(5.0, ge=0, le=45, description="Shear over the clip, up to ± this many degrees.")
    brightness: float = Field(0.15, ge=0, lt=1, description="Change of brightness over the clip, up to ± this share.")
    contrast: float = Field(0.15, ge=0, lt=1, description="Change of contrast over the clip, up to ± this share.")
    elastic: float = Field(
        0.02, ge=0, le=0.2, description="Standard deviation of a smooth warp, as a share of half the image side."
    )
    occlusion: float = Field(0.2, ge=0, le=1, description="Chance that a bar passes in front of the scene.")


class ClipConfig(Section):
    """How clips are cut from videos."""

    frames: int = Field(4, ge=1, description="Frames per training clip.")
    max_objects: int = Field(3, ge=1, description="Objects drawn per clip, at most.")
    max_stride: int = Field(
        1,
        ge=1,
        description="Largest step between frames taken from a video. The step is drawn for each clip, from 1 on.",
    )
    reverse: float = Field(0.0, ge=0, le=1, description="Chance that a video is played backwards.")
    motion: MotionConfig = Field(default_factory=MotionConfig, description="Simulated motion of still images.")


class AugmentationConfig(Section):
    """Random changes of training clips, whole and (``frame_*``) frame by frame.

    The defaults are those of SAM 2's training recipe.
    """

    flip: float = Field(0.5, ge=0, le=1, description="Chance that the clip is mirrored.")
    degrees: float = Field(25.0, ge=0, le=180, description="Rotation, up to ± this many degrees.")
    shear: float = Field(20.0, ge=0, le=45, description="Shear, up to ± this many degrees.")
    scale: float = Field(0.0, ge=0, lt=1, description="Growth or shrinking, up to ± this share.")
    translate: float = Field(0.0, ge=0, le=1, description="Shift, up to ± this share of the image side.")
    brightness: float = Field(
        0.1, ge=0, le=1, description="The clip's brightness is multiplied by a number within 1 ± this."
    )
    contrast: float = Field(
        0.03, ge=0, le=1, description="The clip's contrast is multiplied by a number within 1 ± this."
    )
    saturation: float = Field(
        0.03,
        ge=0,
        le=1,
        description="The clip's saturation is multiplied by a number within 1 ± this. Not for concepts.",
    )
    grey: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Chance that the clip loses its colours. Not for concepts, whose phrases may name them.",
    )
    frame_brightness: float = Field(
        0.1, ge=0, le=1, description="Each frame's brightness is multiplied by a number within 1 ± this."
    )
    frame_contrast: float = Field(
        0.05, ge=0, le=1, description="Each frame's contrast is multiplied by a number within 1 ± this."
    )
    frame_saturation: float = Field(
        0.05, ge=0, le=1, description="Each frame's saturation is multiplied by a number within 1 ± this."
    )


class SplitConfig(Section):
    """The images or videos of one split, and their annotations."""

    img_folder: str = Field(
        description="Folder of images, frames or videos. File names in the annotations are relative to it."
    )
    ann_file: str | None = Field(
        None, description="Annotation file or folder. null: looked for among the images and beside them."
    )
    videos: str | list[str] | None = Field(
        None, description="Videos or images to use: their names, or a text file with one name per line. null: all."
    )


class NamedSplit(SplitConfig):
    """A split that stands on its own: all that is needed to open it."""

    name: DomainName = Field(description="Name in tables and files.")
    format: Format = Field("auto", description="Format of the files. auto: recognised.")
    categories: list[str] | None = Field(
        None,
        description="Categories whose objects are learned and scored, by name; of masks, the number or colour. "
        "null: all.",
    )
    mask_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Reads mask images, also JPEGs and those with soft edges, as black and white: brighter than this "
        "share of white is the object. null: values are numbers of objects.",
    )
    ignore_categories: list[str] = Field(
        default_factory=list,
        description="Categories whose areas are void: no objects, and neither trained on nor scored.",
    )


class DomainConfig(Section):
    """A domain to learn, with its splits."""

    name: DomainName = Field("target", description="Name in tables and files, and of the domain's expert group.")
    weight: float = Field(1.0, gt=0, description="Share of the training clips: this divided by the sum of all weights.")
    license: str | None = Field(
        None,
        description="Licence of the data, such as `CC BY 4.0`, which the adapter's model card states. null: not "
        "stated.",
    )
    format: Format = Field("auto", description="Format of the files. auto: recognised.")
    categories: list[str] | None = Field(
        None,
        description="Categories whose objects are learned and scored, by name; of masks, the number or colour. "
        "null: all.",
    )
    mask_threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Reads mask images, also JPEGs and those with soft edges, as black and white: brighter than this "
        "share of white is the object. null: values are numbers of objects.",
    )
    ignore_categories: list[str] = Field(
        default_factory=list,
        description="Categories whose areas are void: no objects, and neither trained on nor scored.",
    )
    train: SplitConfig = Field(description="Split to train on.")
    val: SplitConfig | None = Field(None, description="Split for validation and for the table. null: none.")
    test: SplitConfig | None = Field(None, description="Split for `evaluate --split test`. null: none.")

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
            videos=place.videos, categories=self.categories, ignore_categories=self.ignore_categories,
            mask_threshold=self.mask_threshold,
        )  # fmt: skip


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Phrases = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), BeforeValidator(_as_list)]
"""A noun phrase, or a list of them."""


class DatasetConfig(Section):
    """Domains to learn, and how clips are made of their images and videos."""

    domains: list[DomainConfig] = Field(
        default_factory=lambda: [DomainConfig.model_validate(FIRST_DOMAIN)],
        min_length=1,
        description="Domains to learn, one or several in one run.",
    )
    skip_bad: bool = Field(
        False,
        description="Leaves damaged entries out and lists them in `skipped.json`, instead of stopping (`--skip-bad`).",
    )
    follow_links: bool = Field(
        False, description="Whether links may lead to images, masks and videos outside the data set's folder."
    )
    max_ann_per_img: int = Field(200, gt=0, description="Annotations kept per image, the largest first.")
    min_object_side: float = Field(
        1.0,
        ge=0,
        description="Objects below this side squared, in pixels at the model's size, are not trained on where an "
        "image has larger ones.",
    )
    phrases: dict[str, Phrases] = Field(
        default_factory=dict,
        description="Category → the noun phrase that asks for it, or several of one meaning. Left out: its own name.",
    )
    clip: ClipConfig = Field(default_factory=ClipConfig, description="How clips are cut from videos.")
    augmentation: AugmentationConfig | None = Field(
        default_factory=AugmentationConfig, description="Random changes of training clips. null: none."
    )
