"""Keys of earlier versions and flat names of splits mean what they meant, and become one shape inside."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.config import Config, load_config, parse_config
from src.config.renames import ALIASES, RENAMED
from tests.errors import refuses

CELLS = {"name": "cells", "train_img_folder": "c/train", "val_img_folder": "c/val", "val_ann_file": "c/val.json"}

OLD_TRAINING = {
    "max_epochs": 8, "max_steps": None, "batch_size": 4, "gradient_accumulation_steps": 1, "clips_per_image": None,
    "clips_per_epoch": 192, "learning_rate": 0.002, "min_learning_rate": 0.0, "warmup_steps": 10, "weight_decay": 0.01,
    "max_grad_norm": 1.0, "use_amp": "auto", "amp_dtype": "bfloat16", "activation_checkpointing": False,
    "cache_features": {"where": "disk", "budget_gb": 4.0, "views": 4}, "enable_segmentation": True,
    "prompts": {"mask": 0.5, "box": 0.25, "point": 0.25, "correction_clicks": 1},
    "loss": {"mask": 20.0, "dice": 1.0, "iou": 1.0, "occlusion": 1.0},
    "distill": {"weight": 0.0, "folder": None, "clips": 500, "batch_size": 2, "every": 1, "objects": 2,
                "features_weight": 0.0},
    "penalty": {"kind": "l2sp", "weight": 0.0, "clips": 64, "folders": []}, "start_from": None, "extend": None,
    "adapter_init": "random", "strengths": [1.0, 0.5], "domain_gate": True, "validate_every_epochs": 2,
    "save_every_steps": None, "save_every_minutes": 5.0, "save_every_epochs": 2, "early_stopping_patience": None,
    "on_non_finite": "stop", "max_skips": 10, "overlay_clips": 3, "watch_clips": 2, "num_workers": 1, "device": "auto",
    "seed": 0,
}  # fmt: skip

OLD: dict[str, Any] = {
    "model": {"name": "sam2_nano", "checkpoint": "checkpoints/sam2_nano.safetensors", "image_size": 128},
    "lora": {"method": "mope", "rank": 4, "alpha": 8.0, "experts": 10, "top_k": 2, "dropout": 0.0},
    "dataset": {
        "name": "target", "weight": 2.0, "license": None, "format": "coco",
        "train_img_folder": "a/train", "train_ann_file": "a/train.json", "train_videos": None,
        "val_img_folder": "a/valid", "val_ann_file": None, "val_videos": ["1", "2"],
        "test_img_folder": None, "test_ann_file": None, "test_videos": None,
        "more": [{
            "name": "b", "weight": 1.0, "license": None, "format": "auto",
            "train_img_folder": "b/train", "train_ann_file": None, "train_videos": None,
            "val_img_folder": None, "val_ann_file": None, "val_videos": None,
            "test_img_folder": "b/test", "test_ann_file": None, "test_videos": None,
        }],
        "skip_bad": False, "follow_links": False, "resolution": None, "max_ann_per_img": 200, "min_object_side": 1.0,
    },
    "training": OLD_TRAINING,
    "evaluation": {"prompt": "mask", "source_clips": 24, "overlays": 3, "domains": [
        {"name": "old", "img_folder": "o", "ann_file": "o.json", "format": "auto", "videos": None}]},
    "output_dir": "experiments",
}  # fmt: skip
"""The config of an earlier version, as its checkpoints and its config.yaml hold it."""


@pytest.fixture
def load(tmp_path):
    """``load(content, *overrides)``: a YAML of this content, read."""

    def read(content: dict[str, Any], *overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return load_config(path, list(overrides))

    return read


class TestAConfigOfAnEarlierVersion:
    def test_it_means_what_it_meant(self):
        config = parse_config(OLD, "last.pt (config)")
        first, second = config.dataset.domains
        assert (first.name, first.weight, first.format) == ("target", 2.0, "coco")
        assert (first.train.img_folder, first.train.ann_file, first.train.videos) == ("a/train", "a/train.json", None)
        assert first.val is not None and (first.val.img_folder, first.val.videos) == ("a/valid", ["1", "2"])
        assert first.test is None
        assert second.val is None and second.test is not None and second.test.img_folder == "b/test"
        training = config.training
        assert (training.clips_per_epoch, training.monitor_clips, training.adapter_scales) == (192, 3, [1.0, 0.5])
        assert training.save_every.model_dump() == {"steps": None, "minutes": 5.0, "epochs": 2}
        assert training.cache_features is not None and training.cache_features.store == "disk"
        assert config.evaluation.domains[0].ann_file == "o.json"

    def test_it_stays_as_it_was(self):
        before = repr(OLD)
        parse_config(OLD, "last.pt (config)")
        assert repr(OLD) == before

    def test_the_resolved_config_has_names_of_today_only(self, load, caplog):
        config = load(OLD)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert load(yaml.safe_load(config.to_yaml())) == config
        assert not caplog.records

    def test_each_former_name_is_noted_once(self, load, caplog):
        with caplog.at_level(logging.INFO):
            load(OLD)
        notes = [record.getMessage() for record in caplog.records]
        assert len(notes) == len(RENAMED)
        for old, new in RENAMED.items():
            assert sum(f"{old} is now called {new}" in note for note in notes) == 1

    def test_every_name_of_today_is_in_the_schema(self):
        for new in (*RENAMED.values(), *ALIASES.values()):
            value: Any = parse_config({"training": {"cache_features": {}}}, "test")
            for part in new.split("."):
                assert part in type(value).model_fields
                value = getattr(value, part)


class TestClipsPerEpoch:
    @pytest.mark.parametrize(
        ("training", "length"),
        [
            ({}, 260),
            ({"clips_per_image": 3}, 30),
            ({"clips_per_image": 3, "clips_per_epoch": 7}, 7),
            ({"clips_per_image": 3, "clips_per_epoch": None}, 30),
            ({"clips_per_epoch": "4x"}, 40),
            ({"clips_per_epoch": 11.0}, 11),
        ],
    )
    def test_of_ten_images(self, training, length):
        assert parse_config({"training": training}, "test").training.clips_in_epoch(10) == length

    @pytest.mark.parametrize("value", [0, -1, "x", "0x", "4 x", 2.5, True, [], "many"])
    def test_another_value_is_a_mistake(self, value):
        with refuses("config.mistakes") as caught:
            parse_config({"training": {"clips_per_epoch": value}}, "test")
        assert "training.clips_per_epoch: " in str(caught.value)

    def test_a_mistake_is_named_as_it_was_written(self):
        with refuses("config.mistakes") as caught:
            parse_config({"training": {"clips_per_image": 0}}, "test")
        assert "training.clips_per_image: " in str(caught.value)


class TestResolution:
    def test_is_the_models_image_size(self, load):
        assert load({"dataset": {"resolution": 256}}).model.image_size == 256
        assert load({"model": {"image_size": 64}, "dataset": {"resolution": None}}).model.image_size == 64
        assert load({"model": {"image_size": 64}}, "dataset.resolution=128").model.image_size == 128

    def test_two_sizes_are_refused(self, load):
        with refuses("config.two-values") as caught:
            load({"model": {"image_size": 64}, "dataset": {"resolution": 128}})
        assert "model.image_size" in str(caught.value) and "dataset.resolution" in str(caught.value)


class TestDomains:
    def test_flat_and_nested_are_the_same(self):
        nested = {"name": "cells", "train": {"img_folder": "c/train"},
                  "val": {"img_folder": "c/val", "ann_file": "c/val.json"}}  # fmt: skip
        flat = parse_config({"dataset": CELLS}, "test")
        assert flat == parse_config({"dataset": {"domains": [nested]}}, "test")
        assert flat == parse_config({"dataset": {"domains": [CELLS]}}, "test")

    def test_without_any_it_is_the_sample_data(self):
        [domain] = parse_config({"dataset": {"skip_bad": True}}, "test").dataset.domains
        assert domain.name == "target" and domain.train.img_folder == "data/sample/train"
        assert domain.split("valid") is not None and domain.split("test") is None
        first, second = parse_config({"dataset": {"more": [CELLS]}}, "test").dataset.domains
        assert (first.name, second.name) == ("target", "cells")

    def test_a_split_has_the_domains_name_and_format(self):
        [domain] = parse_config({"dataset": {**CELLS, "format": "coco"}}, "test").dataset.domains
        split = domain.split("valid")
        assert split is not None and (split.name, split.format, split.ann_file) == ("cells", "coco", "c/val.json")

    def test_annotations_without_images_are_no_split(self):
        [domain] = parse_config({"dataset": {**CELLS, "test_ann_file": "t.json"}}, "test").dataset.domains
        assert domain.test is None

    def test_set_changes_the_first_of_a_resolved_config(self, load):
        resolved = yaml.safe_load(load({"dataset": {**CELLS, "more": [{**CELLS, "name": "b"}]}}).to_yaml())
        config = load(
            resolved, "dataset.val_img_folder=null", "dataset.train_img_folder=new", "dataset.train_ann_file=n.json",
            "dataset.test_ann_file=t.json", "dataset.test_img_folder=t", "dataset.domains.1.weight=3", "dataset.name=z",
        )  # fmt: skip
        first, second = config.dataset.domains
        assert (first.name, first.train.img_folder, first.train.ann_file) == ("z", "new", "n.json")
        assert first.val is None and first.test is not None and first.test.img_folder == "t"
        assert (second.name, second.weight, second.train.img_folder) == ("b", 3.0, "c/train")

    def test_set_more_replaces_the_further_ones(self, load):
        resolved = yaml.safe_load(load({"dataset": {**CELLS, "more": [{**CELLS, "name": "b"}]}}).to_yaml())
        config = load(resolved, "dataset.more=[{name: d, train_img_folder: d}, {name: e, train_img_folder: e}]")
        assert [domain.name for domain in config.dataset.domains] == ["cells", "d", "e"]
        assert [domain.name for domain in load(resolved, "dataset.more=[]").dataset.domains] == ["cells"]

    @pytest.mark.parametrize(
        ("dataset", "mistake"),
        [
            ({"name": "a/b"}, "dataset.name: "),
            ({"train_img_folder": 3}, "dataset.train_img_folder: "),
            ({"more": [{"name": "b", "train_img_folder": 3}]}, "dataset.more.0.train_img_folder: "),
            ({"more": [{"name": "b"}]}, "dataset.more.0.train: field required"),
            ({"more": 3}, "dataset.more: input should be a valid list"),
            ({"more": [3]}, "dataset.more.0: "),
            ({"domains": []}, "dataset.domains: "),
            ({"domains": [{"name": "b", "train": {"ann_file": "x"}}]}, "dataset.domains.0.train.img_folder: "),
            ({"train_img_foldr": "x"}, "dataset.train_img_foldr: unknown key; did you mean 'train_img_folder'?"),
            ({"mor": []}, "dataset.mor: unknown key; did you mean 'more'?"),
            (
                {"domains": [{**CELLS, "test_img_foldr": "x"}]},
                "dataset.domains.0.test_img_foldr: unknown key; did you mean 'test_img_folder'?",
            ),
        ],
    )
    def test_a_mistake_is_named_as_it_was_written(self, dataset, mistake):
        with refuses("config.mistakes") as caught:
            parse_config({"dataset": dataset}, "test")
        assert f"  {mistake}" in str(caught.value)


def test_an_unknown_key_may_be_near_a_former_name():
    with refuses("config.mistakes") as caught:
        parse_config({"training": {"strenghts": [1.0]}}, "test")
    facts = "training.strenghts", "'strengths'", "training.adapter_scales"
    assert all(fact in str(caught.value) for fact in facts)


def test_two_names_of_one_key_must_agree():
    with refuses("config.two-values") as caught:
        parse_config({"training": {"strengths": [0.5], "adapter_scales": [0.8]}}, "test")
    assert "training.adapter_scales" in str(caught.value) and "training.strengths" in str(caught.value)


@pytest.mark.parametrize("old", ["watch_clips", "overlay_clips"])
def test_clips_to_monitor_must_agree_with_their_older_names(old):
    with refuses("config.two-values", "training.monitor_clips", f"training.{old}"):
        parse_config({"training": {old: 2, "monitor_clips": 3}}, "test")
    assert parse_config({"training": {old: 3, "monitor_clips": 3}}, "test").training.monitor_clips == 3


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.strengths=[0.5]", lambda training: training.adapter_scales == [0.5]),
        ("training.save_every_steps=7", lambda training: training.save_every.steps == 7),
        ("training.save_every.steps=7", lambda training: training.save_every.steps == 7),
        ("training.watch_clips=0", lambda training: training.monitor_clips == 0),
        ("training.clips_per_image=3", lambda training: training.clips_per_epoch == "3x"),
        ("training.clips_per_image=null", lambda training: training.clips_per_epoch is None),
        ("training={strengths: [0.5]}", lambda training: training.adapter_scales == [0.5]),
    ],
)
def test_set_takes_former_names(load, override, read):
    assert read(load({"training": {"clips_per_epoch": 9, "monitor_clips": 5}}, override).training)


def test_aliases_of_yaml_are_told_apart(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: {domains: [{name: a, train: &t {img_folder: x}, val: *t}]}", encoding="utf-8")
    [domain] = load_config(path, ["dataset.val_img_folder=y"]).dataset.domains
    assert domain.val is not None and (domain.train.img_folder, domain.val.img_folder) == ("x", "y")
