"""Clips: the unit of training. Cuts them from videos, makes them from stills, and puts them into batches.

Every draw comes from (seed, epoch, clip): data are the same with any number of loader workers, of threads in
each, and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ...config import AugmentationConfig, ClipConfig, DatasetConfig, MotionConfig
from ...core.errors import UserError
from ..records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from .transforms import (
    apply_view,
    augment_colours,
    draw_view,
    resize_mask,
    resize_picture,
    simulate_motion,
    to_pixels,
)

SampleKey: TypeAlias = tuple[int, int]
"""(epoch, index) of a draw: with the run's seed, all that a clip of a :class:`ClipDataset` is drawn from."""


@dataclass(frozen=True)
class Clip:
    """T frames and the masks of O objects, at the model's resolution.

    ``frames_THWC``: uint8 RGB, or without channels, (T, H, W, 0), where pixels were not asked for; ``masks_TOHW``:
    bool; ``annotated_T``: bool, False where nothing is known of a frame's objects, so that its empty masks say nothing.
    The first frame is annotated, and every object is visible on it. ``seed``: what is drawn for its objects when it is
    trained on, such as prompts, comes from it. ``address``: the draw, of a data set's clip.
    """

    name: str
    frames_THWC: np.ndarray
    masks_TOHW: np.ndarray
    annotated_T: np.ndarray
    seed: int = 0
    address: SampleKey | None = None


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one length as tensors; the objects of all clips stand in a row and know their clip.

    ``frames_BTHWC``: uint8, without channels if the clips have none; ``masks_TOHW``: bool; ``annotated_TO``: bool, what
    :class:`Clip` says of each object's clip; ``video_of_object``: int64 (O,); ``seeds``: of each clip; ``keys``:
    of the draws, where all clips are a data set's, else none.
    """

    names: tuple[str, ...]
    frames_BTHWC: Tensor
    masks_TOHW: Tensor
    annotated_TO: Tensor
    video_of_object: Tensor
    seeds: tuple[int, ...]
    keys: tuple[SampleKey, ...] = ()

    @classmethod
    def collate(cls, clips: list[Clip]) -> ClipBatch:
        """Put clips of equal length and size together."""
        counts = torch.tensor([clip.masks_TOHW.shape[1] for clip in clips])
        video_of_object = torch.repeat_interleave(torch.arange(len(clips)), counts)
        keys = tuple(clip.address for clip in clips if clip.address is not None)
        return cls(
            names=tuple(clip.name for clip in clips),
            frames_BTHWC=torch.from_numpy(np.stack([clip.frames_THWC for clip in clips])),
            masks_TOHW=torch.from_numpy(np.concatenate([clip.masks_TOHW for clip in clips], axis=1)),
            annotated_TO=torch.from_numpy(np.stack([clip.annotated_T for clip in clips], axis=1))[:, video_of_object],
            video_of_object=video_of_object,
            seeds=tuple(clip.seed for clip in clips),
            keys=keys if len(keys) == len(clips) else (),
        )

    @property
    def has_pixels(self) -> bool:
        return self.frames_BTHWC.shape[-1] > 0

    def clips(self) -> list[Clip]:
        """The clips that were put together."""
        own = [self.video_of_object == number for number in range(len(self.names))]
        keys = self.keys or [None] * len(self.names)
        return [
            Clip(
                name,
                frames_THWC.numpy(),
                self.masks_TOHW[:, o].numpy(),
                self.annotated_TO[:, o][:, 0].numpy(),
                seed,
                address,
            )
            for name, frames_THWC, o, seed, address in zip(
                self.names, self.frames_BTHWC, own, self.seeds, keys, strict=True
            )
        ]

    def pin_memory(self) -> ClipBatch:
        """The same, with all that goes to the device in pinned memory."""
        return replace(
            self,
            frames_BTHWC=self.frames_BTHWC.pin_memory(),
            masks_TOHW=self.masks_TOHW.pin_memory(),
            video_of_object=self.video_of_object.pin_memory(),
        )


def collate(clips: list[Clip | UserError]) -> ClipBatch | UserError | None:
    """A batch of the clips, or the first error among them, for the trainer to raise; None of no clips."""
    good = [clip for clip in clips if isinstance(clip, Clip)]
    errors = [clip for clip in clips if isinstance(clip, UserError)]
    if errors:
        return errors[0]
    return ClipBatch.collate(good) if good else None


class ClipDataset(Dataset):
    """Training clips of one or several data sets: ``dataset[epoch, index]`` draws a clip, the same one every time.

    ``dataset[epoch, index, False]`` is that clip without its pixels: no frame is read.

    Each set gets its share of an epoch's clips. They go round the set's videos in an order drawn once, and every epoch
    begins where the one before ended: a small share shows other videos in every epoch, a large one shows videos again,
    drawn afresh, and no video comes twice more often than another.

    Args:
        sets: the videos and stills, set by set.
        config: says the sets' weights, and how clips are made (``clip``, ``augmentation``, ``min_object_side``).
        length: clips per epoch. A set's share is its weight / sum of weights, and never less than one clip.
        size: side of the square frames in pixels.
        seed: of all draws.
        views: clips are drawn in so many ways, which come again in turn: an epoch has the draws of the one ``views``
            epochs before or, of a set with more videos than clips in an epoch, a round of all its videos has those of
            the round so many rounds before. None: every clip is drawn anew.
    """

    def __init__(
        self, sets: Sequence[DataSet], config: DatasetConfig, length: int, size: int, seed: int,
        views: int | None = None,
    ) -> None:  # fmt: skip
        self.sets, self.config, self.size, self.seed, self.views = sets, config, size, seed, views
        self.shares = split_by_weight(length, [each.weight for each in config.domains])
        self._ends = np.cumsum(self.shares)
        generators = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))) for i in range(len(sets))]
        self._orders = [rng.permutation(len(data)) for rng, data in zip(generators, sets, strict=True)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def source(self, epoch: int, index: int) -> tuple[DataSet, VideoRecord]:
        """What a clip is drawn from."""
        chosen, place = self._place(epoch, index)
        order = self._orders[chosen]
        return self.sets[chosen], self.sets[chosen].videos[int(order[place % len(order)])]

    def address(self, epoch: int, index: int) -> SampleKey:
        """The draw that a clip is: its own or, with ``views``, the first one that was the same."""
        if self.views is None:
            return epoch, index
        chosen, place = self._place(epoch, index)
        share = self.shares[chosen]
        epoch, within = divmod(place % self._period(chosen, self.views), share)
        return epoch, int(self._ends[chosen]) - share + within

    def count_draws(self, views: int) -> int:
        """How many clips there are in so many views."""
        return sum(self._period(chosen, views) for chosen in range(len(self.sets)))

    def _place(self, epoch: int, index: int) -> tuple[int, int]:
        """A clip's set, and its number among all clips of that set, from the first epoch on."""
        chosen = int(np.searchsorted(self._ends, index, side="right"))
        share = self.shares[chosen]
        return chosen, epoch * share + index - (int(self._ends[chosen]) - share)

    def _period(self, chosen: int, views: int) -> int:
        return views * max(self.shares[chosen], len(self._orders[chosen]))

    def with_pixels(self, batch: ClipBatch) -> ClipBatch:
        """A batch of this data set, drawn once more if it has no pixels. Raises UserError if they cannot be read."""
        if batch.has_pixels:
            return batch
        drawn = [self[address] for address in batch.keys]
        for clip in drawn:
            if isinstance(clip, UserError):
                raise clip
        return ClipBatch.collate([clip for clip in drawn if isinstance(clip, Clip)])

    def __getitem__(self, key: SampleKey | tuple[int, int, bool]) -> Clip | UserError:
        epoch, index, *asked = key
        address = self.address(epoch, index)
        rng = np.random.default_rng((self.seed, *address))
        config, pixels = self.config, all(asked)
        try:
            data, video = self.source(*address)
            clip = draw_clip(video, config.clip, self.size, config.min_object_side, rng, config.augmentation, pixels)
        except UserError as error:  # handed on as it is: a loader process would wrap its traceback around it
            return error
        return replace(clip, address=address, name=clip.name if len(self.sets) == 1 else f"{data.name}/{clip.name}")


def split_by_weight(count: int, weights: Sequence[float]) -> list[int]:
    """Split a number into whole shares in proportion to weights, largest remainders first; none is less than 1."""
    exact = count * np.array(weights) / sum(weights)
    shares = np.maximum(1, np.floor(exact).astype(int))
    for i in np.argsort(shares - exact, kind="stable")[: max(0, count - int(shares.sum()))]:
        shares[i] += 1
    return shares.tolist()


def draw_clip(
    video: VideoRecord, config: ClipConfig, size: int, min_object_side: float, rng: np.random.Generator,
    augmentation: AugmentationConfig | None = None, pixels: bool = True,
) -> Clip:  # fmt: skip
    """Draw a training clip: frames of a video, or simulated motion of a still or of a video's one annotated frame.

    Objects are drawn among those seen on the clip's first frame; they may vanish and come back after it. Void areas
    are background: SAM 2's loss knows nothing else.

    Args:
        video: a video or still with objects. Only the frames drawn are read, each once.
        config: how many frames and objects, which frames, and how stills move.
        size: side of the square frames in pixels.
        min_object_side: objects whose area is below this side squared, in pixels at ``size``, are not drawn, unless
            the first frame has no other.
        rng: where all draws come from.
        augmentation: of the clip; None for none.
        pixels: False: the same clip without pixels, of which no frame is read.

    Raises:
        UserError: a frame cannot be read or is not of its video's size, or no annotated frame shows an object.
    """
    path_T = draw_path(video, config, rng)
    annotated_N = _annotated(video)
    simulated = annotated_N.sum() == 1
    if simulated:
        path_T = path_T[:1]
    least = (min_object_side / size) ** 2 * video.height * video.width
    objects = _draw_objects(video, int(path_T[0]), config.max_objects, least, rng)
    soft_TOHW = _read_masks(video, objects, path_T, size)
    frames_T3HW = _read_pictures(video, path_T, size) if pixels else torch.zeros(len(path_T), 0, size, size)
    soft_TOHW[0] = _at_least_a_pixel(soft_TOHW[0])
    aspect = video.width / video.height
    if augmentation is not None:
        view = draw_view(soft_TOHW[0], aspect, augmentation, rng)
        frames_T3HW, soft_TOHW = apply_view(frames_T3HW, soft_TOHW, view)
    if simulated:
        frames_T3HW, masks_TOHW = simulate_motion(
            frames_T3HW[0], soft_TOHW[0], config.frames, aspect, config.motion, rng
        )
    else:
        masks_TOHW = soft_TOHW > 0.5
    seed = int(rng.integers(2**63))
    if augmentation is not None and pixels:  # nothing is drawn after it, so that a clip without pixels is the same one
        frames_T3HW = augment_colours(frames_T3HW, augmentation, rng)
    annotated_T = np.ones(config.frames, bool) if simulated else annotated_N[path_T]
    return Clip(video.video_id, to_pixels(frames_T3HW), masks_TOHW.numpy(), annotated_T, seed)


def draw_path(video: VideoRecord, config: ClipConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw which frames of a video are a clip, in steps of 1 to ``max_stride`` frames, forwards or backwards.

    The first frame is annotated and shows an object. Another annotated one follows if there is any, for a prompted
    frame alone teaches memory nothing: where the drawn step meets none, steps grow, and then shrink, until one is
    reached. At the ends of the video the clip turns back, but only if it must.

    Returns:
        Frame numbers (T,).

    Raises:
        UserError: no annotated frame shows an object.
    """
    annotated_N, last = _annotated(video), len(video) - 1
    time_T = np.arange(config.frames) * (-1 if rng.random() < config.reverse else 1)
    stride = max(1, min(int(rng.integers(1, config.max_stride + 1)), last // max(1, config.frames - 1)))
    starts_S = np.flatnonzero(annotated_N)
    sparse = config.frames > 1 and len(starts_S) > 1
    steps = [*range(stride, last + 1), *range(stride - 1, 0, -1)] if sparse else [stride]
    for step in steps:
        straight_ST = starts_S[:, None] + step * time_T
        paths_ST = _turned_back(straight_ST, last)
        followed_S = (annotated_N[paths_ST] & (paths_ST != starts_S[:, None])).any(axis=1)
        if followed_S.any():
            break
    straight_S = (paths_ST == straight_ST).all(axis=1)
    order = rng.permutation(len(starts_S))
    for i in order[np.lexsort((~straight_S[order], ~followed_S[order]))]:  # stable: what is equally good stays drawn
        if any(o.segmentations[starts_S[i]] is not None for o in video.objects):
            return paths_ST[i]
    raise UserError(f"{video.video_id}: no annotated frame shows an object; leave this video out")


def draw_unlabelled(video: VideoRecord, config: ClipConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a clip of a video or still whose objects nobody looks at: its frames alone, uint8 (T, H, W, 3).

    Consecutive frames of a video, which turns back at its ends; of a still, simulated motion. Arguments and errors are
    those of :func:`draw_clip`.
    """
    last = len(video) - 1
    path_T = _turned_back(rng.integers(len(video)) + np.arange(config.frames if last else 1), last)
    frames_T3HW = _read_pictures(video, path_T, size)
    if not last:
        nothing_1HW = torch.zeros(1, size, size)
        aspect = video.width / video.height
        frames_T3HW, _ = simulate_motion(frames_T3HW[0], nothing_1HW, config.frames, aspect, config.motion, rng)
    return to_pixels(frames_T3HW)


def _turned_back(places: np.ndarray, last: int) -> np.ndarray:
    """Places on an endless line → frame numbers 0…last of a video that is played to and fro."""
    there = places % max(1, 2 * last)
    return np.minimum(there, 2 * last - there)


def _annotated(video: VideoRecord) -> np.ndarray:
    """Of every frame, whether it is known which objects are on it: bool (N,)."""
    if video.annotated is None:
        return np.ones(len(video), bool)
    return np.isin(np.arange(len(video)), list(video.annotated))


def _draw_objects(
    video: VideoRecord, frame: int, count: int, least: float, rng: np.random.Generator
) -> list[ObjectTrack]:
    """Up to ``count`` objects seen on a frame, of at least ``least`` pixels unless all are smaller."""
    seen = [o for o in video.objects if o.segmentations[frame] is not None]
    drawn: list[ObjectTrack] = []
    small: list[ObjectTrack] = []
    for i in rng.permutation(len(seen)):  # areas may have to be decoded: no more of them than needed
        segmentation = seen[i].segmentations[frame]
        assert segmentation is not None
        (drawn if segmentation.area() >= least else small).append(seen[i])
        if len(drawn) == count:
            break
    return drawn or small[:count]


def _read_masks(video: VideoRecord, objects: list[ObjectTrack], path_T: np.ndarray, size: int) -> Tensor:
    """Soft masks of objects (T, O, size, size); none is decoded twice."""
    frames_S, place_T = np.unique(path_T, return_inverse=True)
    empty = torch.zeros(size, size)
    masks = []
    for t in frames_S.tolist():
        found = (o.segmentations[t] for o in objects)
        masks.append(torch.stack([empty if s is None else resize_mask(s.decode(), size, size) for s in found]))
    return torch.stack(masks)[place_T]


def _read_pictures(video: VideoRecord, path_T: np.ndarray, size: int) -> Tensor:
    """Frames (T, 3, size, size); none is read twice."""
    frames_S, place_T = np.unique(path_T, return_inverse=True)
    pictures = [resize_picture(_pixels(video, t), size, size) for t in frames_S.tolist()]
    return torch.stack(pictures)[place_T]


def _pixels(video: VideoRecord, frame: int) -> np.ndarray:
    source = video.frames[frame]
    pixels = source.read()
    height, width = pixels.shape[:2]
    if (height, width) != (video.height, video.width):
        raise UserError(
            f"{source.name}: the frame is {width}×{height} pixels, its annotations are for "
            f"{video.width}×{video.height}; all frames of a video must have one size"
        )
    return _for_torch(pixels)


def _for_torch(pixels: np.ndarray) -> np.ndarray:
    """The same array if torch can share its memory, else a copy."""
    return np.require(pixels, requirements=["C", "W"])


def _at_least_a_pixel(masks_OHW: Tensor) -> Tensor:
    """Soft masks with those of objects too thin to fill half a pixel made stronger, so that they show somewhere."""
    most_O11 = masks_OHW.amax((1, 2), keepdim=True)
    return torch.where(most_O11 > 0.5, masks_OHW, masks_OHW / most_O11.clamp(min=1e-6))


def still_in_motion(
    picture_HW3: np.ndarray, frames: int, max_side: int, motion: MotionConfig, rng: np.random.Generator
) -> np.ndarray:
    """A clip of simulated motion from a picture nobody labelled, RGB uint8 (T, H, W, 3); arguments as below."""
    height, width = picture_HW3.shape[:2]
    picture_3HW = resize_picture(_for_torch(picture_HW3), *_at_most(max_side, height, width))
    nothing_1HW = torch.zeros_like(picture_3HW[:1])
    return to_pixels(simulate_motion(picture_3HW, nothing_1HW, frames, width / height, motion, rng)[0])


def evaluation_video(
    video: VideoRecord, index: int, frames: int, max_objects: int, max_side: int, motion: MotionConfig
) -> VideoRecord:
    """What a video is evaluated as: itself if it moves, else a clip of simulated motion, the same one every time.

    Args:
        video: a video or still image with objects.
        index: its place in the data set, from which the motion is drawn.
        frames: length of the clip that a still becomes.
        max_objects: objects kept, largest first.
        max_side: stills larger than this many pixels are scaled down to it.
        motion: magnitudes of the simulated motion; nothing is augmented.
    """
    if len(video) > 1:
        return video
    masks = video.masks(0)
    largest = sorted(masks, key=lambda object_id: (-int(masks[object_id].sum()), object_id))[:max_objects]
    height, width = _at_most(max_side, video.height, video.width)
    rng = np.random.default_rng((len(video.objects), index))
    rng.random()  # the motions of earlier versions, whose first draw was a flip: scores stay comparable
    picture_3HW = resize_picture(_for_torch(video.frames[0].read()), height, width)
    soft_OHW = torch.stack([resize_mask(masks[object_id], height, width) for object_id in largest])
    frames_T3HW, masks_TOHW = simulate_motion(picture_3HW, soft_OHW, frames, video.width / video.height, motion, rng)
    tracks = dict(zip(largest, masks_TOHW.numpy().swapaxes(0, 1), strict=True))
    known = {o.object_id: o for o in video.objects}
    objects = [
        replace(known[i], segmentations=[RLE.encode(mask) if mask.any() else None for mask in track_THW])
        for i, track_THW in tracks.items()
        if track_THW[0].any()
    ]
    pictures = enumerate(to_pixels(frames_T3HW))
    sources = [ArrayFrame(frame, f"{video.video_id} frame {t}", f"{t:05d}") for t, frame in pictures]
    return VideoRecord(video.video_id, height, width, list(sources), objects)


def _at_most(max_side: int, height: int, width: int) -> tuple[int, int]:
    """Height and width scaled down, if need be, to sides of at most ``max_side``."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in the epoch's own random order, beginning after ``skip`` clips (after a resume)."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter([(self.epoch, int(index)) for index in order[self.skip :]])


class BatchSampler(Sampler[list[tuple[Any, ...]]]):
    """Cuts what a sampler yields into batches, of which each of several processes takes its part.

    The parts of a batch are as equal as they can be, so all processes have the same number of batches, every clip is in
    one part, and the part of a short last batch may be empty.

    Args:
        sampler: of all clips, yields (epoch, index).
        batch_size: clips a batch, in all parts together; the last one may have fewer.
        rank, size: which of how many processes this is.
        is_known: whether the features of (epoch, index) are. A part of which all are is asked for without pixels, as
            (epoch, index, False). What is known is asked when a batch is about to be loaded. None: pixels are wanted.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, rank: int = 0, size: int = 1,
        is_cached: Callable[[int, int], bool] | None = None,
    ) -> None:  # fmt: skip
        self.sampler, self.batch_size, self.rank, self.size, self.is_cached = sampler, batch_size, rank, size, is_cached

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        keys = iter(self.sampler)
        while batch := list(islice(keys, self.batch_size)):
            part = batch[len(batch) * self.rank // self.size : len(batch) * (self.rank + 1) // self.size]
            known = self.is_cached is not None and all(self.is_cached(*key) for key in part)
            yield [(*key, False) for key in part] if known else [*part]
