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
from torch import Tensor

from ..config import ClipConfig, Config, DistillConfig, LossConfig, Prompt, image_size_of
from ..core import distributed
from ..core.device import evaluating
from ..core.errors import UserError
from ..data.clips import Clip, ClipBatch, sample_unlabelled
from ..data.records import RLE, DataSet
from ..data.synthetic import GENERAL_SEED, SOURCE, make_videos
from ..data.unlabelled import open_unlabelled
from ..lora.adapter import disable_adapters, iter_adapter_layers
from ..models.sam2.predictors import image_predictor
from ..models.sam2.train_forward import (
    Features,
    Tracked,
    TrainableSAM2,
    encode_frames,
    has_frozen_encoder,
    join_features,
    track_clips,
)
from ..models.spec import model_spec

PROMPTS: tuple[Prompt, ...] = ("mask", "box", "point")  # in turn, clip by clip
CLICKS = 24  # clicks in the search for things on a first frame
NMS_IOU = 0.7  # IoU from which two masks are the same thing
LOGIT_CLAMP = 10.0  # logits beyond ± this differ in nothing that counts


CACHE_BYTES = (
    2**30
)  # bytes for what is kept of all general clips; where it would be more, it is made anew for every step


@dataclass(frozen=True)
class TeacherTarget:
    """What is kept of a general clip: the things found on its first frame, and what the teacher said of them.

    ``features``: what a frozen encoder makes of its frames; ``frames_THWC``: those, where no features are kept. Either
    is None where it would take too much room.
    """

    things: list[RLE]
    taught: Tracked
    features: Features | None
    frames_THWC: np.ndarray | None


class Distillation:
    """Draws general clips, asks the teacher once about each, and says how far the student has moved from it.

    The teacher is the model with its adapters off; of a model without adapters it is a copy, made here.

    Args:
        model: as it is before it trains.
        data: general videos and still images; objects on them are not looked at.
        clip: length of the clips, and simulated motion for stills.
        size: side of their frames in pixels.
        config: how much.
        loss: the weights of mask, dice and object score, as in the loss on labelled clips.
        seed: of all draws.
    """

    def __init__(
        self, model: TrainableSAM2, data: DataSet, clip: ClipConfig, size: int, config: DistillConfig, loss: LossConfig,
        seed: int,
    ) -> None:  # fmt: skip
        self.model, self.data, self.config, self.weights, self.seed = model, data, config, loss, seed
        self.clip, self.size = clip, size
        self.copy = None if any(iter_adapter_layers(model)) else copy.deepcopy(model).requires_grad_(False)
        self.frozen = has_frozen_encoder(model)
        self.lessons: dict[int, TeacherTarget] = {}

    def is_due(self, step: int) -> bool:
        """Whether this step is one of those that are taught."""
        return step % self.config.every == 0

    def losses(self, step: int) -> dict[str, Tensor]:
        """The student against the teacher on the clips of a step, always the same ones for the same step.

        Returns:
            Scalars: ``total``, weighted, with graph; ``mask``, ``dice``, ``score`` and, where weighted, ``features``,
            unweighted and detached, averaged over objects and summed over frames. Each process of a run takes some of
            the clips: these are its shares, which add up to the whole, and there are none where it has no clip.
        """
        rng = np.random.default_rng((self.seed, step, 1))
        kind = int(rng.integers(len(PROMPTS)))  # a batch has prompts of one type
        pool = np.arange(kind, self.config.clips, len(PROMPTS))
        chosen = rng.choice(pool, min(self.config.batch_size, len(pool)), replace=False)
        own = chosen[distributed.rank() :: distributed.world_size()]
        with evaluating(self.model):
            lessons = [self._lesson(int(index)) for index in own]
            objects = sum(len(lesson.things) for lesson in lessons)
            of_all = sum(distributed.all_gather_object(objects))
            if not lessons:
                return {}
            device = next(self.model.parameters()).device
            taught = _joined([lesson.taught for lesson in lessons], device)
            batch = ClipBatch.collate([self._clip(index, lesson) for index, lesson in zip(own, lessons, strict=True)])
            known = [lesson.features for lesson in lessons if lesson.features is not None]
            features = join_features(known, device) if known else None
            said = track_clips(self.model, batch, PROMPTS[kind], taught.features_TNOC is not None, features)
        parts = {name: objects / of_all * value for name, value in difference(said, taught).items()}
        weights = {
            "mask": self.weights.mask, "dice": self.weights.dice, "score": self.weights.occlusion,
            "features": self.config.features_weight,
        }  # fmt: skip
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        weight = self.config.weight * self.config.every
        return {"total": weight * total, **{name: value.detach() for name, value in parts.items()}}

    @torch.no_grad()
    def _lesson(self, index: int) -> TeacherTarget:
        """Clip number ``index`` with the teacher's word on it, which is found out once and kept from then on.

        What comes back has features, if the encoder is frozen, or else frames.
        """
        lesson = self.lessons.get(index)
        if lesson is not None and (lesson.features is not None or lesson.frames_THWC is not None):
            return lesson
        video = self.data.videos[index % len(self.data)]
        frames_THWC = sample_unlabelled(video, self.clip, self.size, np.random.default_rng((self.seed, index, 2)))
        features = encode_frames(self.model, torch.from_numpy(frames_THWC)) if self.frozen else None
        if lesson is None:
            things, taught = self._ask(index, frames_THWC, features)
            lesson = TeacherTarget(things, taught, None, None)
            self.lessons[index] = lesson
        of_clip = frames_THWC.nbytes if features is None else sum(level.nbytes for level in features)
        whole = replace(lesson, features=features, frames_THWC=frames_THWC if features is None else None)
        if self.config.clips * of_clip <= CACHE_BYTES:
            self.lessons[index] = replace(whole, features=None if features is None else [x.cpu() for x in features])
        return whole

    def _clip(self, index: int, lesson: TeacherTarget) -> Clip:
        """The clip to track; without pixels, where features are known."""
        masks_OHW = np.stack([thing.decode() for thing in lesson.things])
        frames_THWC = lesson.frames_THWC
        if frames_THWC is None:
            frames_THWC = np.empty((self.clip.frames, *masks_OHW.shape[1:], 0), np.uint8)
        return _clip(_name(index), frames_THWC, masks_OHW)

    def _ask(self, index: int, frames_THWC: np.ndarray, features: Features | None) -> tuple[list[RLE], Tracked]:
        """The things on a clip's first frame, and what the teacher says of them."""
        with self._teacher() as teacher:
            clicks = np.random.default_rng((self.seed, index, 3))
            batch = pseudo_labels(teacher, _name(index), frames_THWC, self.config.objects, clicks)
            prompt, keep = PROMPTS[index % len(PROMPTS)], self.config.features_weight > 0
            taught = track_clips(teacher, batch, prompt, keep, features)
        return [RLE.encode(mask_HW) for mask_HW in batch.masks_TOHW[0].numpy()], _stored(taught)

    @contextmanager
    def _teacher(self) -> Iterator[TrainableSAM2]:
        if self.copy is not None:
            yield self.copy.to(next(self.model.parameters()).device).eval()
        else:
            with disable_adapters(self.model):
                yield self.model


def general_clips(config: Config) -> DataSet:
    """The videos to distil on: those of a folder, or of the bundled base's source domain.

    Raises:
        UserError: the config names no folder, and the model is not the bundled base; or the folder cannot be read.
    """
    settings = config.training.distill
    if settings.folder is None:
        if model_spec(config.model.name).source_world != SOURCE.name:
            raise UserError(
                "training.distill.folder: name a folder of general images or videos; "
                f"{config.model.name} has none of its own",
                "distill.no-folder",
            )
        return make_videos(
            SOURCE, settings.clips, GENERAL_SEED, config.dataset.clip.frames, image_size_of(config.model)
        )
    return open_unlabelled(settings.folder, config.dataset.follow_links)


def difference(said: Tracked, taught: Tracked) -> dict[str, Tensor]:
    """How far a student's words are from its teacher's: 0 where they agree.

    Returns:
        ``mask``: relative entropy per pixel of the masks; ``dice``: 1 − soft Dice between them; ``score``: relative
        entropy of the object scores; ``features``: squared error, as a share of the teacher's variance. All averaged
        over objects and summed over frames.
    """
    objects = said.scores_TO.shape[1]
    student_TOhw, teacher_TOhw = (
        said.logits_TOhw.clamp(-LOGIT_CLAMP, LOGIT_CLAMP),
        taught.logits_TOhw.clamp(-LOGIT_CLAMP, LOGIT_CLAMP),
    )
    p, q = student_TOhw.sigmoid(), teacher_TOhw.sigmoid()
    overlap_TO = 2 * (p * q).sum((-2, -1)) + 1
    areas_TO = (p * p).sum((-2, -1)) + (q * q).sum((-2, -1)) + 1
    parts = {
        "mask": _relative_entropy(student_TOhw, teacher_TOhw).mean((-2, -1)).sum() / objects,
        "dice": (1 - overlap_TO / areas_TO).sum() / objects,
        "score": _relative_entropy(said.scores_TO, taught.scores_TO.clamp(-LOGIT_CLAMP, LOGIT_CLAMP)).sum() / objects,
    }
    if said.features_TNOC is not None and taught.features_TNOC is not None:
        error_TO = (said.features_TNOC - taught.features_TNOC).square().mean((1, 3))
        parts["features"] = (error_TO / taught.features_TNOC.var((1, 3)).clamp_min(1e-6)).sum() / objects
    return parts


def _relative_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of two Bernoulli variables given by their logits."""
    q = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, q, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, q, reduction="none")


def propose_masks(model: TrainableSAM2, picture_HWC: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Things on a picture, by the model's own judgement: the masks of random clicks that it trusts most.

    Args:
        model: in evaluation mode.
        picture_HWC: RGB uint8, at the model's size.
        count: things wanted.
        rng: where the clicks come from.

    Returns:
        Masks bool (O, H, W), 1 ≤ O ≤ ``count``, no two of them the same thing.
    """
    predictor = image_predictor(model)
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
    model: TrainableSAM2, name: str, frames_THWC: np.ndarray, count: int, rng: np.random.Generator
) -> ClipBatch:  # fmt: skip
    """A clip without labels as a batch to track: the masks of its first frame are :func:`propose_masks`."""
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


def _joined(lessons: list[Tracked], device: torch.device) -> Tracked:
    """What was said of several clips as of one batch."""

    def cat(tensors: list[Tensor], axis: int) -> Tensor:
        return torch.cat(tensors, dim=axis).float().to(device)

    features = [lesson.features_TNOC for lesson in lessons if lesson.features_TNOC is not None]
    return Tracked(
        cat([lesson.logits_TOhw for lesson in lessons], 1),
        cat([lesson.scores_TO for lesson in lessons], 1),
        cat(features, 2) if features else None,
    )
