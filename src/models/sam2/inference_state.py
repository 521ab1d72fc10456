"""The one owner of SAM 2's private ``inference_state``: made from frames or a bank, kept to what can still be reached.

``SAM2VideoPredictor.init_state`` documents the dictionary by its comments. Here it is made for frames that come one at
a time, turned into plain data (:class:`~src.models.sam2.memory_bank.MemoryBank`) and back, and rid of memories that
attention can no longer look up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from ...data.prompts import Prompt
from ..spec import ModelSpec, spec_of
from .memory_bank import Memory, MemoryBank, ObjectMemory
from .pixels import frame_size, normalise

State: TypeAlias = dict[str, Any]

DECISION = "domain_decision"  # key of the domain gate's decision on a video

_PER_OBJECT = (
    "point_inputs_per_obj", "mask_inputs_per_obj", "output_dict_per_obj", "temp_output_dict_per_obj",
    "frames_tracked_per_obj",
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """The memories that ``SAM2Base._prepare_memory_conditioned_features`` can look up from a frame on.

    It takes the frame before, and every r-th frame (r is ``memory_temporal_stride_for_eval``) of those earlier,
    ``num_maskmem - 1`` in all; object pointers of the ``max_obj_ptrs_in_encoder - 1`` frames before. A prompted frame
    over the limit of ``max_cond_frames_in_attn`` counts as any other.

    Attributes:
        frame: the first frame that will look back.
        stride: r.
        oldest_features, oldest_pointer: the earliest frames of which these are looked up.
        max_prompted: the limit on prompted frames; -1: none.
    """

    frame: int
    stride: int
    oldest_features: int
    oldest_pointer: int
    max_prompted: int

    @classmethod
    def from_frame(cls, model: SAM2Base, frame: int) -> Reach:
        """Return the reach of a model that tracks forward from this frame."""
        stride = model.memory_temporal_stride_for_eval
        return cls(
            frame,
            stride,
            (frame - 2) // stride * stride - (model.num_maskmem - 3) * stride,
            frame + 1 - model.max_obj_ptrs_in_encoder,
            model.max_cond_frames_in_attn,
        )

    def has_features(self, frame: int) -> bool:
        """Whether the memory features of a frame that is not prompted can be reached."""
        return frame >= self.frame - 1 or (frame >= self.oldest_features and frame % self.stride == 0)

    def has_any(self, frame: int) -> bool:
        """Whether features or object pointer of a frame that is not prompted can be reached."""
        return self.has_features(frame) or frame >= self.oldest_pointer

    def attended(self, prompted: Iterable[int]) -> list[int]:
        """Return the prompted frames that are attended to as such."""
        ordered = sorted(prompted)
        # one more than the limit, as the first frame may be among them and does not look back on itself
        return ordered if self.max_prompted < 0 else ordered[-self.max_prompted - 1 :]


class ModelFrames:
    """Frames as SAM 2 sees them, float32 (3, S, S), resized and normalised when they are asked for.

    It stands in for the tensor of all frames in the predictor's state. The predictor itself keeps the last frame it
    encoded, so going through a video in order resizes every frame once.
    """

    def __init__(self, frames: Sequence[np.ndarray], side: int, spec: ModelSpec) -> None:
        self.frames, self.side, self.spec = frames, side, spec

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, t: int) -> Tensor:
        return to_model_frame(self.frames[t], self.side, self.spec)


def to_model_frame(frame: np.ndarray, side: int, spec: ModelSpec, device: torch.device | str = "cpu") -> Tensor:
    """Resize a frame, RGB uint8 (H, W, 3), on the CPU, and normalise it on the device: float32 (3, S, S)."""
    resized = Image.fromarray(frame).resize((side, side))
    return normalise(torch.from_numpy(np.array(resized)).to(device), spec)


def _empty_state(predictor: SAM2VideoPredictor, images: Any, num_frames: int, size: tuple[int, int]) -> State:
    return {
        "images": images,
        "num_frames": num_frames,
        "offload_video_to_cpu": False,
        "offload_state_to_cpu": False,
        "video_height": size[0],
        "video_width": size[1],
        "device": predictor.device,
        "storage_device": predictor.device,
        "obj_id_to_idx": OrderedDict(),
        "obj_idx_to_id": OrderedDict(),
        "obj_ids": [],
        "cached_features": {},
        "constants": {},
        **{name: {} for name in _PER_OBJECT},
    }


@torch.inference_mode()
def new_state(predictor: SAM2VideoPredictor, frames: Sequence[np.ndarray]) -> State:
    """Return what ``SAM2VideoPredictor.init_state`` makes of a folder of JPEG files, for frames of any source.

    Args:
        predictor: a stock predictor.
        frames: RGB uint8 (H, W, 3), all of one size, each asked for when it is needed.
    """
    height, width = frames[0].shape[:2]
    images = ModelFrames(frames, frame_size(predictor), spec_of(predictor))
    state = _empty_state(predictor, images, len(frames), (height, width))
    predictor._get_image_feature(state, frame_idx=0, batch_size=1)
    return state


def add_prompt(predictor: SAM2VideoPredictor, state: State, frame: int, prompt: Prompt) -> None:
    """Prompt an object on a frame of a state."""
    if prompt.mask is not None:
        predictor.add_new_mask(state, frame, prompt.object_id, torch.from_numpy(prompt.mask))
        return
    predictor.add_new_points_or_box(
        state,
        frame,
        prompt.object_id,
        points=np.array(prompt.points, np.float32).reshape(-1, 2),
        labels=np.array(prompt.labels, np.int32),
        box=None if prompt.box is None else np.array(prompt.box, np.float32),
    )


def forget_unreachable(predictor: SAM2VideoPredictor, state: State, frame: int) -> None:
    """Drop what was tracked on frames that tracking from ``frame`` on cannot look up."""
    reach = Reach.from_frame(predictor, frame)
    for outputs in state["output_dict_per_obj"].values():
        tracked = outputs["non_cond_frame_outputs"]
        for earlier in [t for t in tracked if not reach.has_any(t)]:
            del tracked[earlier]


def from_bank(
    predictor: SAM2VideoPredictor,
    bank: MemoryBank,
    image_13SS: Tensor,
    size: tuple[int, int],
    features: dict[str, Any] | None,
) -> State:
    """Return the state that tracking up to frame ``bank.frame`` would have left.

    Args:
        predictor: a stock predictor.
        bank: what was kept of the frames so far.
        image_13SS: frame ``bank.frame``, normalised.
        size: that frame's (H, W).
        features: what the encoder makes of it; None: the predictor is to encode it.
    """
    t, memories = bank.frame, list(bank.objects.values())
    position = None if bank.position is None else [bank.position]
    num_frames = max(bank.num_frames or predictor.max_obj_ptrs_in_encoder, t + 1)
    state = _empty_state(predictor, {t: image_13SS[0]}, num_frames, size)
    if bank.decision is not None:
        state[DECISION] = bank.decision
    if features is not None:
        state["cached_features"] = {t: (image_13SS, features)}
    if position is not None:
        state["constants"] = {"maskmem_pos_enc": position}
    state["obj_id_to_idx"] = OrderedDict((object_id, i) for i, object_id in enumerate(bank.objects))
    state["obj_idx_to_id"] = OrderedDict(enumerate(bank.objects))
    state["obj_ids"] = list(bank.objects)
    for i, o in enumerate(memories):
        prompted = {frame: _output(memory, position) for frame, memory in o.prompted.items()}
        state["point_inputs_per_obj"][i], state["mask_inputs_per_obj"][i] = {}, {}
        state["output_dict_per_obj"][i] = {
            "cond_frame_outputs": {frame: output for frame, output in prompted.items() if frame != t},
            "non_cond_frame_outputs": {frame: _output(memory, position) for frame, memory in o.recent.items()},
        }
        # until tracking goes on, a prompted frame does not look back on itself
        state["temp_output_dict_per_obj"][i] = {
            "cond_frame_outputs": {frame: output for frame, output in prompted.items() if frame == t},
            "non_cond_frame_outputs": {},
        }
        state["frames_tracked_per_obj"][i] = {t: {"reverse": False}} if o.tracked == t else {}
    return state


def _output(memory: Memory, position: list[Tensor] | None) -> dict[str, Any]:
    return {
        "maskmem_features": memory.features,
        "maskmem_pos_enc": position,
        "pred_masks": memory.logits,
        "obj_ptr": memory.pointer,
        "object_score_logits": memory.score,
    }


def to_bank(predictor: SAM2VideoPredictor, state: State, bank: MemoryBank, size: tuple[int, int]) -> MemoryBank:
    """Return what is to be kept of a state for the frames to come; ``bank`` is the one that it was made from.

    Frame ``bank.frame`` itself may yet be corrected, so its reach decides.
    """
    position, reach = state["constants"].get("maskmem_pos_enc"), Reach.from_frame(predictor, bank.frame)
    return replace(
        bank,
        size=size,
        decision=state.get(DECISION),
        position=None if position is None else position[0],
        objects={
            object_id: _memories(
                reach, state["output_dict_per_obj"][index], max(state["frames_tracked_per_obj"][index], default=-1)
            )
            for object_id, index in state["obj_id_to_idx"].items()
        },
    )


def _memories(reach: Reach, outputs: dict[str, dict[int, dict[str, Any]]], tracked: int) -> ObjectMemory:
    def memory(frame: int, output: dict[str, Any], has_features: bool) -> Memory:
        is_last = frame == reach.frame
        return Memory(
            pointer=output["obj_ptr"],
            features=output["maskmem_features"] if has_features else None,
            logits=output["pred_masks"] if is_last else None,
            score=output["object_score_logits"] if is_last else None,
        )

    prompted, recent = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
    attended = reach.attended(prompted)
    return ObjectMemory(
        {t: memory(t, output, True) for t, output in prompted.items() if t in attended or reach.has_any(t)},
        {t: memory(t, output, reach.has_features(t)) for t, output in recent.items() if reach.has_any(t)},
        tracked,
    )
