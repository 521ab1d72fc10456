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

A domain gate installed on the model (:func:`~src.gating.switching.install_gate`) decides on the first prompted frame,
and the bank keeps its decision.

Each frame runs through ``SAM2VideoPredictor``'s own methods, so the masks are its masks. They equal those of a video
predictor that is prompted as one watches: at the latest when tracking comes to the frame. Prompts that it is given
ahead of time it also looks at before it comes to them, which a stream cannot.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from ...data.prompts import Prompt
from ...gating.switching import installed_switch
from ..protocols import Prediction
from ..spec import spec_of
from .gate_hooks import attach_gate
from .inference_state import State, add_prompt, from_bank, to_bank, to_model_frame
from .memory_bank import MemoryBank
from .pixels import frame_size
from .tracking import as_video_predictor

__all__ = ["EncodedFrame", "MemoryBank", "Prediction", "StreamingTracker"]


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
    image: torch.Tensor
    features: dict[str, Any]
    domain: str | None = None


class StreamingTracker:
    """Tracks objects through a stream of frames with a SAM 2 model, adapted or not.

    Args:
        model: any SAM2Base. Of a SAM2VideoPredictor its own options hold (hole filling, non-overlapping masks); others
            are used through :func:`~src.models.sam2.tracking.as_video_predictor`. Nothing is copied, and the model is
            put in eval mode; to train it afterwards, track inside :func:`~src.tasks.tracking.predict.predicting`.
        keep_corrections: what :meth:`correct` adds to a tracked frame makes that frame a prompted one, remembered for
            good; otherwise it fades like any other frame (the stock predictor's ``add_all_frames_to_correct_as_cond``,
            and its default).
    """

    def __init__(self, model: SAM2Base, keep_corrections: bool = False) -> None:
        is_predictor = isinstance(model, SAM2VideoPredictor)
        self.predictor = copy.copy(model).eval() if is_predictor else as_video_predictor(model)
        attach_gate(self.predictor)
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

        The bank is the one the frame will be used with: a domain gate's decision in it switches adapters.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is RGB, uint8, (H, W, 3), not {frame.dtype} {frame.shape}")
        side, spec = frame_size(self.predictor), spec_of(self.predictor)
        image = to_model_frame(frame, side, spec, self.predictor.device)[None]
        height, width = frame.shape[:2]
        switch = installed_switch(self.predictor)
        if switch is None:
            return EncodedFrame((height, width), image, self.predictor.forward_image(image))
        domain = None if bank.decision is None else bank.decision.domain
        with switch.active(domain):
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
        features = encoded.features if self._is_fresh(encoded, bank) else None
        state = from_bank(predictor, bank, encoded.image, encoded.size, features)
        for prompt in prompts:
            add_prompt(predictor, state, t, prompt)
        predictor.propagate_in_video_preflight(state)
        found = {object_id: self._on_frame(state, index, t) for object_id, index in state["obj_id_to_idx"].items()}
        low_logits_O1hw = torch.cat([output["pred_masks"] for output in found.values()])
        _, logits_O1HW = predictor._get_orig_video_res_output(state, low_logits_O1hw)
        prediction = Prediction(
            t,
            dict(zip(found, logits_O1HW[:, 0], strict=True)),
            {object_id: float(output["object_score_logits"].sigmoid()) for object_id, output in found.items()},
        )
        return prediction, to_bank(predictor, state, bank, encoded.size)

    def _on_frame(self, state: State, index: int, t: int) -> dict[str, Any]:
        """Return an object's output on the current frame, which is tracked unless it is there already."""
        outputs = state["output_dict_per_obj"][index]
        for kind in ("cond_frame_outputs", "non_cond_frame_outputs"):
            if t in outputs[kind]:
                known: dict[str, Any] = outputs[kind][t]
                return known
        output: dict[str, Any]
        output, _ = self.predictor._run_single_frame_inference(
            inference_state=state, output_dict=outputs, frame_idx=t, batch_size=1, is_init_cond_frame=False,
            point_inputs=None, mask_inputs=None, reverse=False, run_mem_encoder=True,
        )  # fmt: skip
        outputs["non_cond_frame_outputs"][t] = output
        state["frames_tracked_per_obj"][index][t] = {"reverse": False}
        return output

    def _is_fresh(self, encoded: EncodedFrame, bank: MemoryBank) -> bool:
        """Whether the features were made with the adapters that the gate has decided on meanwhile."""
        switch = installed_switch(self.predictor)
        if switch is None or not switch.in_encoder or bank.decision is None:
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
