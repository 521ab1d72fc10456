"""Clips: the unit of training. Cuts them from videos, makes them from stills, and puts them into batches.

Every draw comes from (seed, epoch, clip): data are the same with any number of loader workers and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from src.config import ClipConfig, MotionConfig
from src.data.records import RLE, ArrayFrame, DataSet, ObjectTrack, VideoRecord
from src.data.transforms import resize, simulate_motion
from src.errors import UserError


@dataclass(frozen=True)
class Clip:
    """T frames and the masks of O objects, at the model's resolution.

    ``frames_THWC``: uint8 RGB; ``masks_TOHW``: bool. Every object is visible on the first frame.
    """

    name: str
    frames_THWC: np.ndarray
    masks_TOHW: np.ndarray


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one length as tensors; the objects of all clips stand in a row and know their clip.

    ``frames_BTHWC``: uint8; ``masks_TOHW``: bool; ``video_of_object``: int64 (O,).
    """

    names: tuple[str, ...]
    frames_BTHWC: Tensor
    masks_TOHW: Tensor
    video_of_object: Tensor

    @classmethod
    def collate(cls, clips: list[Clip]) -> ClipBatch:
        """Put clips of equal length and size together."""
        counts = torch.tensor([clip.masks_TOHW.shape[1] for clip in clips])
        return cls(
            names=tuple(clip.name for clip in clips),
            frames_BTHWC=torch.from_numpy(np.stack([clip.frames_THWC for clip in clips])),
            masks_TOHW=torch.from_numpy(np.concatenate([clip.masks_TOHW for clip in clips], axis=1)),
            video_of_object=torch.repeat_interleave(torch.arange(len(clips)), counts),
        )

    def pin_memory(self) -> ClipBatch:
        return ClipBatch(
            self.names, self.frames_BTHWC.pin_memory(), self.masks_TOHW.pin_memory(), self.video_of_object.pin_memory()
        )


def collate(clips: list[Clip | UserError]) -> ClipBatch | UserError:
    """A batch of the clips, or the first error among them, for the trainer to raise."""
    good = [clip for clip in clips if isinstance(clip, Clip)]
    errors = [clip for clip in clips if isinstance(clip, UserError)]
    return errors[0] if errors else ClipBatch.collate(good)


class ClipDataset(Dataset):
    """Training clips of a data set: ``dataset[epoch, index]`` draws a clip, always the same one for the same numbers.

    Args:
        data: the videos and stills.
        config: frames per clip, objects per clip, simulated motion.
        size: side of the square frames in pixels.
        seed: of all draws.
        clips_per_video: clips drawn from each video per epoch.
        min_object_side: objects whose area is below this side squared, in pixels at ``size``, are not drawn, unless a
            video has no other.
    """

    def __init__(
        self,
        data: DataSet,
        config: ClipConfig,
        size: int,
        seed: int,
        clips_per_video: int = 1,
        min_object_side: float = 0,
    ) -> None:
        self.data, self.config, self.size, self.seed = data, config, size, seed
        self.clips_per_video, self.min_object_side = clips_per_video, min_object_side

    def __len__(self) -> int:
        return len(self.data) * self.clips_per_video

    def __getitem__(self, key: tuple[int, int]) -> Clip | UserError:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        video = self.data.videos[index // self.clips_per_video]
        try:
            return draw_clip(video, self.config, self.size, self.min_object_side, rng)
        except UserError as error:  # handed on as it is: a loader process would wrap its traceback around it
            return error


def draw_clip(
    video: VideoRecord, config: ClipConfig, size: int, min_object_side: float, rng: np.random.Generator
) -> Clip:
    """Draw a training clip: consecutive frames of a video that is long enough, else simulated motion of one frame."""
    frames = config.frames
    start = int(rng.integers(0, len(video) - frames + 1)) if len(video) >= frames else 0
    if all(o.segmentations[start] is None for o in video.objects):  # nothing to prompt there: begin where there is
        start = next(t for t in range(len(video)) if any(o.segmentations[t] is not None for o in video.objects))
    seen = [o for o in video.objects if o.segmentations[start] is not None]
    least = (min_object_side / size) ** 2 * video.height * video.width
    order = rng.permutation(len(seen))
    masks: list[tuple[ObjectTrack, np.ndarray]] = []
    small: list[tuple[ObjectTrack, np.ndarray]] = []
    for position in order:  # masks are decoded only until enough are found
        segmentation = seen[position].segmentations[start]
        assert segmentation is not None
        mask = segmentation.decode()
        (masks if mask.sum() >= least else small).append((seen[position], mask))
        if len(masks) == config.max_objects:
            break
    chosen = masks or small[: config.max_objects]
    if len(video) > 1 and len(video) - start >= frames:
        return _cut_clip(video, start, frames, [o.object_id for o, _ in chosen], size, config.motion, rng)
    picture = video.frames[start].read()
    frames_THWC, masks_TOHW = simulate_motion(
        picture, np.stack([mask for _, mask in chosen]), frames, size, size, config.motion, rng
    )
    return Clip(video.video_id, frames_THWC, masks_TOHW)


def _cut_clip(
    video: VideoRecord, start: int, frames: int, object_ids: list[int], size: int, motion: MotionConfig,
    rng: np.random.Generator,
) -> Clip:  # fmt: skip
    pictures, masks = [], []
    for t in range(start, start + frames):
        picture = torch.from_numpy(np.array(video.frames[t].read())).permute(2, 0, 1).float()
        pictures.append(resize(picture, size, size).round().byte().permute(1, 2, 0))
        found = {o.object_id: o.segmentations[t] for o in video.objects if o.object_id in object_ids}
        empty = np.zeros((video.height, video.width), bool)
        stack = np.stack([empty if (s := found[i]) is None else s.decode() for i in object_ids])
        masks.append(resize(torch.from_numpy(stack.astype(np.float32)), size, size) > 0.5)
    frames_THWC, masks_TOHW = torch.stack(pictures), torch.stack(masks)
    if rng.random() < motion.flip:
        frames_THWC, masks_TOHW = frames_THWC.flip(2), masks_TOHW.flip(3)
    return Clip(video.video_id, frames_THWC.numpy(), masks_TOHW.numpy())


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
        motion: magnitudes of the simulated motion; nothing is flipped.
    """
    if len(video) > 1:
        return video
    masks = video.masks(0)
    largest = sorted(masks, key=lambda object_id: (-int(masks[object_id].sum()), object_id))[:max_objects]
    scale = min(1.0, max_side / max(video.height, video.width))
    height, width = max(1, round(video.height * scale)), max(1, round(video.width * scale))
    rng = np.random.default_rng((len(video.objects), index))
    stack_OHW = np.stack([masks[object_id] for object_id in largest])
    still = motion.model_copy(update={"flip": 0.0})
    frames_THWC, masks_TOHW = simulate_motion(video.frames[0].read(), stack_OHW, frames, height, width, still, rng)
    known = {o.object_id: o for o in video.objects}
    objects = [
        replace(known[i], segmentations=[RLE.encode(mask) if mask.any() else None for mask in masks_TOHW[:, row]])
        for row, i in enumerate(largest)
        if masks_TOHW[0, row].any()
    ]
    sources = [ArrayFrame(frame, f"{video.video_id} frame {t}", f"{t:05d}") for t, frame in enumerate(frames_THWC)]
    return VideoRecord(video.video_id, height, width, list(sources), objects)


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
