"""Self-distillation: the base, one switch away, teaches the adapted model on general clips that nobody has labelled.

What the base would have answered there is kept while the new domain is learned (Li & Hoiem, "Learning without
Forgetting", ECCV 2016, with the adapters switched off as the teacher).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import ClipConfig, Config, DistillConfig, LossConfig, Prompt, image_size_of
from ...core import distributed
from ...core.device import evaluating
from ...core.errors import UserError
from ...data.clips import Clip, ClipBatch, sample_unlabelled
from ...data.records import RLE, DataSet
from ...data.synthetic import GENERAL_SEED, SOURCE, make_videos
from ...data.unlabelled import open_unlabelled
from ...lora.adapter import disable_adapters, iter_adapter_layers
from ...models.protocols import Features, Tracked, join_features
from ...models.spec import model_spec, spec_of
from ..base import LossTerms

PROMPTS: tuple[Prompt, ...] = ("mask", "box", "point")  # in turn, clip by clip
CLICKS = 24  # in the search for objects on a first frame
NMS_IOU = 0.7  # from which two masks are of the same object
LOGIT_CLAMP = 10.0  # beyond ± this, logits differ in nothing that counts

CACHE_BYTES = 2**30  # for what is kept of all general clips; where it would be more, it is computed at every step


@dataclass(frozen=True)
class TeacherTarget:
    """What is kept of a general clip.

    Attributes:
        objects: masks of the objects that are tracked, on its first frame.
        teacher_out: what the teacher predicts for them.
        features: what a frozen encoder makes of its frames, where there is room.
        frames_THWC: its frames, where no features are kept and there is room.
    """

    objects: list[RLE]
    teacher_out: Tracked
    features: Features | None
    frames_THWC: np.ndarray | None


class SelfDistillation:
    """Draws general clips, asks the teacher once about each, and measures how far the student has moved from it.

    The teacher is the model with its adapters off; of a model without adapters it is a copy, made here.

    Args:
        model: as it is before it trains.
        data: general videos and still images; their labels are not used.
        clip: length of the clips, and simulated motion for stills.
        size: side of their frames in pixels.
        config: how much.
        loss: the weights of mask, dice and object score, as in the loss on labelled clips.
        seed: random seed.
    """

    def __init__(
        self, model: nn.Module, data: DataSet, clip: ClipConfig, size: int, config: DistillConfig, loss: LossConfig,
        seed: int,
    ) -> None:  # fmt: skip
        self.model, self.data, self.config, self.weights, self.seed = model, data, config, loss, seed
        self.clip, self.size = clip, size
        self.copy = None if any(iter_adapter_layers(model)) else copy.deepcopy(model).requires_grad_(False)
        self._room = spec_of(model).load()
        self.frozen = self._room.has_frozen_encoder(model)
        self.targets: dict[int, TeacherTarget] = {}

    def is_due(self, step: int) -> bool:
        """Whether this step is distilled on."""
        return step % self.config.every == 0

    def losses(self, step: int) -> LossTerms:
        """Compare the student with the teacher on the clips of a step, always the same ones for the same step.

        Returns:
            The weighted sum, and to log ``mask``, ``dice``, ``score`` and, where weighted, ``features``: unweighted,
            averaged over objects and summed over frames. Each process takes some of the clips: the shares add up.
        """
        rng = np.random.default_rng((self.seed, step, 1))
        kind = int(rng.integers(len(PROMPTS)))  # a batch has prompts of one type
        pool = np.arange(kind, self.config.clips, len(PROMPTS))
        chosen = rng.choice(pool, min(self.config.batch_size, len(pool)), replace=False)
        own = chosen[distributed.rank() :: distributed.world_size()]
        with evaluating(self.model):
            targets = [self._target(int(index)) for index in own]
            objects = sum(len(target.objects) for target in targets)
            all_objects = sum(distributed.all_gather_object(objects))
            if not targets:
                return LossTerms(None, {})
            device = next(self.model.parameters()).device
            teacher_out = _joined([target.teacher_out for target in targets], device)
            batch = ClipBatch.collate([self._clip(index, target) for index, target in zip(own, targets, strict=True)])
            cached = [target.features for target in targets if target.features is not None]
            features = join_features(cached, device) if cached else None
            keep = teacher_out.features_TNOC is not None
            student_out = self._room.track_clips(self.model, batch, PROMPTS[kind], keep, features)
        parts = {name: objects / all_objects * value for name, value in difference(student_out, teacher_out).items()}
        weights = {
            "mask": self.weights.mask, "dice": self.weights.dice, "score": self.weights.occlusion,
            "features": self.config.features_weight,
        }  # fmt: skip
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        weight = self.config.weight * self.config.every
        return LossTerms(weight * total, {name: value.detach() for name, value in parts.items()})

    @torch.no_grad()
    def _target(self, index: int) -> TeacherTarget:
        """Clip number ``index`` with the teacher's prediction, which is made once and kept from then on.

        The result has features, if the encoder is frozen, or else frames.
        """
        target = self.targets.get(index)
        if target is not None and (target.features is not None or target.frames_THWC is not None):
            return target
        video = self.data.videos[index % len(self.data)]
        frames_THWC = sample_unlabelled(video, self.clip, self.size, np.random.default_rng((self.seed, index, 2)))
        features = self._room.encode_frames(self.model, torch.from_numpy(frames_THWC)) if self.frozen else None
        if target is None:
            target = self._ask(index, frames_THWC, features)
            self.targets[index] = target
        clip_bytes = frames_THWC.nbytes if features is None else sum(level.nbytes for level in features)
        whole = replace(target, features=features, frames_THWC=frames_THWC if features is None else None)
        if self.config.clips * clip_bytes <= CACHE_BYTES:
            self.targets[index] = replace(whole, features=None if features is None else [x.cpu() for x in features])
        return whole

    def _clip(self, index: int, target: TeacherTarget) -> Clip:
        """The clip to track; without pixels, where features are kept."""
        masks_OHW = np.stack([mask.decode() for mask in target.objects])
        frames_THWC = target.frames_THWC
        if frames_THWC is None:
            frames_THWC = np.empty((self.clip.frames, *masks_OHW.shape[1:], 0), np.uint8)
        return _clip(_name(index), frames_THWC, masks_OHW)

    def _ask(self, index: int, frames_THWC: np.ndarray, features: Features | None) -> TeacherTarget:
        """Find objects on a clip's first frame, and let the teacher track them."""
        with self._teacher() as teacher:
            clicks = np.random.default_rng((self.seed, index, 3))
            batch = pseudo_labels(teacher, _name(index), frames_THWC, self.config.objects, clicks)
            prompt, keep = PROMPTS[index % len(PROMPTS)], self.config.features_weight > 0
            teacher_out = self._room.track_clips(teacher, batch, prompt, keep, features)
        masks = [RLE.encode(mask_HW) for mask_HW in batch.masks_TOHW[0].numpy()]
        return TeacherTarget(masks, _stored(teacher_out), None, None)

    @contextmanager
    def _teacher(self) -> Iterator[nn.Module]:
        if self.copy is not None:
            yield self.copy.to(next(self.model.parameters()).device).eval()
        else:
            with disable_adapters(self.model):
                yield self.model


def general_clips(config: Config, count: int | None = None) -> DataSet:
    """Return the videos to distil on: those of a folder, or of the world that the bundled base was trained on.

    Args:
        config: the run.
        count: so many of that world are enough; None: as many as are distilled on.

    Raises:
        UserError: the config names no folder, and the model is not the bundled base; or the folder cannot be read.
    """
    settings = config.training.distill
    if settings.folder is None:
        if model_spec(config.model.name).source_world != SOURCE.name:
            raise UserError(
                "training.distill.folder: name a folder of general images or videos; "
                f"model.name {config.model.name} has no general data of its own",
                "distill.no-folder",
            )
        return make_videos(
            SOURCE, count or settings.clips, GENERAL_SEED, config.dataset.clip.frames, image_size_of(config.model)
        )
    return open_unlabelled(settings.folder, config.dataset.follow_links)


def general_batches(model: nn.Module, config: Config, count: int) -> Iterator[ClipBatch]:
    """Yield clips of :func:`general_clips`, each with the objects that the model finds on its first frame."""
    data, settings, clip = general_clips(config, count), config.training.distill, config.dataset.clip
    for index in range(count):
        rng = np.random.default_rng((config.training.seed, index, 5))
        frames_THWC = sample_unlabelled(data.videos[index % len(data)], clip, image_size_of(config.model), rng)
        yield pseudo_labels(model, _name(index), frames_THWC, settings.objects, rng)


def difference(student_out: Tracked, teacher_out: Tracked) -> dict[str, Tensor]:
    """Return how far a student's predictions are from its teacher's: 0 where they agree.

    Returns:
        ``mask``: relative entropy per pixel of the masks; ``dice``: 1 − soft Dice between them; ``score``: relative
        entropy of the object scores; ``features``: squared error, as a share of the teacher's variance. All averaged
        over objects and summed over frames.
    """
    objects = student_out.scores_TO.shape[1]
    student_TOhw = student_out.logits_TOhw.clamp(-LOGIT_CLAMP, LOGIT_CLAMP)
    teacher_TOhw = teacher_out.logits_TOhw.clamp(-LOGIT_CLAMP, LOGIT_CLAMP)
    teacher_TO = teacher_out.scores_TO.clamp(-LOGIT_CLAMP, LOGIT_CLAMP)
    p, q = student_TOhw.sigmoid(), teacher_TOhw.sigmoid()
    overlap_TO = 2 * (p * q).sum((-2, -1)) + 1
    areas_TO = (p * p).sum((-2, -1)) + (q * q).sum((-2, -1)) + 1
    parts = {
        "mask": _relative_entropy(student_TOhw, teacher_TOhw).mean((-2, -1)).sum() / objects,
        "dice": (1 - overlap_TO / areas_TO).sum() / objects,
        "score": _relative_entropy(student_out.scores_TO, teacher_TO).sum() / objects,
    }
    student, teacher = student_out.features_TNOC, teacher_out.features_TNOC
    if student is not None and teacher is not None:
        error_TO = (student - teacher).square().mean((1, 3))
        parts["features"] = (error_TO / teacher.var((1, 3)).clamp_min(1e-6)).sum() / objects
    return parts


def _relative_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of two Bernoulli variables given by their logits."""
    q = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, q, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, q, reduction="none")


def propose_masks(model: nn.Module, picture_HWC: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Find objects on a picture: the masks of random clicks that the model trusts most.

    Args:
        model: in evaluation mode.
        picture_HWC: RGB uint8, at the model's size.
        count: objects wanted.
        rng: draws the clicks.

    Returns:
        Masks bool (O, H, W), 1 ≤ O ≤ ``count``, no two of them of the same object.
    """
    predictor = spec_of(model).load().image_predictor(model)
    predictor.set_image(picture_HWC)
    points = rng.uniform(0, picture_HWC.shape[0], (CLICKS, 1, 2)).astype(np.float32)
    masks_PMHW, scores_PM, _ = predictor.predict(points, np.ones((CLICKS, 1), np.int32), multimask_output=True)
    masks_NHW = masks_PMHW.reshape(-1, *masks_PMHW.shape[-2:]).astype(bool)
    found: list[np.ndarray] = []
    for candidate in np.argsort(-scores_PM.reshape(-1)):
        mask = masks_NHW[candidate]
        if 0 < mask.mean() < 0.9 and not any(_same(mask, other) for other in found):
            found.append(mask)
        if len(found) == count:
            break
    return np.stack(found) if found else np.ones((1, *masks_NHW.shape[1:]), bool)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.count_nonzero(a & b) > NMS_IOU * np.count_nonzero(a | b))


@torch.no_grad()
def pseudo_labels(
    model: nn.Module, name: str, frames_THWC: np.ndarray, count: int, rng: np.random.Generator
) -> ClipBatch:  # fmt: skip
    """Return a clip without labels as a batch to track: the masks of its first frame are :func:`propose_masks`."""
    return ClipBatch.collate([_clip(name, frames_THWC, propose_masks(model, frames_THWC[0], count, rng))])


def _name(index: int) -> str:
    return f"general {index}"


def _clip(name: str, frames_THWC: np.ndarray, masks_OHW: np.ndarray) -> Clip:
    """A clip of which only the first frame's masks are known."""
    masks_TOHW = np.zeros((len(frames_THWC), *masks_OHW.shape), bool)
    masks_TOHW[0] = masks_OHW
    return Clip(name, frames_THWC, masks_TOHW, np.arange(len(frames_THWC)) == 0)


def _stored(tracked: Tracked) -> Tracked:
    """On the CPU, in half precision: what is kept of every clip."""
    features = tracked.features_TNOC
    return replace(
        tracked,
        logits_TOhw=tracked.logits_TOhw.clamp(-LOGIT_CLAMP, LOGIT_CLAMP).half().cpu(),
        scores_TO=tracked.scores_TO.clamp(-LOGIT_CLAMP, LOGIT_CLAMP).cpu(),
        features_TNOC=None if features is None else features.half().cpu(),
    )


def _joined(clips: list[Tracked], device: torch.device) -> Tracked:
    """Predictions for several clips as those for one batch."""

    def cat(tensors: list[Tensor], axis: int) -> Tensor:
        return torch.cat(tensors, dim=axis).float().to(device)

    features = [clip.features_TNOC for clip in clips if clip.features_TNOC is not None]
    return Tracked(
        cat([clip.logits_TOhw for clip in clips], 1),
        cat([clip.scores_TO for clip in clips], 1),
        cat(features, 2) if features else None,
    )
