"""SAM 2's training package: its training forward, its loss, its batch.

Prompt sampling, correction clicks, memory bank, multi-mask, IoU and occlusion losses are Meta's recipe
(``training.model.sam2.SAM2Train``, ``training.loss_fns.MultiStepMultiMasksAndIous``). Frames that nobody annotated,
which that recipe does not know, are tracked through: they are not prompted, and have no loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from tensordict import tensorclass
from torch import Tensor, nn
from training.loss_fns import CORE_LOSS_KEY, MultiStepMultiMasksAndIous
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint, BatchedVideoMetaData

from ...config import LossConfig, ModelConfig, Prompt, PromptConfig
from ...data.clips import ClipBatch
from ...data.decode.masks import bounding_box, centre_point
from ...lora.adapter import iter_adapter_layers
from ..protocols import BatchTotals, Features, Tracked, join_features
from ..spec import ModelSpec, spec_of
from .build import Build, build_model
from .cpu_kernels import use_fast_dropout
from .patches import Draw, prompts_drawn
from .pixels import normalise

__all__ = [
    "AnnotatedLoss",
    "BatchTotals",
    "Features",
    "Tracked",
    "TrainableSAM2",
    "build_loss",
    "build_trainable",
    "encode_frames",
    "has_frozen_encoder",
    "join_features",
    "seed_draws",
    "segmentation_losses",
    "to_datapoint",
    "track_clips",
]

PIXELS_AT_ONCE = 256**2
"""Pixels of the frames that a CPU encodes together: the features of more of them do not fit into its caches."""

LOSS_INPUTS = ("multistep_pred_multimasks_high_res", "multistep_pred_ious", "multistep_object_score_logits")


VOID_LOGIT = -1e4
"""Its sigmoid is 0 in every precision."""


@tensorclass
class Datapoint(BatchedVideoDatapoint):
    """SAM 2's training batch with ``annotated_TO``, which stays on the CPU.

    It is as in :class:`ClipBatch`. Where several processes share a batch, it is also False on frames on which another
    process' objects are not annotated.
    """

    annotated_TO: Tensor


class TrainableSAM2(SAM2Train):
    """SAM2Train that prompts and corrects annotated frames only, and takes cached image features.

    The frame tracked last is not put into memory, where no other frame would look for it.
    """

    num_init_cond_frames_for_train: int
    num_frames_to_correct_for_train: int
    frame_tracked: int

    def forward(self, input: Datapoint, features: Features | None = None) -> list[dict[str, Any]]:
        """Run SAM2Train's forward; ``features`` are :func:`encode_frames` of all clips' frames, None if not cached."""
        outputs: list[dict[str, Any]]
        if features is None:
            outputs = super().forward(input)
        else:
            outputs = self.forward_tracking(self.prepare_prompt_inputs(self.with_positions(features), input), input)
        return outputs

    def with_positions(self, features: Features) -> dict[str, Any]:
        """Return ``forward_image``'s output for frames whose features are cached."""
        positions = [self.image_encoder.neck.position_encoding(level).to(level.dtype) for level in features]
        return {"backbone_fpn": features, "vision_pos_enc": positions}

    def track_step(self, *, output_dict: dict[str, Any], num_frames: int, **step: Any) -> dict[str, Any]:
        """Track one frame of a clip as SAM2Train does; ``output_dict`` holds the frames tracked before it."""
        self.frame_tracked = step["frame_idx"]
        before = sum(len(output_dict[kind]) for kind in ("cond_frame_outputs", "non_cond_frame_outputs"))
        step["run_mem_encoder"] = before + 1 < num_frames
        output: dict[str, Any] = super().track_step(output_dict=output_dict, num_frames=num_frames, **step)
        return output

    def prepare_prompt_inputs(
        self, backbone_out: dict[str, Any], input: Datapoint, start_frame_idx: int = 0
    ) -> dict[str, Any]:
        """Draw prompts as SAM2Train does, among the frames that are annotated for every object of the batch.

        One of these stays without a first prompt, if there is more than one, so that memory attention gets a gradient.
        """
        out: dict[str, Any]
        short = 1 < input.num_frames <= self.num_init_cond_frames_for_train
        if input.annotated_TO.all() and not short:
            out = super().prepare_prompt_inputs(backbone_out, input, start_frame_idx)
            return out
        frames = input.annotated_TO.all(dim=1).nonzero().flatten().tolist()
        limits = self.num_init_cond_frames_for_train, self.num_frames_to_correct_for_train
        most = max(1, len(frames) - 1)
        self.num_init_cond_frames_for_train, self.num_frames_to_correct_for_train = (min(n, most) for n in limits)
        # to SAM2Train, the annotated frames are the clip; of a single frame it would click on every object
        annotated = SimpleNamespace(masks=input.masks[frames], num_frames=max(2, len(frames)))
        out = super().prepare_prompt_inputs(backbone_out, annotated, start_frame_idx)
        self.num_init_cond_frames_for_train, self.num_frames_to_correct_for_train = limits

        for name in ("gt_masks_per_frame", "mask_inputs_per_frame", "point_inputs_per_frame"):
            out[name] = {frames[t]: value for t, value in out[name].items()}
        for name in ("init_cond_frames", "frames_to_add_correction_pt"):
            out[name] = [frames[t] for t in out[name]]
        out["num_frames"] = input.num_frames
        out["frames_not_in_init_cond"] = [t for t in range(input.num_frames) if t not in out["init_cond_frames"]]
        return out


class AnnotatedLoss(MultiStepMultiMasksAndIous):
    """SAM 2's loss over annotated frames: summed over them, averaged over all objects of the batch."""

    def forward(
        self, outs_batch: list[dict[str, Any]], targets_batch: Tensor, annotated_TO: Tensor,
        objects: int | None = None, void_TOHW: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the base class' losses, without its averaging over processes.

        Args:
            outs_batch, targets_batch: the model's outputs, and the true masks.
            annotated_TO: bool; other pairs of frame and object have no loss.
            objects: the number that the sum is divided by; None: O.
            void_TOHW: bool, pixels that take no part in the loss; None: there are none.
        """
        if void_TOHW is not None:
            outs_batch = [_without_void(outs, void_OHW) for outs, void_OHW in zip(outs_batch, void_TOHW, strict=True)]
            targets_batch = targets_batch & ~void_TOHW
        losses: dict[str, Any] = defaultdict(int)
        for outs, targets, annotated_O in zip(outs_batch, targets_batch, annotated_TO, strict=True):
            known = annotated_O.nonzero().flatten().to(targets.device)
            if len(known):
                whole = len(known) == len(annotated_O)
                chosen = outs if whole else {name: [step[known] for step in outs[name]] for name in LOSS_INPUTS}
                for name, value in self._forward(chosen, targets[known], objects or len(annotated_O)).items():
                    losses[name] += value
        return losses


def _without_void(outs: dict[str, Any], void_OHW: Tensor) -> dict[str, Any]:
    """Return a frame's outputs that are surely background in void areas, by a constant: no term has a value there."""
    void_O1HW = void_OHW[:, None]
    masks = [logits.masked_fill(void_O1HW, VOID_LOGIT) for logits in outs[LOSS_INPUTS[0]]]
    return {**outs, LOSS_INPUTS[0]: masks}


def build_trainable(
    config: ModelConfig, prompts: PromptConfig, frames: int, build: Build = build_model
) -> TrainableSAM2:
    """Build a model of the zoo for training, with a share of mask, box and point prompts.

    Args:
        config: which model and weights.
        prompts: shares of prompt types and correction clicks.
        frames: frames per clip; up to two of them are prompted, as in the official recipe, but never all: memory
            attention, which prompted frames skip, would get no gradient.
        build: :func:`~src.models.sam2.build.build_model`, or that of another model of SAM 2's classes.
    """
    clicked = prompts.box + prompts.point
    prompted_frames = max(1, min(2, frames - 1))
    model: TrainableSAM2 = build(
        config,
        f"{__name__}.{TrainableSAM2.__qualname__}",
        prob_to_use_pt_input_for_train=clicked,
        prob_to_use_box_input_for_train=prompts.box / clicked if clicked else 0.0,
        num_frames_to_correct_for_train=prompted_frames,
        rand_frames_to_correct_for_train=True,
        num_init_cond_frames_for_train=prompted_frames,
        rand_init_cond_frames_for_train=True,
        add_all_frames_to_correct_as_cond=True,
        num_correction_pt_per_frame=prompts.correction_clicks,
        prob_to_sample_from_gt_for_train=0.1,
    )
    use_fast_dropout(model)
    return model


def build_loss(config: LossConfig, enable_segmentation: bool = True) -> AnnotatedLoss:
    """Return SAM 2's loss with the run's weights; without segmentation, mask and dice losses have weight 0."""
    return AnnotatedLoss(
        weight_dict={
            "loss_mask": config.mask if enable_segmentation else 0.0,
            "loss_dice": config.dice if enable_segmentation else 0.0,
            "loss_iou": config.iou,
            "loss_class": config.occlusion,
        },
        supervise_all_iou=True,
        iou_use_l1_loss=True,
        pred_obj_scores=True,
        focal_gamma_obj_score=0.0,
        focal_alpha_obj_score=-1.0,
    )


def to_datapoint(
    batch: ClipBatch, device: torch.device, spec: ModelSpec, totals: BatchTotals | None = None
) -> Datapoint:
    """Return the batch in the model's form, on the device: images (T, B, 3, H, W), masks (T, O, H, W).

    Args:
        batch: clips.
        device: where the model is.
        spec: the model's.
        totals: of the batch that this is a part of; None: it is the whole batch.
    """
    images_TB3HW = normalise(batch.frames_BTHWC.to(device, non_blocking=True), spec).transpose(0, 1)
    masks_TOHW = batch.masks_TOHW.to(device, non_blocking=True)
    frames, objects = masks_TOHW.shape[:2]
    height, width = images_TB3HW.shape[-2:]
    video_O = batch.video_of_object.to(device)
    frame_TO = torch.arange(frames, device=device)[:, None].expand(frames, objects)
    object_TO = torch.arange(objects, device=device).expand(frames, objects)
    return Datapoint(
        img_batch=images_TB3HW,
        obj_to_frame_idx=torch.stack([frame_TO, video_O.expand(frames, objects)], dim=-1).int(),
        masks=masks_TOHW,
        metadata=BatchedVideoMetaData(
            unique_objects_identifier=torch.stack([video_O.expand(frames, objects), object_TO, frame_TO], dim=-1),
            frame_orig_size=torch.tensor([height, width], device=device).expand(frames, objects, 2),
        ),
        dict_key="clips",
        annotated_TO=batch.annotated_TO if totals is None else batch.annotated_TO & totals.annotated_T[:, None],
        batch_size=[frames],
    )


def _datapoint_for(model: SAM2Base, batch: ClipBatch, totals: BatchTotals | None = None) -> Datapoint:
    """Return the batch in the model's form, with masks of the size at which the model has them."""
    datapoint = to_datapoint(batch, next(model.parameters()).device, spec_of(model), totals)
    datapoint.masks = _at_side(datapoint.masks, model.image_size)
    return datapoint


def _at_side(masks_TOHW: Tensor, side: int) -> Tensor:
    """Return masks, bool, at a size; where that is larger, as in models that see smaller frames, no pixel is lost."""
    if masks_TOHW.shape[-1] == side:
        return masks_TOHW
    return nn.functional.interpolate(masks_TOHW.byte(), (side, side), mode="nearest-exact").bool()


def seed_draws(model: SAM2Train, rank: int, *key: int) -> None:
    """Let all that a training forward draws begin from a key, such as a run's seed, a step and a batch in it.

    Which kind of prompt a batch gets, and on which frames, is the same in all processes that share the batch; dropout
    and noise differ between them. What is drawn for an object comes from its clip's seed (:func:`segmentation_losses`).

    Args:
        model: the model that will draw.
        rank: number of this process.
        key: whole numbers, at least 0.
    """
    model.rng = np.random.default_rng((*key, 0))
    torch.manual_seed(int(np.random.default_rng((*key, 1, rank)).integers(2**63)))


@contextmanager
def _drawn_by_object(model: SAM2Train, batch: ClipBatch, void_TOHW: Tensor | None) -> Iterator[None]:
    """Inside, SAM2Train draws clicks and boxes object by object, each object's from its clip's seed.

    So they do not depend on which other clips are in the batch. The global generator is left as it was. No click
    corrects what is predicted in a void area.
    """
    clip_O = batch.video_of_object.tolist()
    streams = [np.random.default_rng((batch.seeds[clip], o - clip_O.index(clip))) for o, clip in enumerate(clip_O)]

    def one_by_one(draw: Draw, masks_O1HW: Tensor, **others: Any) -> tuple[Tensor, ...]:
        drawn = []
        with torch.random.fork_rng([masks_O1HW.device] if masks_O1HW.is_cuda else []):
            for o, stream in enumerate(streams):
                torch.manual_seed(int(stream.integers(2**63)))
                own = {name: value[o : o + 1] if isinstance(value, Tensor) else value for name, value in others.items()}
                drawn.append(draw(masks_O1HW[o : o + 1], **own))
        return tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))

    def boxes(draw: Draw) -> Draw:
        return partial(one_by_one, draw)

    def points(draw: Draw) -> Draw:
        def next_points(gt_masks: Tensor, pred_masks: Tensor | None, method: str) -> Any:
            if void_TOHW is not None and pred_masks is not None:
                pred_masks = pred_masks & ~void_TOHW[model.frame_tracked][:, None]
            return one_by_one(draw, gt_masks, pred_masks=pred_masks, method=method)

        return next_points

    with prompts_drawn(boxes, points):
        yield


def has_frozen_encoder(model: SAM2Base) -> bool:
    """Return whether training leaves image features as they are: nothing that makes them trains or is adapted."""
    parts = [model.image_encoder]
    if model.use_high_res_features_in_sam:
        parts += [model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1]
    trains = any(parameter.requires_grad for part in parts for parameter in part.parameters())
    return not trains and not any(iter_adapter_layers(model.image_encoder))


@torch.no_grad()
def encode_frames(model: SAM2Base, frames_THWC: Tensor) -> Features:
    """Return the image features of a clip's frames, uint8 (T, H, W, 3), without a graph."""
    frames = frames_THWC.to(next(model.parameters()).device, non_blocking=True)
    at_once = max(1, PIXELS_AT_ONCE // frames[0, :, :, 0].numel()) if frames.device.type == "cpu" else len(frames)
    spec = spec_of(model)
    parts = [model.forward_image(normalise(part, spec))["backbone_fpn"] for part in torch.split(frames, at_once)]
    return join_features(parts, frames.device)


def segmentation_losses(
    model: SAM2Train,
    loss: AnnotatedLoss,
    batch: ClipBatch,
    totals: BatchTotals | None = None,
    features: Features | None = None,
) -> dict[str, Tensor]:
    """Run SAM 2's training forward and loss on a batch.

    An object that appears after its clip's first frame has a forward of its own, from the frame that shows it first.
    So it is prompted there, and no memory is of earlier frames, as in prediction.

    Args:
        model: in training mode.
        loss: of :func:`build_loss`.
        batch: clips, which need no pixels where features are given. What is drawn for their objects comes from their
            seeds, all else from ``model.rng`` and torch.
        totals: of the batch that this is a part of; None: it is the whole batch.
        features: :func:`encode_frames` of the clips one after another, which a :class:`TrainableSAM2` takes; None: the
            model encodes their frames.

    Returns:
        Scalars: ``total`` (weighted, with graph) and ``mask``, ``dice``, ``iou``, ``occlusion`` (unweighted, detached),
        all averaged over objects and summed over annotated frames; of a part, its share: the parts' add up to the
        whole batch's.
    """
    totals = BatchTotals.from_batch(batch) if totals is None else totals
    losses = _losses_from_first_frame(model, loss, batch.prompted_first(), totals, features)
    frames, rng = batch.frames_BTHWC.shape[1], model.rng
    for clip, start, part in batch.prompted_later():
        own = None if features is None else [level[clip * frames + start : (clip + 1) * frames] for level in features]
        model.rng = np.random.default_rng(part.seeds)
        later = _losses_from_first_frame(
            model, loss, part, BatchTotals(totals.objects, part.annotated_TO.all(dim=1)), own
        )
        losses = {name: value + later[name] for name, value in losses.items()}
    model.rng = rng
    return losses


def _losses_from_first_frame(
    model: SAM2Train, loss: AnnotatedLoss, batch: ClipBatch, totals: BatchTotals, features: Features | None
) -> dict[str, Tensor]:
    """Return the losses of :func:`segmentation_losses` of objects that the first frames of their clips show."""
    datapoint = _datapoint_for(model, batch, totals)
    cached = () if features is None else (features,)
    void_TOHW = None
    if batch.void_TBHW is not None:
        void_TOHW = batch.void_TBHW[:, batch.video_of_object].to(datapoint.masks.device)
        void_TOHW = _at_side(void_TOHW, model.image_size)
    with _drawn_by_object(model, batch, void_TOHW):
        outputs = model(datapoint, *cached)
    losses: dict[str, Any] = loss(outputs, datapoint.masks, batch.annotated_TO, totals.objects, void_TOHW)
    names = {"mask": "loss_mask", "dice": "loss_dice", "iou": "loss_iou", "occlusion": "loss_class"}
    parts = {name: torch.as_tensor(losses[key]).detach() for name, key in names.items()}
    return {"total": losses[CORE_LOSS_KEY], **parts}


def track_clips(
    model: TrainableSAM2, batch: ClipBatch, prompt: Prompt, keep_tracked: bool = False, features: Features | None = None
) -> Tracked:
    """Prompt every object on the first frame of its clip and track it, without anything drawn at random.

    Args:
        model: in the mode it is to run in; evaluation mode has no dropout.
        batch: clips of T frames, which need no pixels where features are given; of their masks only those of the first
            frame are used.
        prompt: the mask itself, its tight box, or one click, at the mask's innermost pixel.
        keep_tracked: whether to keep memory attention's output on the tracked frames.
        features: :func:`encode_frames` of the clips one after another; None: the model encodes their frames.

    Returns:
        All T frames, or with a mask prompt T − 1: there the first frame's mask is only passed through.
    """
    datapoint = _datapoint_for(model, batch)
    first_O1HW = datapoint.masks[0][:, None]
    frames = len(datapoint.masks)
    backbone = model.forward_image(datapoint.flat_img_batch) if features is None else model.with_positions(features)
    backbone |= {
        "gt_masks_per_frame": {},
        "num_frames": frames,
        "use_pt_input": prompt != "mask",
        "init_cond_frames": [0],
        "frames_not_in_init_cond": list(range(1, frames)),
        "mask_inputs_per_frame": {0: first_O1HW} if prompt == "mask" else {},
        "point_inputs_per_frame": {} if prompt == "mask" else {0: _clicks(first_O1HW, prompt)},
        "frames_to_add_correction_pt": [],
    }
    kept: list[Tensor] = []
    keep = model.memory_attention.register_forward_hook
    hook = keep(lambda _, __, output: kept.append(output)) if keep_tracked else None
    try:
        outputs = model.forward_tracking(backbone, datapoint)
    finally:
        if hook is not None:
            hook.remove()
    supervised = outputs[1:] if prompt == "mask" else outputs
    return Tracked(
        torch.stack([output["pred_masks"][:, 0] for output in supervised]),
        torch.stack([output["multistep_object_score_logits"][-1][:, 0] for output in supervised]),
        torch.stack(kept) if kept else None,
    )


def _clicks(masks_O1HW: Tensor, prompt: Prompt) -> dict[str, Tensor]:
    """A box (its two corners, labelled 2 and 3) or a click (labelled 1) on each mask, as SAM 2 takes them."""
    points, labels = [], [2, 3] if prompt == "box" else [1]
    for mask_HW in masks_O1HW[:, 0].cpu().numpy():
        points.append(np.reshape(bounding_box(mask_HW) if prompt == "box" else centre_point(mask_HW), (-1, 2)))
    device = masks_O1HW.device
    return {
        "point_coords": torch.tensor(np.stack(points), dtype=torch.float32, device=device),
        "point_labels": torch.tensor(labels, dtype=torch.int32, device=device).repeat(len(points), 1),
    }
