"""Clips, the unit of training, and how they are drawn and batched.

Every draw comes from (seed, epoch, clip): data are the same with any number of loader workers, of threads in each, and
after a resume.
"""

from .dataset import ClipDataset, VideoOrder
from .draw import sample_clip, sample_unlabelled
from .evaluation import animate_picture, evaluation_video
from .sampling import BatchSampler, EpochSampler
from .types import Clip, ClipBatch, SampleKey, collate

__all__ = [
    "BatchSampler",
    "Clip",
    "ClipBatch",
    "ClipDataset",
    "EpochSampler",
    "SampleKey",
    "VideoOrder",
    "animate_picture",
    "collate",
    "evaluation_video",
    "sample_clip",
    "sample_unlabelled",
]
