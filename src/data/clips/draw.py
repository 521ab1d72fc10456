"""Draws clips from videos and stills."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...config import AugmentationConfig, ClipConfig
from ...core.errors import UserError
from ..records import ObjectTrack, VideoRecord
from .augment import apply_view, augment_colours, sample_view
from .frames import read_masks, read_pictures, read_void
from .motion import simulate_motion
from .transforms import to_pixels
from .types import Clip


def sample_clip(
    video: VideoRecord, config: ClipConfig, size: int, min_object_side: float, rng: np.random.Generator,
    augmentation: AugmentationConfig | None = None, pixels: bool = True,
) -> Clip:  # fmt: skip
    """Draw a training clip: frames of a video, or simulated motion of a still or of a video's one annotated frame.

    Objects are drawn among those that the clip shows before its last frame, at least one of them on its first frame.
    They may vanish and come back after the frame that shows them first, which is where they are prompted. Void areas
    move with the picture, and are no background.

    Args:
        video: a video or still with objects. Only the sampled frames are read, each once.
        config: how many frames and objects, which frames, and how stills move.
        size: side of the square frames in pixels.
        min_object_side: objects whose area is below this side squared, in pixels at ``size``, are not drawn, unless
            the first frame has no other.
        rng: random numbers for all draws.
        augmentation: magnitudes; None: no augmentation.
        pixels: whether frames are read; False gives the same clip without pixels.

    Raises:
        UserError: a frame cannot be read or is not of its video's size, or no annotated frame shows an object.
    """
    path_T = sample_frames(video, config, rng)
    annotated_N = _annotated(video)
    simulated = annotated_N.sum() == 1
    if simulated:
        path_T = path_T[:1]
    least = (min_object_side / size) ** 2 * video.height * video.width
    objects, start_O = _sample_objects(video, path_T, config.max_objects, least, rng)
    soft_TOHW = read_masks(video, objects, path_T, size)
    frames_T3HW = read_pictures(video, path_T, size) if pixels else torch.zeros(len(path_T), 0, size, size)
    prompted = start_O, np.arange(len(objects))
    soft_TOHW[prompted] = _at_least_a_pixel(soft_TOHW[prompted])
    aspect = video.width / video.height
    view = None if augmentation is None else sample_view(soft_TOHW[prompted], aspect, augmentation, rng)
    soft_TOHW = torch.cat([soft_TOHW, read_void(video, path_T, size)], dim=1)
    if view is not None:
        frames_T3HW, soft_TOHW = apply_view(frames_T3HW, soft_TOHW, view)
    if simulated:
        frames_T3HW, masks_TOHW = simulate_motion(
            frames_T3HW[0], soft_TOHW[0], config.frames, aspect, config.motion, rng
        )
    else:
        masks_TOHW = soft_TOHW > 0.5
    masks_TOHW, void_TVHW = masks_TOHW[:, : len(objects)], masks_TOHW[:, len(objects) :]
    seed = int(rng.integers(2**63))
    if augmentation is not None and pixels:  # nothing is drawn after it, so that a clip without pixels is the same one
        frames_T3HW = augment_colours(frames_T3HW, augmentation, rng)
    annotated_T = np.ones(config.frames, bool) if simulated else annotated_N[path_T]
    void_THW = void_TVHW[:, 0].numpy() if void_TVHW.any() else None
    return Clip(
        video.video_id, to_pixels(frames_T3HW), masks_TOHW.numpy(), annotated_T, seed, void_THW=void_THW,
        start_O=start_O if start_O.any() else None,
    )  # fmt: skip


def sample_frames(video: VideoRecord, config: ClipConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw which frames of a video are a clip, in steps of 1 to ``max_stride`` frames, forwards or backwards.

    The first frame is annotated and shows an object. Another annotated one follows if there is any, since a prompted
    frame alone teaches memory nothing. Where the drawn step meets none, steps grow, and then shrink, until one does.
    At the ends of the video the clip is reflected (ping-pong), but only if it must be.

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
        paths_ST = _reflect(straight_ST, last)
        followed_S = (annotated_N[paths_ST] & (paths_ST != starts_S[:, None])).any(axis=1)
        if followed_S.any():
            break
    straight_S = (paths_ST == straight_ST).all(axis=1)
    order = rng.permutation(len(starts_S))
    for i in order[np.lexsort((~straight_S[order], ~followed_S[order]))]:  # stable: what is equally good stays drawn
        if any(o.segmentations[starts_S[i]] is not None for o in video.objects):
            path_T: np.ndarray = paths_ST[i]
            return path_T
    raise UserError(f"{video.video_id}: no annotated frame shows an object; leave this video out", "data.no-object")


def sample_unlabelled(video: VideoRecord, config: ClipConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a clip without labels: its frames alone, uint8 (T, H, W, 3).

    A video gives consecutive frames, reflected at its ends; a still gives simulated motion. Arguments and errors are
    those of :func:`sample_clip`.
    """
    last = len(video) - 1
    path_T = _reflect(rng.integers(len(video)) + np.arange(config.frames if last else 1), last)
    frames_T3HW = read_pictures(video, path_T, size)
    if not last:
        nothing_1HW = torch.zeros(1, size, size)
        aspect = video.width / video.height
        frames_T3HW, _ = simulate_motion(frames_T3HW[0], nothing_1HW, config.frames, aspect, config.motion, rng)
    return to_pixels(frames_T3HW)


def _reflect(positions: np.ndarray, last: int) -> np.ndarray:
    """Fold positions on an endless line into frame numbers 0…last (ping-pong)."""
    there = positions % max(1, 2 * last)
    frames: np.ndarray = np.minimum(there, 2 * last - there)
    return frames


def _annotated(video: VideoRecord) -> np.ndarray:
    """Return which frames are annotated: bool (N,)."""
    if video.annotated is None:
        return np.ones(len(video), bool)
    return np.isin(np.arange(len(video)), list(video.annotated))


def _sample_objects(
    video: VideoRecord, path_T: np.ndarray, count: int, least: float, rng: np.random.Generator
) -> tuple[list[ObjectTrack], np.ndarray]:
    """Draw up to ``count`` objects, at least one of them seen on the first frame, and those first.

    They have at least ``least`` pixels where they are seen first, unless all on the first frame are smaller.

    Returns:
        The objects, and the frame of the clip that shows each first, int64 (O,).
    """
    candidates = _first_seen(video, path_T)
    drawn: list[tuple[ObjectTrack, int]] = []
    small: list[tuple[ObjectTrack, int]] = []
    for i in rng.permutation(len(candidates)):  # areas may have to be decoded: no more of them than needed
        obj, start = candidates[i]
        segmentation = obj.segmentations[path_T[start]]
        assert segmentation is not None
        (drawn if segmentation.area() >= least else small).append((obj, start))
        if len(drawn) >= count and any(start == 0 for _, start in drawn):
            break
    first = [one for one in drawn if one[1] == 0] or [one for one in small if one[1] == 0][:count]
    chosen = drawn[:count]
    if not any(start == 0 for _, start in chosen):
        chosen = [*chosen[: count - 1], first[0]] if chosen else first
    chosen.sort(key=lambda one: one[1] > 0)
    return [obj for obj, _ in chosen], np.array([start for _, start in chosen], dtype=np.int64)


def _first_seen(video: VideoRecord, path_T: np.ndarray) -> list[tuple[ObjectTrack, int]]:
    """Return objects with the first frame of a clip that shows them: those on its first frame, then later ones.

    After that frame another one must be annotated, on which the object is tracked.
    """
    first, later = [], []
    for obj in video.objects:
        start = next((t for t, frame in enumerate(path_T) if obj.segmentations[frame] is not None), len(path_T))
        if start == 0:
            first.append((obj, 0))
        elif any(video.is_annotated(int(frame)) for frame in path_T[start + 1 :]):
            later.append((obj, start))
    return first + later


def _at_least_a_pixel(masks_OHW: Tensor) -> Tensor:
    """Strengthen soft masks too thin to fill half a pixel.

    Each of them then shows on a pixel at least.
    """
    most_O11 = masks_OHW.amax((1, 2), keepdim=True)
    return torch.where(most_O11 > 0.5, masks_OHW, masks_OHW / most_O11.clamp(min=1e-6))
