"""Every format to the same records: recognises what a data set is, and loads it."""

from __future__ import annotations

from src.config import Config, DomainConfig
from src.data.coco import open_coco
from src.data.records import DataSet, Source
from src.data.validate import load_checked
from src.errors import UserError


def open_source(place: DomainConfig, max_ann_per_img: int) -> Source:
    """Index a data set, parsing nothing of its videos yet.

    Args:
        place: where it lies.
        max_ann_per_img: objects kept per image or video, the largest by mask area.

    Raises:
        UserError: it cannot be read, or is of no format that is known.
    """
    if place.ann_file is None:
        raise UserError(f"{place.img_folder}: name its annotation file")
    if isinstance(place.videos, str):
        raise UserError(f"{place.videos}: list the names of the videos themselves")
    return open_coco(place.img_folder, place.ann_file, place.name, max_ann_per_img, place.videos)


def load_data(place: DomainConfig, config: Config) -> DataSet:
    """The videos and images of a data set of a run, once all of it has been checked.

    Raises:
        UserError: it cannot be read, holds nothing usable, or is damaged (unless ``dataset.skip_bad``).
    """
    source = open_source(place, config.dataset.max_ann_per_img)
    return load_checked(source, place, config)
