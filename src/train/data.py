"""The training data of a run: its sets, the clips drawn from them, and a picture of what the trainer will see."""

from __future__ import annotations

import math

import numpy as np

from src.config import Config
from src.data.clips import ClipDataset
from src.data.formats import load_split
from src.data.preview import contact_sheet
from src.data.records import DataSet
from src.model.build import image_size_of

CLIPS_PER_EPOCH = 256  # at least, with clips_per_image null: few images still make enough steps


def load_training_sets(config: Config) -> list[DataSet]:
    """The training split of every domain that the run learns. Raises UserError as :func:`load_split`."""
    return [load_split(each, "train", config) for each in config.dataset.sets]


def training_clips(config: Config, sets: list[DataSet]) -> ClipDataset:
    """The clips that a run trains on."""
    images = sum(len(data) for data in sets)
    clips_per_image = config.training.clips_per_image or math.ceil(CLIPS_PER_EPOCH / images)
    length = images * clips_per_image
    return ClipDataset(sets, config.dataset, length, image_size_of(config.model), config.training.seed)


def preview(config: Config, count: int) -> np.ndarray:
    """Some clips as the run will train on them, drawn into one picture: RGB uint8 (H, W, 3).

    Raises:
        UserError: the training data cannot be read.
    """
    return contact_sheet(training_clips(config, load_training_sets(config)), count)
