"""The section ``training``: the trainer, its objectives and its schedule."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section

MIN_CLIPS_PER_EPOCH = 256  # unless the config says a number: few images still make enough steps


class PromptConfig(Section):
    """Shares of prompt types in training, and correction clicks on the prompted frame (point and box prompts)."""

    mask: float = Field(0.5, ge=0, le=1)
    box: float = Field(0.25, ge=0, le=1)
    point: float = Field(0.25, ge=0, le=1)
    correction_clicks: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> PromptConfig:
        total = self.mask + self.box + self.point
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares mask + box + point must sum to 1, not {total:g}")
        return self


class LossConfig(Section):
    """Weights of SAM 2's losses, summed over frames as in its own recipe."""

    mask: float = Field(20.0, ge=0, description="focal loss")
    dice: float = Field(1.0, ge=0)
    iou: float = Field(1.0, ge=0, description="predicted IoU, L1")
    occlusion: float = Field(1.0, ge=0, description="object score")


class DistillConfig(Section):
    """Self-distillation: the base teaches the adapted model on general clips without labels."""

    weight: float = Field(0.0, ge=0, description="of the distillation loss; 0: off")
    folder: str | None = Field(
        None, description="general images and videos; null: clips of the bundled base's source domain (sam2_nano)"
    )
    clips: int = Field(500, ge=3, description="general clips; the teacher's answers on them are kept")
    batch_size: int = Field(2, gt=0, description="general clips per optimizer step that is taught")
    every: int = Field(1, gt=0, description="1: every step is taught; N: every N-th, N times as strongly")
    objects: int = Field(2, gt=0, description="things followed per clip")
    features_weight: float = Field(0.0, ge=0, description="of the distance of memory-conditioned features")


class PenaltyConfig(Section):
    """A penalty on how far the weights that train move from where they began; a baseline, beside distillation."""

    kind: Literal["l2sp", "ewc"] = Field("l2sp", description="every weight alike, or by its Fisher information")
    weight: float = Field(0.0, ge=0, description="of the penalty; 0: off")
    clips: int = Field(64, ge=3, description="general clips that the Fisher information is measured on (ewc)")
    folders: list[str] = Field(
        default_factory=list, description="images and videos to measure it on, beside the general clips (ewc)"
    )


class FeatureCacheConfig(Section):
    """Keeping what a frozen image encoder makes of training clips, of which there are so many views and no more."""

    store: Literal["memory", "disk"] = Field("memory", description="main memory, or files in output_dir")
    budget_gb: float = Field(4.0, ge=0, description="room for features; clips beyond it are encoded every time")
    views: int = Field(4, gt=0, description="augmented views of every clip, which come again in turn, epoch by epoch")


class SaveEveryConfig(Section):
    """How often checkpoints are written, beside those at the end of every epoch."""

    steps: int | None = Field(None, gt=0, description="last.pt at least every so many steps")
    minutes: float | None = Field(10.0, ge=0, description="last.pt at least every so many minutes")
    epochs: int = Field(0, ge=0, description="epoch_*.pt every so many epochs; 0: best and last only")


class TrainingConfig(Section):
    """The trainer."""

    max_epochs: int = Field(10, gt=0)
    max_steps: int | None = Field(None, gt=0, description="stop after this many optimizer steps")
    batch_size: int = Field(4, gt=0, description="clips per forward pass")
    gradient_accumulation_steps: int = Field(1, gt=0)
    clips_per_epoch: int | str | None = Field(
        None,
        description="clips per epoch: their number, or text such as 4x: so many for each image or video of all "
        "domains; null: so many for each that there are at least 256",
    )
    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate: float = Field(0.0, ge=0, description="where the cosine ends")
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0, description="null: no clipping")
    use_amp: Literal[True, False, "auto"] = Field("auto", description="auto: on CUDA")
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    activation_checkpointing: bool = False
    cache_features: FeatureCacheConfig | None = Field(
        None, description="keep what the image encoder makes of clips, where nothing in it trains; null: no"
    )
    enable_segmentation: bool = Field(
        True, description="false: train the IoU and occlusion scores only, without mask losses"
    )
    prompts: PromptConfig = Field(default_factory=PromptConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    penalty: PenaltyConfig = Field(default_factory=PenaltyConfig)
    start_from: str | None = Field(
        None, description="a run's checkpoint, or an adapter folder: train its weights on; null: the base's"
    )
    extend: str | None = Field(
        None, description="an adapter folder: learn a group of experts beside those that are in it (--extend)"
    )
    adapter_init: Literal["random", "data"] = Field(
        "random", description="data: the new adapters begin with what their layers see of the new domain"
    )
    adapter_scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1.0],
        min_length=1,
        description="shares of what the adapters learned; the one that validates best is kept at the end",
    )
    domain_gate: bool = Field(True, description="fit a domain gate at the end, which tells learned domains from others")
    validate_every_epochs: int = Field(1, gt=0)
    save_every: SaveEveryConfig = Field(default_factory=SaveEveryConfig)
    early_stopping_patience: int | None = Field(None, gt=0, description="validations without a better J")
    on_non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what a loss or gradient that is infinite or NaN makes of its step"
    )
    max_skips: int = Field(10, gt=0, description="steps skipped in a row before the run stops all the same")
    monitor_clips: int = Field(
        4,
        ge=0,
        description="validation clips that are drawn into TensorBoard and scored with the other prompts, "
        "and clips of each domain to be kept that are scored; 0: none",
    )
    num_workers: int = Field(1, ge=0, description="processes that load data")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    seed: int = Field(0, ge=0)

    @field_validator("clips_per_epoch", mode="before")
    @classmethod
    def _number_or_times(cls, value: object) -> object:
        text = str(value)
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            if re.fullmatch(r"0*[1-9][0-9]*(\.0)?", text):
                return int(float(text))
            if re.fullmatch(r"[1-9][0-9]*x", text):
                return text
        elif value is None:
            return None
        raise ValueError("must be a whole number above 0, or such a number and an x, such as 4x")

    def clips_in_epoch(self, videos: int) -> int:
        """Return the length of an epoch for so many images and videos in all."""
        clips = self.clips_per_epoch
        if isinstance(clips, int):
            return clips
        times = math.ceil(MIN_CLIPS_PER_EPOCH / videos) if clips is None else int(clips.removesuffix("x"))
        return videos * times
