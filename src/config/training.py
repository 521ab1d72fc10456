"""The section ``training``: the trainer, its objectives and its schedule."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .section import Section

MIN_CLIPS_PER_EPOCH = 256  # unless the config says a number: few images still make enough steps


class PromptConfig(Section):
    """How objects are prompted in training."""

    mask: float = Field(0.5, ge=0, le=1, description="Share of objects prompted by a mask. The three shares sum to 1.")
    box: float = Field(0.25, ge=0, le=1, description="Share of objects prompted by a box.")
    point: float = Field(0.25, ge=0, le=1, description="Share of objects prompted by a point.")
    correction_clicks: int = Field(
        1, ge=0, description="Clicks on the remaining error of a prompted frame, after a box or a point."
    )

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> PromptConfig:
        total = self.mask + self.box + self.point
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares mask + box + point must sum to 1, not {total:g}")
        return self


class LossConfig(Section):
    """Weights of SAM 2's losses, summed over frames as in its own recipe."""

    mask: float = Field(20.0, ge=0, description="Weight of the masks' focal loss.")
    dice: float = Field(1.0, ge=0, description="Weight of the masks' dice loss.")
    iou: float = Field(1.0, ge=0, description="Weight of the L1 loss of the predicted IoU.")
    occlusion: float = Field(
        1.0, ge=0, description="Weight of the loss of the score that says whether an object is in view."
    )


class ConceptLossConfig(Section):
    """Weights of the losses of a model that finds concepts: those of SAM 3's own training."""

    score: float = Field(20.0, ge=0, description="Weight of the focal loss of the queries' scores.")
    presence: float = Field(20.0, ge=0, description="Weight of the loss that says whether the phrase is there at all.")
    box: float = Field(5.0, ge=0, description="Weight of the boxes' L1 loss.")
    giou: float = Field(2.0, ge=0, description="Weight of the boxes' generalised IoU loss.")
    mask: float = Field(200.0, ge=0, description="Weight of the masks' focal loss.")
    dice: float = Field(10.0, ge=0, description="Weight of the masks' dice loss.")


class ConceptConfig(Section):
    """Which noun phrases are asked of a training image, for models that find concepts."""

    positives: int = Field(4, ge=1, description="Phrases asked of an image for what it shows, at most.")
    negatives: int = Field(2, ge=0, description="Phrases asked of an image for what it does not show.")
    hard_negatives: int = Field(
        1,
        ge=0,
        description="Further such phrases, which are easily mistaken: they share a word with what the image shows.",
    )
    foreign: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Phrases for what no image of the run shows, which are negatives beside the categories.",
    )
    exemplars: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of shown phrases that come with a box around an example; half of them as the box alone.",
    )
    loss: ConceptLossConfig = Field(default_factory=ConceptLossConfig, description="Weights of the losses.")


class DistillConfig(Section):
    """Self-distillation: the base teaches the adapted model on general clips without labels."""

    weight: float = Field(0.0, ge=0, description="Weight of the distillation loss. 0: off.")
    folder: str | None = Field(
        None,
        description="Folder of general images and videos without labels. null: synthetic clips of the domain that "
        "the bundled base was trained on.",
    )
    clips: int = Field(500, ge=3, description="General clips in all. The teacher's masks on them are kept.")
    batch_size: int = Field(2, gt=0, description="General clips in each optimizer step that distils.")
    every: int = Field(1, gt=0, description="Distil at every N-th optimizer step, with N times the weight.")
    objects: int = Field(2, gt=0, description="Objects tracked per general clip.")
    features_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the distance between the tracked frames' features after memory attention. 0: off.",
    )


class PenaltyConfig(Section):
    """Penalty on how far weights move from where they began: a baseline, beside distillation."""

    kind: Literal["l2sp", "ewc"] = Field(
        "l2sp", description="`l2sp` holds every weight alike, `ewc` by its Fisher information."
    )
    weight: float = Field(0.0, ge=0, description="Weight of the penalty. 0: off.")
    clips: int = Field(64, ge=3, description="General clips that the Fisher information is measured on, for ewc.")
    folders: list[str] = Field(
        default_factory=list, description="Further folders of images and videos to measure it on, for ewc."
    )


class FeatureCacheConfig(Section):
    """Keeping the features of training clips, where nothing in the image encoder trains."""

    store: Literal["memory", "disk"] = Field(
        "memory", description="Where features are kept: in main memory, or as files in `output_dir`."
    )
    budget_gb: float = Field(
        4.0, ge=0, description="Room for features in GiB, for each process. Clips beyond it are encoded every time."
    )
    views: int = Field(4, gt=0, description="Augmented views of each clip, which return in turn, epoch by epoch.")


class SaveEveryConfig(Section):
    """How often checkpoints are written, beside those at the end of every epoch."""

    steps: int | None = Field(
        None, gt=0, description="Writes `last.pt` at least every so many optimizer steps. null: not by steps."
    )
    minutes: float | None = Field(
        10.0, ge=0, description="Writes `last.pt` at least every so many minutes. null: not by time."
    )
    epochs: int = Field(0, ge=0, description="Keeps an `epoch_*.pt` every so many epochs. 0: none.")


class TrainingConfig(Section):
    """Length, optimizer, objectives and safeguards of training."""

    max_epochs: int = Field(10, gt=0, description="Length of training in epochs, and of the learning rate's cosine.")
    max_steps: int | None = Field(
        None,
        gt=0,
        description="Stops after this many optimizer steps; the cosine stays that of `max_epochs`. null: no such "
        "limit.",
    )
    batch_size: int = Field(4, gt=0, description="Clips per forward pass, of all processes together.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Forward passes per optimizer step.")
    clips_per_epoch: int | str | None = Field(
        None,
        description="Clips per epoch: their number, or so many for each image or video, such as `4x`. null: as many "
        "as make at least 256.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate, reached after the warm-up.")
    min_learning_rate: float = Field(0.0, ge=0, description="Learning rate at the end of the cosine.")
    warmup_steps: int = Field(10, ge=0, description="Optimizer steps of linear warm-up, a tenth of the run at most.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW. Biases and norms have none.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Largest norm of the gradient, which is clipped to it. null: no clipping."
    )
    use_amp: Literal[True, False, "auto"] = Field(
        "auto", description="Whether the forward pass runs in mixed precision. auto: on CUDA."
    )
    amp_dtype: Literal["bfloat16", "float16"] = Field(
        "bfloat16", description="Number format of mixed precision. float16 comes with a gradient scaler."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Recomputes blocks of the encoder and the memory attention in the backward pass: less memory, "
        "more time.",
    )
    cache_features: FeatureCacheConfig | None = Field(
        None,
        description="Keeps what a frozen image encoder computes for training clips. null: each clip is encoded every "
        "time.",
    )
    enable_segmentation: bool = Field(
        True, description="Whether masks are trained. false: only the IoU and occlusion scores are."
    )
    prompts: PromptConfig = Field(default_factory=PromptConfig, description="How objects are prompted in training.")
    loss: LossConfig = Field(default_factory=LossConfig, description="Weights of SAM 2's losses.")
    concepts: ConceptConfig = Field(
        default_factory=ConceptConfig, description="Phrases and losses of models that find concepts."
    )
    distill: DistillConfig = Field(default_factory=DistillConfig, description="Self-distillation from the base.")
    penalty: PenaltyConfig = Field(
        default_factory=PenaltyConfig, description="Penalty on the distance from the first weights."
    )
    start_from: str | None = Field(
        None,
        description="Checkpoint of a run or adapter folder whose weights are trained further. null: new adapters, or "
        "the base.",
    )
    extend: str | None = Field(
        None,
        description="Adapter folder to which the domain is added as a further expert group (`--extend`). null: none.",
    )
    adapter_init: Literal["random", "data", "contrast"] = Field(
        "random",
        description="How new adapters begin. `random`; or from their layers' inputs on the new domain (`data`). "
        "`contrast`: where these vary most relative to general inputs, those of `distill`; A is frozen.",
    )
    adapter_scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [1.0],
        min_length=1,
        description="Factors for the best adapters, tried at the end of training. The one that validates best is "
        "applied.",
    )
    domain_gate: bool = Field(
        True, description="Fits a domain gate at the end of training, which tells learned domains from others."
    )
    validate_every_epochs: int = Field(1, gt=0, description="Epochs between validations.")
    save_every: SaveEveryConfig = Field(
        default_factory=SaveEveryConfig, description="How often checkpoints are written."
    )
    early_stopping_patience: int | None = Field(
        None, gt=0, description="Stops after so many validations without a better J. null: never."
    )
    on_non_finite: Literal["stop", "skip"] = Field(
        "stop", description="What is done at a step whose loss or gradient is infinite or NaN."
    )
    max_skips: int = Field(10, gt=0, description="Steps skipped in a row, before the run stops all the same.")
    monitor_clips: int = Field(
        4,
        ge=0,
        description="Validation clips to draw in TensorBoard, and to score with other prompts and on domains to be "
        "kept. 0: none.",
    )
    num_workers: int = Field(
        1, ge=0, description="Processes that load and check data, for each process that trains. 0: none besides it."
    )
    device: str = Field("auto", description="Device to run on: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed.")

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
