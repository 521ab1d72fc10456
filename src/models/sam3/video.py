"""Phrases on videos: transformers' ``Sam3VideoModel``, whose detector takes adapters; its tracking stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    Sam2VideoVideoProcessor,
    Sam3ImageProcessor,
    Sam3VideoModel,
    Sam3VideoProcessor,
)
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

from ...config import ModelConfig
from ...core.errors import UserError
from ...core.shipped import find_file
from ...data.clips.transforms import resize_picture
from ..protocols import Prediction
from .build import load_strictly, load_tokenizer, read_config


@dataclass(frozen=True)
class FoundFrame:
    """The instances of phrases on a frame.

    Attributes:
        frame_HWC: the frame, RGB uint8.
        prediction: masks and scores by the number of the instance, which it keeps through the video.
        phrases: the phrase of each instance.
    """

    frame_HWC: np.ndarray
    prediction: Prediction
    phrases: dict[int, str]


def build_video_model(config: ModelConfig) -> Sam3VideoModel:
    """Build detector and tracker on the CPU, in eval mode, with the folder ``model.checkpoint`` loaded strictly.

    Raises:
        UserError: it holds no tracker, or is missing or damaged.
    """
    folder = None if config.checkpoint is None else find_file(config.checkpoint)
    if folder is not None and folder.is_dir():
        read_config(folder, config.name)
    whole = folder is not None and (folder / "config.json").is_file()
    architecture = AutoConfig.from_pretrained(folder, local_files_only=True) if whole else None
    if folder is None or architecture is None or architecture.model_type != "sam3_video":
        raise UserError(
            "videos need SAM 3's tracker beside its detector, as the hub's folder facebook/sam3 has it; "
            f"model.checkpoint: {config.checkpoint} has none: take images, or name that folder",
            "predict.no-tracker",
        )
    if config.image_size:
        architecture.image_size = config.image_size
    model: Sam3VideoModel = load_strictly(Sam3VideoModel, folder, architecture, config.name)
    model.tokenizer = load_tokenizer(folder)
    return model.eval()


@torch.inference_mode()
def track_phrases(model: Sam3VideoModel, frames: Iterable[np.ndarray], phrases: Sequence[str]) -> Iterator[FoundFrame]:
    """Find phrases in a video, frame by frame; instances keep their numbers, counted from 1.

    transformers holds frames back for some time, by which it sees which instances last (``hotstart_delay``). Only these
    frames and the memories that the tracker can still look at are kept, so memory does not grow with the video.

    Args:
        model: detector and tracker, with adapters in the detector or without.
        frames: of the video, RGB uint8 (H, W, 3); read twice, since they are counted first.
        phrases: what to find.
    """
    processor, device = _processor(model), next(model.parameters()).device
    tracker = model.tracker_model.config
    looks_back = max(tracker.num_maskmem, tracker.max_object_pointers_in_encoder)
    session = Sam3VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=torch.float32)
    held = session.processed_frames = _HeldFrames(frames, model.config.image_size)
    for phrase in phrases:
        number = session.add_prompt(phrase)
        tokens = model.tokenizer([phrase], return_tensors="pt", truncation=True)
        session.prompt_input_ids[number] = tokens["input_ids"].to(device)
        session.prompt_attention_masks[number] = tokens["attention_mask"].to(device)
    for output in model.propagate_in_video_iterator(session):
        frame_HWC = held.take(output.frame_idx)
        found = processor.postprocess_outputs(session, output, [list(frame_HWC.shape[:2])])
        numbers = [1 + int(number) for number in found["object_ids"]]
        scores = dict(zip(numbers, found["scores"].tolist(), strict=True))
        logits = {
            number: torch.where(mask_HW.cpu(), scores[number], -1.0)
            for number, mask_HW in zip(numbers, found["masks"], strict=True)
        }
        names = {1 + each: phrase for phrase, ids in found["prompt_to_obj_ids"].items() for each in ids}
        yield FoundFrame(frame_HWC, Prediction(output.frame_idx, logits, scores), names)
        _forget(session, output.frame_idx - looks_back)


class _HeldFrames:
    """Frames of a video by number, as a session of transformers asks for them: in order, one after the other.

    Those that were not taken yet are kept.
    """

    def __init__(self, frames: Iterable[np.ndarray], side: int) -> None:
        self._count, self._side = sum(1 for _ in frames), side
        self._coming, self._next = iter(frames), 0
        self._held: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        while self._next <= number:
            self._held[self._next] = next(self._coming)
            self._next += 1
        small_3SS = resize_picture(self._held[number], self._side, self._side).clamp(0, 255).round()
        return small_3SS / 127.5 - 1

    def take(self, number: int) -> np.ndarray:
        """Return a frame, and keep it no longer."""
        return self._held.pop(number)


def _forget(session: Sam3VideoInferenceSession, before: int) -> None:
    """Drop what was tracked on frames that are too long ago for the tracker to look at; prompted frames stay."""
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        for number in [number for number in tracked if number < before]:
            del tracked[number]


def _processor(model: Sam3VideoModel) -> Sam3VideoProcessor:
    side = model.config.image_size
    size = {"height": side, "width": side}
    return Sam3VideoProcessor(
        image_processor=Sam3ImageProcessor(size=size),
        video_processor=Sam2VideoVideoProcessor(size=size),
        tokenizer=model.tokenizer,
    )
