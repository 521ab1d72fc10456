"""Every format to the same records: recognises what a data set is, and loads it."""

from __future__ import annotations

from src.config import DatasetConfig, DomainConfig
from src.data.coco import load_coco
from src.data.records import DataSet
from src.errors import UserError


def load_data(place: DomainConfig, settings: DatasetConfig) -> DataSet:
    """The videos and images of a data set.

    Args:
        place: where it lies.
        settings: ``max_ann_per_img``.

    Raises:
        UserError: it cannot be read, holds nothing usable, or is damaged.
    """
    if place.ann_file is None:
        raise UserError(f"{place.img_folder}: name its annotation file")
    return load_coco(place.img_folder, place.ann_file, place.name, settings.max_ann_per_img)
