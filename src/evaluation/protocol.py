"""Which frames of an object are scored: the protocols of ``evaluation.protocol``.

Frames that nobody annotated are never scored, in any of them.

- ``after_prompt``: the frames after the one that the object is prompted on.
- ``davis``: DAVIS' semi-supervised task, as https://github.com/davisvideochallenge/davis2017-evaluation scores it.
- ``sav``: SA-V's, as ``sav_dataset/sav_evaluator.py`` of https://github.com/facebookresearch/sam2 scores it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Protocol
from ..data.records import RLE, ObjectTrack, VideoRecord

PROTOCOL_DESCRIPTION: dict[Protocol, str] = {
    "after_prompt": "scores are of the frames after that one",
    "davis": "scores are DAVIS' semi-supervised ones: without first and last frame, each pixel one object's",
    "sav": "scores are SA-V's: without first and last annotated frame",
}


def first_frame(video: VideoRecord, object_id: int) -> int:
    """Return the frame that an object is first visible on, which is where it is prompted."""
    track = next(o for o in video.objects if o.object_id == object_id)
    return next(t for t, segmentation in enumerate(track.segmentations) if segmentation is not None)


def first_prompted_frame(video: VideoRecord) -> int:
    """Return the first frame on which an object is prompted; the domain gate decides on it."""
    return min(first_frame(video, obj.object_id) for obj in video.objects)


def one_object_per_pixel(protocol: Protocol) -> bool:
    """Return whether predictions may not overlap: DAVIS scores images of object numbers."""
    return protocol == "davis"


def scored_frames(protocol: Protocol, video: VideoRecord, obj: ObjectTrack, predicted: Sequence[RLE]) -> list[int]:
    """Return the frames on which an object is scored, in order.

    Args:
        protocol: the rule by which frames count.
        video: the object's video.
        obj: the object.
        predicted: its predicted masks, one a frame.

    Returns:
        No frame if the protocol leaves the object out:

        - ``after_prompt``: it is visible on the last annotated frame only.
        - ``davis``: its number is above the largest one on the first annotated frame, where DAVIS counts objects. A
          later object with a number up to that counts from the start: frames on which it is rightly predicted absent
          score 1.
        - ``sav``: it is on none of the frames. Frames before it is first visible or first predicted do not count.
    """
    annotated = [t for t in range(len(video)) if video.is_annotated(t)]
    if protocol == "after_prompt":
        prompted = first_frame(video, obj.object_id)
        return [t for t in annotated if t > prompted]
    inner = annotated[1:-1]
    if not inner:
        return []
    if protocol == "davis":
        counted = max((o.object_id for o in video.objects if o.segmentations[annotated[0]] is not None), default=0)
        return inner if obj.object_id <= counted else []
    if all(obj.segmentations[t] is None for t in inner):
        return []
    begin = next(t for t in inner if obj.segmentations[t] is not None or predicted[t].area())
    return [t for t in inner if t >= begin]
