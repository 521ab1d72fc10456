"""A run's training data: one construction for the trainer and for the preview."""

from __future__ import annotations

import numpy as np

from src.data.clips.preview import contact_sheet
from src.tasks.tracking.data import load_training_sets, preview, training_clips
from src.train.setup import build_run
from tests.errors import refuses


def more(tiny_data, weight: float = 3.0) -> str:
    """A second set: the two validation images."""
    valid = f"{tiny_data}/valid"
    place = f"{{train_img_folder: {valid}, train_ann_file: {valid}/_annotations.coco.json, val_img_folder: {valid}, "
    return f"dataset.more=[{place} val_ann_file: {valid}/_annotations.coco.json, name: other, weight: {weight}}}]"


def test_an_epoch_is_as_long_as_all_sets_together(make_config, tiny_data):
    config = make_config(more(tiny_data), "training.clips_per_epoch=4x")
    sets = load_training_sets(config)
    assert [(data.name, len(data)) for data in sets] == [("target", 5), ("other", 2)]
    assert training_clips(config, sets).shares == [7, 21]
    config = make_config(more(tiny_data), "training.clips_per_epoch=null")
    assert 256 <= len(training_clips(config, sets)) < 256 + 7


def test_the_preview_shows_what_the_trainer_trains_on(make_config, tiny_data):
    config = make_config(more(tiny_data))
    assert np.array_equal(preview(config, 3), contact_sheet(build_run(config).items, 3))


def test_a_set_without_a_training_split_is_told(make_config):
    with refuses("data.missing-folder", "nowhere"):
        load_training_sets(make_config("dataset.train_img_folder=nowhere", "dataset.train_ann_file=nowhere/x.json"))
