"""What a model's room offers to the rest of the program, which reaches it by :meth:`~src.models.spec.ModelSpec.load`.

A room is a package for one kind of model, such as :mod:`src.models.sam2`; a module of it has these functions. Tasks,
trainer and evaluation call them with the models that the room built and look at nothing else in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..config import LossConfig, ModelConfig, PromptConfig
from ..config import Prompt as PromptKind
from ..data.clips.types import ClipBatch
from ..data.prompts import Prompt
from ..gating.domain_gate import DomainGate
from ..lora.adapter_io import Configs

AfterFrame: TypeAlias = Callable[[int], None]
"""Called with a frame's number when all that concerns it has been computed; frame 0 may come twice."""


@dataclass(frozen=True)
class Prediction:
    """The objects on one frame.

    Attributes:
        frame: its number.
        logits: object id → mask logits at the frame's size, float32 (H, W); above 0 is the object.
        scores: object id → probability that the object is to be seen on the frame.
    """

    frame: int
    logits: dict[int, Tensor]
    scores: dict[int, float]

    @cached_property
    def masks(self) -> dict[int, np.ndarray]:
        """Object id → bool (H, W)."""
        return {object_id: (logits > 0).cpu().numpy() for object_id, logits in self.logits.items()}


Features: TypeAlias = list[Tensor]
"""A frozen image encoder's output for N frames: (N, C, h, w) by level, fine to coarse."""


@dataclass(frozen=True)
class BatchTotals:
    """What a part of a batch needs to know of the whole batch.

    Attributes:
        objects: their number.
        annotated_T: which frames are annotated for all of them, bool, on the CPU.
    """

    objects: int
    annotated_T: Tensor

    @classmethod
    def from_batch(cls, batch: ClipBatch) -> BatchTotals:
        """Return those of a batch that is in one part."""
        return cls(len(batch.video_of_object), batch.annotated_TO.all(dim=1))


@dataclass(frozen=True)
class Tracked:
    """A model's output on the supervised frames of a batch.

    Attributes:
        logits_TOhw: masks, at low resolution.
        scores_TO: object scores, as logits.
        features_TNOC: memory attention's output on the tracked frames; None unless it was asked for.
    """

    logits_TOhw: Tensor
    scores_TO: Tensor
    features_TNOC: Tensor | None = None


def join_features(clips: list[Features], device: torch.device) -> Features:
    """Return features of several clips as those of all their frames in a row, on the device."""
    return [torch.cat([level.to(device) for level in levels]) for levels in zip(*clips, strict=True)]


class ImagePredictor(Protocol):
    """Segments what is pointed at on one image."""

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, RGB uint8 (H, W, 3), for the prompts that follow."""

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return masks, the IoU predicted for each, and low-resolution logits, which ``mask_input`` takes."""


class Tracker(Protocol):
    """Tracks objects through a stream of frames; banks are what it remembers, and are only handed back to it.

    Attributes:
        predictor: the model that it runs.
    """

    predictor: nn.Module

    def start(self, num_frames: int | None = None) -> Any:
        """Return an empty bank, for a video of so many frames where that is known."""

    def encode(self, frame: np.ndarray, bank: Any) -> Any:
        """Encode a frame, RGB uint8 (H, W, 3), for several calls on it."""

    def step(self, frame: Any, bank: Any, prompts: Iterable[Prompt] = ()) -> tuple[Prediction, Any]:
        """Go to the next frame: segment what is prompted, track the rest."""

    def correct(self, frame: Any, bank: Any, prompts: Iterable[Prompt]) -> tuple[Prediction, Any]:
        """Stay on the last frame, and refine or add objects on it."""


class MaskGenerator(Protocol):
    """Finds masks without prompts, as sam2's ``SAM2AutomaticMaskGenerator`` does."""

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Return the masks of an image, RGB uint8 (H, W, 3): ``segmentation``, ``bbox``, ``predicted_iou``, …."""


class ModelRoom(Protocol):
    """The functions of a room."""

    def build_model(self, config: ModelConfig) -> nn.Module:
        """Build a model on the CPU, with the config's checkpoint loaded strictly (random weights without one)."""

    def build_trainable(self, config: ModelConfig, prompts: PromptConfig, frames: int) -> nn.Module:
        """Build a model for training on clips of so many frames, with these shares of prompts."""

    def to_pixels(self, model: nn.Module, frame: np.ndarray) -> Tensor:
        """Return a frame, RGB uint8 (H, W, 3), at the model's image size: float32 (3, S, S) in 0–1."""

    def gate_features(self, model: nn.Module, pixels_B3SS: Tensor) -> Tensor:
        """Return what the domain gate knows of images (B, 3, S, S) in 0–1: (B, D), float32."""

    def build_loss(self, config: LossConfig, enable_segmentation: bool = True) -> nn.Module:
        """Return the loss with the run's weights; without segmentation, mask losses have weight 0."""

    def segmentation_losses(
        self,
        model: nn.Module,
        loss: nn.Module,
        batch: ClipBatch,
        totals: BatchTotals | None = None,
        features: Features | None = None,
    ) -> dict[str, Tensor]:
        """Run the training forward and the loss: ``total`` with graph, and its detached parts."""

    def seed_draws(self, model: nn.Module, rank: int, *key: int) -> None:
        """Let all that a training forward draws begin from a key."""

    def track_clips(
        self,
        model: nn.Module,
        batch: ClipBatch,
        prompt: PromptKind,
        keep_tracked: bool = False,
        features: Features | None = None,
    ) -> Tracked:
        """Prompt every object on the first frame of its clip and track it, without anything drawn at random."""

    def has_frozen_encoder(self, model: nn.Module) -> bool:
        """Return whether training leaves image features as they are."""

    def encode_frames(self, model: nn.Module, frames_THWC: Tensor) -> Features:
        """Return the image features of a clip's frames, uint8 (T, H, W, 3), without a graph."""

    def attach_gate(self, model: nn.Module) -> None:
        """Let a model's predictors follow the domain gate that is installed on it."""

    def detach_gate(self, model: nn.Module) -> None:
        """Undo :meth:`attach_gate`."""

    def as_video_predictor(self, model: nn.Module) -> nn.Module:
        """Return the same modules and weights as a predictor for :meth:`track_objects`, in eval mode."""

    def track_objects(
        self,
        predictor: nn.Module,
        frames: Sequence[np.ndarray],
        prompts: Mapping[int, Iterable[Prompt]],
        after_frame: AfterFrame | None = None,
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """Yield, frame by frame from the first prompt on: its number, the objects prompted so far, logits (O, H, W)."""

    def image_predictor(self, model: nn.Module, **options: Any) -> ImagePredictor:
        """Return a predictor for single images."""

    def automatic_mask_generator(self, model: nn.Module, **options: Any) -> MaskGenerator:
        """Return what finds all masks on single images; ``options`` are those of sam2's generator."""

    def tracker(self, model: nn.Module, keep_corrections: bool = False) -> Tracker:
        """Return a tracker; with ``keep_corrections`` corrected frames are remembered for good."""

    def write_official(self, model: nn.Module, config: ModelConfig, path: Path) -> None:
        """Write merged weights as the model's own package reads them, and check that it computes the same."""

    def how_to_load(self, config: ModelConfig, path: Path) -> str:
        """Return the Python that gets the stock model with :meth:`write_official`'s file."""

    def stock_name(self, layer: str) -> str:
        """Return a layer's name in the model that others put a PEFT adapter into."""

    def write_transformers(
        self,
        model: nn.Module,
        config: ModelConfig,
        lora: Configs,
        about: dict[str, Any],
        gate: DomainGate | None,
        folder: Path,
    ) -> None:
        """Write a folder that Hugging Face ``transformers`` reads, and check that it computes the same."""
