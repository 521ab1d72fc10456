"""SAM 2's video prediction one frame at a time, from any iterator, with the memory bank handed in and out.

    tracker = StreamingTracker(model)
    bank = tracker.start()
    for frame in camera:                                  # RGB, uint8, (H, W, 3)
        prediction, bank = tracker.step(frame, bank, prompts=[…])   # prompts where there are any
        show(frame, prediction.masks)

What SAM 2 remembers is plain data (:class:`MemoryBank`). A bank is never changed, ``step`` returns a new one: one can
go back to an earlier bank, keep several, or save one and go on another day. It holds no more than attention can still
reach: of each object the memories of its prompted frames, those of the frame just seen and of the ``num_maskmem - 1``
(6) before it, and object pointers of the ``max_obj_ptrs_in_encoder - 1`` (15) before it. It grows with prompts, not
with frames; and where the model limits the prompted memories that it attends to (``max_cond_frames_in_attn``; SAM 2
does not), older ones are dropped too.

A domain gate installed on the model (:func:`~src.models.sam2.gate_hooks.install_gate`) decides on the first prompted frame, and
the bank keeps its decision.

Each frame runs through ``SAM2VideoPredictor``'s own methods, so the masks are its masks. They equal those of a video
predictor that is prompted as one watches: at the latest when tracking comes to the frame. Prompts that it is given
ahead of time it also looks at before it comes to them, which a stream cannot.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from ...core.errors import UserError
from ...core.files import write_atomically
from ...core.torch_files import read_pt, save_pt
from ...data.prompts import Prompt
from ...gating.domain_gate import Decision
from .gate_hooks import DECISION, gate_video_methods, gating_of
from .train_forward import as_video_predictor, normalise

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Memory:
    """What is kept of one object on one frame.

    Attributes:
        pointer: the object pointer, (1, D).
        features: the memory encoder's output, (1, C, h, w), bfloat16 as the stock predictor stores it; None where only
            the pointer can still be reached.
        logits: the mask at the decoder's size, float32 (1, 1, S/4, S/4); kept on the last frame only, where further
            prompts refine it.
        score: logit that the object is to be seen on the frame, (1, 1); kept on the last frame only.
    """

    pointer: Tensor
    features: Tensor | None
    logits: Tensor | None = None
    score: Tensor | None = None


@dataclass(frozen=True)
class ObjectMemory:
    """The memories of one object.

    Attributes:
        prompted: frame number → memory, of the frames with a prompt for it.
        recent: the same of the last frames without one.
        tracked: the last frame it was tracked on, -1 if none: prompts there are corrections.
    """

    prompted: dict[int, Memory] = field(default_factory=dict)
    recent: dict[int, Memory] = field(default_factory=dict)
    tracked: int = -1


@dataclass(frozen=True)
class MemoryBank:
    """All that a stream's future depends on.

    Attributes:
        frame: number of the last frame seen, from 0; -1 at the start.
        size: (H, W) of the frames; None until one was looked at.
        objects: object id → its memories, in the order in which objects were added.
        position: the memories' positional encoding, (1, C, h, w), the same for all; None before the first memory.
        num_frames: see :meth:`StreamingTracker.start`.
        decision: the domain gate's, None until it has decided (or where there is no gate).
    """

    frame: int = -1
    size: tuple[int, int] | None = None
    objects: dict[int, ObjectMemory] = field(default_factory=dict)
    position: Tensor | None = None
    num_frames: int | None = None
    decision: Decision | None = None

    def save(self, path: str | Path) -> None:
        """Write the bank whole or not at all, as tensors and numbers only. Raises UserError if it cannot be written."""
        objects = {
            object_id: {
                "prompted": {t: vars(memory) for t, memory in o.prompted.items()},
                "recent": {t: vars(memory) for t, memory in o.recent.items()},
                "tracked": o.tracked,
            }
            for object_id, o in self.objects.items()
        }
        decision = None if self.decision is None else vars(self.decision)
        bank = {**vars(self), "objects": objects, "decision": decision}
        content = {"format_version": FORMAT_VERSION, "bank": bank}
        write_atomically(Path(path), partial(save_pt, content))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> MemoryBank:
        """Read what :meth:`save` wrote onto a device; nothing in the file is executed.

        Raises:
            UserError: the file is missing, damaged, or no memory bank.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such memory bank")
        content = read_pt(Path(path), device)
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION or "bank" not in content:
            raise UserError(f"{path}: not a memory bank of this version")
        fields = content["bank"]
        objects = {
            object_id: ObjectMemory(
                {t: Memory(**memory) for t, memory in o["prompted"].items()},
                {t: Memory(**memory) for t, memory in o["recent"].items()},
                o["tracked"],
            )
            for object_id, o in fields["objects"].items()
        }
        decision = None if fields["decision"] is None else Decision(**fields["decision"])
        return cls(**{**fields, "objects": objects, "decision": decision})


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as the image encoder sees it, for several calls on the same frame (see :meth:`StreamingTracker.encode`).

    Attributes:
        size: (H, W) of the frame.
        image: normalised, (1, 3, S, S).
        features: what ``SAM2Base.forward_image`` returns for it.
        domain: whose adapters were on in the encoder, where a domain gate decides.
    """

    size: tuple[int, int]
    image: Tensor
    features: dict[str, Any]
    domain: str | None = None


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


class StreamingTracker:
    """Tracks objects through a stream of frames with a SAM 2 model, adapted or not.

    Args:
        model: any SAM2Base. Of a SAM2VideoPredictor its own options hold (hole filling, non-overlapping masks); others
            are used through :func:`~src.models.sam2.train_forward.as_video_predictor`. Nothing is copied, and the model is put
            in eval mode; to train it afterwards, track inside :func:`~src.tasks.tracking.predict.predicting`.
        keep_corrections: what :meth:`correct` adds to a tracked frame makes that frame a prompted one, remembered for
            good; otherwise it fades like any other frame (the stock predictor's ``add_all_frames_to_correct_as_cond``,
            and its default).
    """

    def __init__(self, model: SAM2Base, keep_corrections: bool = False) -> None:
        is_predictor = isinstance(model, SAM2VideoPredictor)
        self.predictor = copy.copy(model).eval() if is_predictor else as_video_predictor(model)
        gate_video_methods(self.predictor)
        self.predictor.add_all_frames_to_correct_as_cond = keep_corrections

    def start(self, num_frames: int | None = None) -> MemoryBank:
        """An empty bank.

        Args:
            num_frames: the length of the video, where it is known. SAM 2 divides the age of object pointers by
                ``min(num_frames, max_obj_ptrs_in_encoder) - 1``: only for videos shorter than 16 frames does it matter,
                and there it is needed for the stock predictor's very masks. A stream counts as long.
        """
        return MemoryBank(num_frames=num_frames)

    @torch.inference_mode()
    def encode(self, frame: np.ndarray, bank: MemoryBank) -> EncodedFrame:
        """Run the image encoder on a frame, RGB, uint8, (H, W, 3), for use in its place below.

        The bank is the one the frame will be used with: a domain gate's decision in it says which adapters are on.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is RGB, uint8, (H, W, 3), not {frame.dtype} {frame.shape}")
        resized = Image.fromarray(frame).resize((self.predictor.image_size, self.predictor.image_size))
        pixels = torch.from_numpy(np.array(resized)).to(self.predictor.device)
        image = normalise(pixels)[None]
        height, width = frame.shape[:2]
        gating = gating_of(self.predictor)
        if gating is None:
            return EncodedFrame((height, width), image, self.predictor.forward_image(image))
        domain = None if bank.decision is None else bank.decision.domain
        with gating.active(domain):
            return EncodedFrame((height, width), image, self.predictor.forward_image(image), domain)

    def step(
        self, frame: np.ndarray | EncodedFrame, bank: MemoryBank, prompts: Iterable[Prompt] = ()
    ) -> tuple[Prediction, MemoryBank]:
        """Go to the next frame: segment what is prompted there, from the prompts alone, and track the other objects.

        Args:
            frame: the next frame, or what :meth:`encode` made of it. The encoder is not run on frames before the first
                prompt.
            bank: as the last call returned it.
            prompts: at most one an object.

        Returns:
            All objects on this frame, and the new bank.

        Raises:
            ValueError: the frame is of another size than those before, or prompts do not fit it.
        """
        prompts = list(prompts)
        if not bank.objects and not prompts:
            return Prediction(bank.frame + 1, {}, {}), replace(bank, frame=bank.frame + 1)
        return self._run(frame, replace(bank, frame=bank.frame + 1), prompts)

    def correct(
        self, frame: np.ndarray | EncodedFrame, bank: MemoryBank, prompts: Iterable[Prompt]
    ) -> tuple[Prediction, MemoryBank]:
        """Stay on the last frame, and refine or add objects on it; arguments and results as of :meth:`step`.

        Clicks on an object that was tracked here are seen together with its mask and memories, as the stock predictor
        sees clicks on a frame it has tracked. Each call's points replace those of the call before.
        """
        if bank.frame < 0:
            raise ValueError("there is no frame to correct yet: call step first")
        return self._run(frame, bank, list(prompts))

    @torch.inference_mode()
    def _run(
        self, frame: np.ndarray | EncodedFrame, bank: MemoryBank, prompts: list[Prompt]
    ) -> tuple[Prediction, MemoryBank]:
        """Prompt and track on frame ``bank.frame``, where objects may have been tracked before."""
        t, predictor = bank.frame, self.predictor
        encoded = frame if isinstance(frame, EncodedFrame) else self.encode(frame, bank)
        self._check(bank, encoded, prompts)
        state = self._inference_state(bank, encoded)
        for prompt in prompts:
            if prompt.mask is not None:
                predictor.add_new_mask(state, t, prompt.object_id, torch.from_numpy(prompt.mask))
            else:
                predictor.add_new_points_or_box(
                    state, t, prompt.object_id,
                    points=np.array(prompt.points, np.float32).reshape(-1, 2),
                    labels=np.array(prompt.labels, np.int32),
                    box=None if prompt.box is None else np.array(prompt.box, np.float32),
                )  # fmt: skip
        predictor.propagate_in_video_preflight(state)
        found = {object_id: self._on_frame(state, index, t) for object_id, index in state["obj_id_to_idx"].items()}
        low_logits_O1hw = torch.cat([output["pred_masks"] for output in found.values()])
        _, logits_O1HW = predictor._get_orig_video_res_output(state, low_logits_O1hw)
        prediction = Prediction(
            t,
            dict(zip(found, logits_O1HW[:, 0], strict=True)),
            {object_id: float(output["object_score_logits"].sigmoid()) for object_id, output in found.items()},
        )
        return prediction, self._bank(state, bank, encoded.size)

    def _on_frame(self, state: dict[str, Any], index: int, t: int) -> dict[str, Any]:
        """An object's output on the current frame, which is tracked unless it is there already."""
        outputs = state["output_dict_per_obj"][index]
        for kind in ("cond_frame_outputs", "non_cond_frame_outputs"):
            if t in outputs[kind]:
                return outputs[kind][t]
        output, _ = self.predictor._run_single_frame_inference(
            inference_state=state, output_dict=outputs, frame_idx=t, batch_size=1, is_init_cond_frame=False,
            point_inputs=None, mask_inputs=None, reverse=False, run_mem_encoder=True,
        )  # fmt: skip
        outputs["non_cond_frame_outputs"][t] = output
        state["frames_tracked_per_obj"][index][t] = {"reverse": False}
        return output

    def _inference_state(self, bank: MemoryBank, encoded: EncodedFrame) -> dict[str, Any]:
        """The bank as what ``SAM2VideoPredictor.init_state`` and tracking up to this frame would have made."""
        t, device = bank.frame, self.predictor.device
        order = range(len(bank.objects))
        memories = list(bank.objects.values())
        position = None if bank.position is None else [bank.position]

        def output(memory: Memory) -> dict[str, Any]:
            return {
                "maskmem_features": memory.features,
                "maskmem_pos_enc": position,
                "pred_masks": memory.logits,
                "obj_ptr": memory.pointer,
                "object_score_logits": memory.score,
            }

        decided = {} if bank.decision is None else {DECISION: bank.decision}
        return {
            **decided,
            "images": {t: encoded.image[0]},
            "num_frames": max(bank.num_frames or self.predictor.max_obj_ptrs_in_encoder, t + 1),
            "video_height": encoded.size[0],
            "video_width": encoded.size[1],
            "device": device,
            "storage_device": device,
            "cached_features": {t: (encoded.image, encoded.features)} if self._is_fresh(encoded, bank) else {},
            "constants": {} if position is None else {"maskmem_pos_enc": position},
            "obj_id_to_idx": OrderedDict((object_id, i) for i, object_id in enumerate(bank.objects)),
            "obj_idx_to_id": OrderedDict(enumerate(bank.objects)),
            "obj_ids": list(bank.objects),
            "point_inputs_per_obj": {i: {} for i in order},
            "mask_inputs_per_obj": {i: {} for i in order},
            "output_dict_per_obj": {
                i: {
                    "cond_frame_outputs": {frame: output(m) for frame, m in o.prompted.items() if frame != t},
                    "non_cond_frame_outputs": {frame: output(m) for frame, m in o.recent.items()},
                }
                for i, o in enumerate(memories)
            },
            # until tracking goes on, a prompted frame does not look back on itself
            "temp_output_dict_per_obj": {
                i: {
                    "cond_frame_outputs": {frame: output(m) for frame, m in o.prompted.items() if frame == t},
                    "non_cond_frame_outputs": {},
                }
                for i, o in enumerate(memories)
            },
            "frames_tracked_per_obj": {
                i: {t: {"reverse": False}} if o.tracked == t else {} for i, o in enumerate(memories)
            },
        }

    def _bank(self, state: dict[str, Any], bank: MemoryBank, size: tuple[int, int]) -> MemoryBank:
        """What is to be kept of the predictor's state for the frames to come."""
        position = state["constants"].get("maskmem_pos_enc")
        return replace(
            bank,
            size=size,
            decision=state.get(DECISION),
            position=None if position is None else position[0],
            objects={
                object_id: self._reachable(
                    state["output_dict_per_obj"][index],
                    bank.frame,
                    max(state["frames_tracked_per_obj"][index], default=-1),
                )
                for object_id, index in state["obj_id_to_idx"].items()
            },
        )

    def _reachable(self, outputs: dict[str, dict[int, dict[str, Any]]], t: int, tracked: int) -> ObjectMemory:
        """The memories that ``SAM2Base._prepare_memory_conditioned_features`` can look up from frame ``t`` on.

        It takes the frame before, and every r-th frame (r is ``memory_temporal_stride_for_eval``) of those earlier,
        ``num_maskmem - 1`` in all. A prompted frame over the limit of ``max_cond_frames_in_attn`` counts as any other.
        Frame ``t`` itself may yet be corrected, so its reach decides.
        """
        predictor, stride = self.predictor, self.predictor.memory_temporal_stride_for_eval
        oldest_memory = (t - 2) // stride * stride - (predictor.num_maskmem - 3) * stride
        oldest_pointer = t + 1 - predictor.max_obj_ptrs_in_encoder

        def memory(frame: int, output: dict[str, Any], has_features: bool) -> Memory:
            last = frame == t
            return Memory(
                pointer=output["obj_ptr"],
                features=output["maskmem_features"] if has_features else None,
                logits=output["pred_masks"] if last else None,
                score=output["object_score_logits"] if last else None,
            )

        def near(frame: int) -> bool:
            return frame >= t - 1 or (frame >= oldest_memory and frame % stride == 0)

        prompted, recent = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
        limit = predictor.max_cond_frames_in_attn
        # one more than the limit, as frame t may be among them and does not look back on itself
        attended = sorted(prompted) if limit < 0 else sorted(prompted)[-limit - 1 :]
        return ObjectMemory(
            {
                frame: memory(frame, output, True)
                for frame, output in prompted.items()
                if frame in attended or near(frame) or frame >= oldest_pointer
            },
            {
                frame: memory(frame, output, near(frame))
                for frame, output in recent.items()
                if near(frame) or frame >= oldest_pointer
            },
            tracked,
        )

    def _is_fresh(self, encoded: EncodedFrame, bank: MemoryBank) -> bool:
        """Whether the features were made with the adapters that the gate has decided on meanwhile."""
        gating = gating_of(self.predictor)
        if gating is None or not gating.in_encoder or bank.decision is None:
            return True
        return encoded.domain == bank.decision.domain

    def _check(self, bank: MemoryBank, encoded: EncodedFrame, prompts: list[Prompt]) -> None:
        """Raise ValueError where the bank, a frame or prompts do not fit together."""
        side = self.predictor.sam_image_embedding_size
        if bank.position is not None and bank.position.shape[1:] != (self.predictor.mem_dim, side, side):
            raise ValueError("the memory bank was made by another model, or at another image size")
        if bank.size is not None and encoded.size != bank.size:
            raise ValueError(f"frame {bank.frame} is (H, W) = {encoded.size}, those before it {bank.size}")
        ids = [prompt.object_id for prompt in prompts]
        if len(set(ids)) < len(ids):
            raise ValueError(f"one prompt an object, not several: {sorted(ids)}")
        for prompt in prompts:
            if prompt.mask is not None and prompt.mask.shape != encoded.size:
                raise ValueError(
                    f"object {prompt.object_id}: the mask is {prompt.mask.shape}, the frame {encoded.size}"
                )
