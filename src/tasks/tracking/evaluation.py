"""Evaluation of tracking: prompt every object once, track it, and score it as the domain's protocol says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from ...config import Prompt, Protocol
from ...core.console import progress_bar
from ...core.distributed import ALL, Shard
from ...core.errors import UserError
from ...data.records import RLE, ObjectTrack, VideoRecord
from ...evaluation.domains import Domain
from ...evaluation.metrics import ObjectScores, aggregate, score_object
from ...evaluation.predictions import refuse_overlap, write_masks, write_truth
from ...evaluation.protocol import PROTOCOL_DESCRIPTION, one_object_per_pixel, scored_frames
from ...evaluation.results import DomainResult, VideoResult
from ...models.protocols import AfterFrame
from .predict import predicting, track

TRUTH = "truth"
"""Folder of true masks beside those of models."""


def evaluate_domain(
    model: nn.Module,
    domain: Domain,
    prompt: Prompt,
    label: str = "",
    masks: Path | None = None,
    after_frame: AfterFrame | None = None,
    clips: int | None = None,
    shard: Shard = ALL,
) -> DomainResult:
    """Prompt every object of a domain where it first appears, track it, and score it as the domain's protocol says.

    Args:
        model: the model, with or without adapters.
        domain: the data to score it on.
        prompt: how objects are prompted.
        label: text of the progress bar; the domain's name if empty.
        masks: ``MODEL/DOMAIN`` in the folder of predictions, to save the predicted masks in; None: they are not saved.
            ``sav`` also saves true masks as its tool reads them, in ``truth/DOMAIN``.
        after_frame: as of :func:`~src.tasks.tracking.predict.track`.
        clips: number of scored videos to stop after; None: all of them.
        shard: the videos that this process takes, where several processes score the same domain.

    Returns:
        The scores of all videos, and their results, which only the first process has of all videos.

    Raises:
        UserError: there is nothing to score, a frame cannot be read, or the data do not suit the protocol.
    """
    exclusive = one_object_per_pixel(domain.protocol)
    own: list[tuple[int, VideoResult]] = []
    videos, count = domain.numbered(shard.rank, shard.size), len(range(shard.rank, len(domain.data), shard.size))
    with predicting(model) as predictor:
        total = min(count, clips or count)
        for number, video in progress_bar(videos, total=total, desc=label or domain.name, leave=False):
            if exclusive:
                refuse_overlap(video)
            predicted = track(predictor, video, prompt, exclusive, after_frame)
            scores = {
                obj.object_id: score_track(video, obj, predicted[obj.object_id], frames)
                for obj in video.objects
                if (frames := scored_frames(domain.protocol, video, obj, predicted[obj.object_id]))
            }
            if masks is not None:  # DAVIS' own tool refuses objects that it does not count
                saved = {number: predicted[number] for number in scores} if exclusive else predicted
                write_masks(masks, video, saved, exclusive)
                if domain.protocol == "sav":
                    write_truth(masks.parents[1] / TRUTH / masks.name, video)
            own.append((number, VideoResult(video.video_id, predicted, scores, _original_ids(video))))
            if clips is not None and sum(bool(result.scores) for _, result in own) == clips:
                break
    results = [result for _, result in sorted(shard.collect(own), key=lambda numbered: numbered[0])]
    counted = [scores for video in results for scores in video.scores.values()]
    if not counted and shard.rank == 0:
        raise UserError(
            f"{domain.name}: no object can be scored: none is on a frame that counts by evaluation.protocol "
            f"{domain.protocol}",
            code="evaluation.nothing-to-score",
        )
    return DomainResult(shard.broadcast(aggregate(counted)), results)


def _original_ids(video: VideoRecord) -> dict[int, int | str | None]:
    return {obj.object_id: obj.original_id for obj in video.objects}


def score_track(video: VideoRecord, obj: ObjectTrack, predicted: list[RLE], frames: list[int]) -> ObjectScores:
    """Score an object's predicted masks, one a frame of the video, on some of its frames."""

    def decoded(t: int) -> np.ndarray | None:
        segmentation = obj.segmentations[t]
        return None if segmentation is None else segmentation.decode()

    return score_object(
        [predicted[t].decode() for t in frames],
        [decoded(t) for t in frames],
        [video.void[t].decode() if t in video.void else None for t in frames],
    )


def describe(model: str, image_size: int, prompt: Prompt, protocol: Protocol) -> str:
    """Return one line that says what the scores mean."""
    return (
        f"{model} at {image_size} px; each object is prompted once by its true {prompt} on the first frame that "
        f"shows it and tracked; {PROTOCOL_DESCRIPTION[protocol]}"
    )
