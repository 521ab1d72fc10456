"""SAM 2's stock video predictor on frames of any source, with memory that does not grow with the video's length."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from ...data.prompts import Prompt
from ..protocols import AfterFrame
from .gate_hooks import attach_gate
from .inference_state import add_prompt, forget_unreachable, new_state
from .patches import take_class, without_progress_bar


def as_video_predictor(model: SAM2Base) -> SAM2VideoPredictor:
    """Return the same modules and weights as a stock SAM2VideoPredictor, in eval mode; nothing is copied.

    Submodules are shared, so later changes of weights or adapters show in both, and a domain gate installed on the
    model decides for the predictor too. ``eval()`` reaches the shared submodules: call ``model.train()`` before
    training on.
    """
    predictor = take_class(copy.copy(model), SAM2VideoPredictor)
    predictor.fill_hole_area = 0
    predictor.non_overlap_masks = False
    predictor.clear_non_cond_mem_around_input = False
    predictor.add_all_frames_to_correct_as_cond = False
    if (spec := getattr(model, "spec", None)) is not None:  # what its room changes, it changes in the predictor too
        spec.load().complete(predictor, spec.name)
    attach_gate(predictor)
    return predictor.eval()


def track_objects(
    predictor: SAM2VideoPredictor,
    frames: Sequence[np.ndarray],
    prompts: Mapping[int, Iterable[Prompt]],
    after_frame: AfterFrame | None = None,
) -> Iterator[tuple[int, list[int], Tensor]]:
    """Prompt objects and track them to the end, frame by frame from the first prompt on.

    Frames are read when the predictor asks for them, and its state is held to what memory attention can still reach.

    Args:
        predictor: a stock predictor, with or without adapters in it.
        frames: RGB uint8 (H, W, 3), all of one size.
        prompts: frame number → the prompts on it, each of another object.
        after_frame: called with a frame's number when all that concerns it has been computed; frame 0 may come twice.

    Yields:
        The frame's number, the objects prompted so far, and their mask logits (O, H, W) at the frame's size.
    """
    state = new_state(predictor, frames)
    if after_frame is not None:
        after_frame(0)  # its image is encoded, whichever frame is prompted first
    # objects do not affect each other, and a frame before the prompt has no memory to track by
    for start, end in pairwise([*sorted(prompts), len(frames)]):
        for prompt in prompts[start]:
            add_prompt(predictor, state, start, prompt)
        with without_progress_bar():
            tracked = predictor.propagate_in_video(state, start, max_frame_num_to_track=end - 1 - start)
            for t, object_ids, logits_O1HW in tracked:
                if after_frame is not None:
                    after_frame(t)
                yield t, object_ids, logits_O1HW[:, 0]
                forget_unreachable(predictor, state, t + 1)
