"""The config that ``train.py --init`` writes: it fits the data, gives its reasons, and trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import Config, NamedSplit, load_config
from src.core.machine import Machine, free_memory, this_machine
from src.data.checks.validate import check
from src.data.copies import picture_of, pictures_of
from src.data.loading import load_split, open_data
from src.data.options import LoadOptions
from src.data.synthetic import CELLS, make_videos
from src.data.writers import write_coco, write_davis
from src.train.init_config import choose_base, write_suggestion
from src.train.trainer import Trainer
from tests.errors import refuses
from tests.writers import write_folder, write_sav, write_tracked_coco, write_ytvis


@pytest.fixture
def suggest(tmp_path, monkeypatch):
    """The config suggested for a folder, with the text of the YAML."""
    monkeypatch.setattr("src.train.init_config.this_machine", lambda: Machine(torch.device("cpu"), "no GPU", 2**33, 2))

    def write(folder: Path) -> tuple[Config, str]:
        output = tmp_path / "mine.yaml"
        write_suggestion(folder, output)
        return load_config(output, [f"output_dir={tmp_path / 'run'}"]), output.read_text(encoding="utf-8")

    return write


def videos_in(config: Config, split: str) -> list[str]:
    return [
        video.video_id for video in load_split(config.dataset.domains[0], split, LoadOptions.from_config(config)).videos
    ]  # type: ignore[arg-type]


def test_roboflow_folders_are_taken_as_they_are(suggest, tiny_data):
    config, text = suggest(tiny_data)
    assert (len(videos_in(config, "train")), len(videos_in(config, "valid"))) == (5, 2)
    assert config.dataset.domains[0].test is None
    assert config.dataset.domains[0].format == "coco"
    assert "stills become clips" in text
    assert "recognised by the files: 5 images, " in text and "; ytvis reads the pictures as frames of videos" in text
    assert "5 images" in text and "no GPU" in text


def test_every_changed_value_has_a_reason(suggest, tiny_data):
    _, text = suggest(tiny_data)
    lines = text.splitlines()
    for key in ("image_size", "batch_size", "frames", "max_objects", "num_workers", "max_epochs", "output_dir"):
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        assert "#" in lines[at] or lines[at - 1].strip().startswith("#"), key


def test_the_bundled_base_trains_on_the_prompts_it_is_scored_by(suggest, tiny_data):
    config, text = suggest(tiny_data)
    assert (config.training.prompts.mask, config.training.prompts.box, config.training.prompts.point) == (1, 0, 0)
    assert "as evaluation.prompt" in text


def test_it_trains(suggest, tiny_data, tmp_path):
    _, _ = suggest(tiny_data)
    quick = ["model.image_size=64", "training.max_steps=1", "training.device=cpu", "training.domain_gate=false"]
    quick += ["training.batch_size=1", "training.num_workers=0", "training.monitor_clips=0", "evaluation.frames=2"]
    assert Trainer.from_config(load_config(tmp_path / "mine.yaml", [f"output_dir={tmp_path / 'run'}", *quick])).fit()


def test_a_single_set_is_divided(suggest, tmp_path):
    write_coco(tmp_path / "all", make_videos(CELLS, 20, 0, frames=1, side=64))
    config, text = suggest(tmp_path / "all")
    train, valid = videos_in(config, "train"), videos_in(config, "valid")
    assert (len(train), len(valid)) == (17, 3)
    assert not set(train) & set(valid)
    assert "the last 3 of 20, held out of training" in text
    assert config.dataset.domains[0].train.videos == str(tmp_path / "mine_train.txt")


def test_training_without_validation_gives_some_away_but_keeps_the_test_split(suggest, tmp_path):
    for name, count in (("train", 8), ("test", 2)):
        write_coco(tmp_path / "data" / name, make_videos(CELLS, count, 0, frames=1, side=64))
    config, _ = suggest(tmp_path / "data")
    assert [len(videos_in(config, split)) for split in ("train", "valid", "test")] == [7, 1, 2]


def test_davis_lists_of_videos(suggest, tmp_path):
    data = make_videos(CELLS, 3, 0, frames=6, side=64)
    write_davis(tmp_path / "davis", data)
    lists = tmp_path / "davis" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    names = [video.video_id for video in data.videos]
    (lists / "train.txt").write_text("\n".join(names[:2]))
    (lists / "val.txt").write_text(names[2])
    config, text = suggest(tmp_path / "davis")
    assert (videos_in(config, "train"), videos_in(config, "valid")) == (names[:2], names[2:])
    assert config.dataset.clip.frames == 4
    assert "videos have 6 frames" in text
    assert "recognised by the files: 2 videos of 6 frames, " in text


def test_one_video_is_validated_on_with_a_warning(suggest, tmp_path):
    write_davis(tmp_path / "one", make_videos(CELLS, 1, 0, frames=3, side=64))
    config, text = suggest(tmp_path / "one")
    assert config.dataset.clip.frames == 3
    assert "scores say nothing of other videos" in text


def test_damaged_entries_are_left_out(suggest, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    next((tmp_path / "data" / "train").glob("*.jpg")).write_bytes(b"")
    config, text = suggest(tmp_path / "data")
    assert config.dataset.skip_bad
    assert "1 error in 1 of 7 images or videos" in text
    assert len(videos_in(config, "train")) == 4


def damage_coco(folder: Path) -> str:
    annotations = folder / "_annotations.coco.json"
    content = json.loads(annotations.read_text())
    name = content["images"][1]["file_name"]
    (folder / name).unlink()
    annotations.write_text(json.dumps(content))
    return name


def damage_part_of_coco(folder: Path) -> str:
    annotations = folder / "_annotations.coco.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["segmentation"] = {"size": [1, 1], "counts": [1]}
    annotations.write_text(json.dumps(content))
    return content["images"][0]["file_name"]


def damage_ytvis(folder: Path) -> str:
    annotations = folder / "instances.json"
    content = json.loads(annotations.read_text())
    video = next(video for video in content["videos"] if video["id"] == content["annotations"][0]["video_id"])
    content["annotations"][0]["segmentations"].pop()
    annotations.write_text(json.dumps(content))
    return Path(video["file_names"][0]).parent.as_posix()


def damage_davis(folder: Path) -> str:
    path = min((folder / "Annotations").rglob("*.png"))
    path.write_bytes(b"")
    return path.parent.name


def damage_folder(folder: Path) -> str:
    path = min((folder / "masks").glob("*.png"))
    path.write_bytes(b"")
    return path.stem


def damage_sav(folder: Path) -> str:
    path = min(folder.rglob("*.mp4"))
    path.write_bytes(b"")
    return path.stem


@pytest.mark.parametrize(
    ("write", "damage", "frames"),
    [
        (write_coco, damage_coco, 1),
        (write_coco, damage_part_of_coco, 1),
        (write_folder, damage_folder, 1),
        (write_ytvis, damage_ytvis, 4),
        (write_davis, damage_davis, 4),
        (write_sav, damage_sav, 5),
    ],
)
def test_damage_is_named_and_stays_in_the_lists_of_a_divided_set(suggest, tmp_path, caplog, write, damage, frames):
    write(tmp_path / "all", make_videos(CELLS, 4, 0, frames=frames, side=64))
    name = damage(tmp_path / "all")
    config, text = suggest(tmp_path / "all")
    domain = config.dataset.domains[0]
    listed = [*domain.train.videos, *domain.val.videos]
    assert name in listed and len(set(listed)) == 4
    assert config.dataset.skip_bad
    assert "in 1 of 4 images or videos" in text and "in 1 of 4 images or videos" in caplog.text
    options = LoadOptions.from_config(config)
    errors = [
        issue for split in ("train", "valid") for issue in check(open_data(domain.split(split), options), 0).errors
    ]
    assert errors and str(errors[0]) in text


@pytest.mark.parametrize("case", ["flat_polygons", "missing_files"])
def test_half_of_the_images_of_a_case_are_damaged(suggest, shared_case, case):
    config, text = suggest(shared_case(f"01_init_hides_damage/{case}"))
    domain = config.dataset.domains[0]
    assert len([*domain.train.videos, *domain.val.videos]) == 8
    assert config.dataset.skip_bad and "in 4 of 8 images or videos" in text


def test_a_set_whose_sampled_images_are_all_damaged_is_looked_at_further(suggest, tmp_path):
    write_coco(tmp_path / "all", make_videos(CELLS, 9, 0, frames=1, side=64))
    for number in (0, 3, 6):
        (tmp_path / "all" / f"cells_{number:05d}.jpg").unlink()
    config, text = suggest(tmp_path / "all")
    assert "3 errors in 3 of 9" in text and len(videos_in(config, "train")) == 5


def test_categories_that_look_like_void_are_ignored(suggest, tmp_path):
    write_coco(tmp_path / "all", make_videos(CELLS, 4, 0, frames=1, side=64))
    annotations = tmp_path / "all" / "_annotations.coco.json"
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 99, "name": "Don't care"})
    content["annotations"][0]["category_id"] = 99
    annotations.write_text(json.dumps(content))
    config, text = suggest(tmp_path / "all")
    assert config.dataset.domains[0].ignore_categories == ["Don't care"] and "void by their names" in text
    train = load_split(config.dataset.domains[0], "train", LoadOptions.from_config(config))
    assert [bool(video.void) for video in train.videos] == [True, False, False]


def copied(folder: Path, copies: dict[str, int]) -> None:
    """A COCO folder with so many of Roboflow's copies of each picture, interleaved."""
    write_coco(folder, make_videos(CELLS, sum(copies.values()), 0, frames=1, side=64))
    annotations = folder / "_annotations.coco.json"
    content = json.loads(annotations.read_text())
    left = [(name, n) for n in range(max(copies.values())) for name, count in copies.items() if n < count]
    for image, (name, n) in zip(content["images"], left, strict=True):
        called = f"{name}_jpg.rf.{n:032x}.jpg"
        (folder / image["file_name"]).rename(folder / called)
        image["file_name"] = called
    annotations.write_text(json.dumps(content))


def test_copies_of_a_picture_stay_on_one_side(suggest, tmp_path):
    copied(tmp_path / "all", {"a": 3, "b": 3, "c": 2})
    config, text = suggest(tmp_path / "all")
    train, valid = config.dataset.domains[0].train.videos, config.dataset.domains[0].val.videos
    assert [{picture_of(name) for name in names} for names in (train, valid)] == [{"a_jpg", "b_jpg"}, {"c_jpg"}]
    assert len(train) + len(valid) == 8 and "there are 3 pictures" in text


def test_a_given_split_that_leaks_is_warned_of(suggest, tmp_path, caplog):
    copied(tmp_path / "data" / "train", {"a": 2, "b": 1})
    copied(tmp_path / "data" / "valid", {"b": 1})
    suggest(tmp_path / "data")
    assert "1 pictures have copies both in train and in valid, such as b_jpg" in caplog.text


def called(folder: Path, names: list[str]) -> None:
    """A COCO folder of stills of these names, each with a picture of its own."""
    write_coco(folder, make_videos(CELLS, len(names), sum(map(ord, folder.name)), frames=1, side=64))
    annotations = folder / "_annotations.coco.json"
    content = json.loads(annotations.read_text())
    for image, name in zip(content["images"], names, strict=True):
        (folder / image["file_name"]).rename(folder / name)
        image["file_name"] = name
    annotations.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("train", "valid", "said"),
    [
        (["frame_01.png", "frame_03.png"], ["frame_02.png", "frame_09.png"], "such as frame_01.png and frame_02.png"),
        (["a_mp4-1_jpg.rf.0123456789.jpg"], ["a_mp4-2_jpg.rf.9876543210.jpg"], "such as a_mp4-1_jpg"),
        (["frame_01.png", "frame_02.png"], ["frame_01.png", "frame_02.png"], None),  # two videos, each from its 1 on
        (["im01.png", "im03.png"], ["im02.png"], None),  # numbers of pictures that nothing calls frames
    ],
)
def test_frames_of_one_video_on_both_sides_are_warned_of(suggest, tmp_path, caplog, train, valid, said):
    called(tmp_path / "data" / "train", train)
    called(tmp_path / "data" / "valid", valid)
    suggest(tmp_path / "data")
    assert (said or "") in caplog.text and ("frames of 1 video" in caplog.text) == (said is not None)


def test_frames_of_a_video_are_held_out_together(suggest, tmp_path, caplog):
    called(tmp_path / "all", [f"{video}_frame_{number}.png" for number in range(3) for video in "abc"])
    config, text = suggest(tmp_path / "all")
    train, valid = config.dataset.domains[0].train.videos, config.dataset.domains[0].val.videos
    assert [{name[0] for name in names} for names in (train, valid)] == [{"a", "b"}, {"c"}]
    assert "there are 3 videos" in text and "warning" not in caplog.text


def test_one_video_on_both_sides_is_said_on_the_screen(suggest, tmp_path, caplog):
    write_davis(tmp_path / "all", make_videos(CELLS, 1, 0, frames=3, side=64))
    suggest(tmp_path / "all")
    assert "there is one video only: it is trained on and validated on" in caplog.text


def test_the_copies_of_a_case_are_split_by_picture(suggest, shared_case):
    config, text = suggest(shared_case("04_roboflow_copies"))
    sides = [
        pictures_of(videos_of(place)) for place in (config.dataset.domains[0].train, config.dataset.domains[0].val)
    ]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 10
    assert "there are 10 pictures" in text


def videos_of(place) -> list[str]:
    return place.videos if isinstance(place.videos, list) else Path(place.videos).read_text().splitlines()


def tracked_without_videos(folder: Path, frames: int) -> None:
    """CVAT's export of a video: an annotation an object and image, track ids among the attributes."""
    write_tracked_coco(folder, make_videos(CELLS, 1, 0, frames=frames, side=64))
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    for image in content["images"]:
        image.pop("video_id")
    for entry in content["annotations"]:
        entry["attributes"] = {"track_id": entry.pop("track_id")}
    content.pop("videos", None)
    path.write_text(json.dumps(content))


def test_pictures_with_track_ids_are_read_as_a_video(suggest, tmp_path):
    tracked_without_videos(tmp_path / "all", 6)
    config, text = suggest(tmp_path / "all")
    domain = config.dataset.domains[0]
    assert domain.format == "ytvis" and "1 video of 6 frames" in text and "coco reads each frame as a picture" in text
    assert domain.train.videos is None and domain.val.videos is None


def test_pictures_with_track_ids_that_are_read_as_stills_are_said_to_be(tmp_path):
    tracked_without_videos(tmp_path / "all", 3)
    place = NamedSplit(name="data", img_folder=str(tmp_path / "all"))
    (issue,) = [i for i in open_data(place, LoadOptions(tmp_path)).issues if i.severity == "note"]
    assert "dataset.format=ytvis" in issue.action


def test_the_tracks_of_a_case_are_one_video(suggest, shared_case):
    config, text = suggest(shared_case("05_cvat_video_tracks"))
    assert "1 video of 12 frames, 2 objects" in text
    (video,) = load_split(config.dataset.domains[0], "train", LoadOptions.from_config(config)).videos
    assert (len(video), len(video.objects)) == (12, 2)


def test_small_objects_ask_for_a_larger_image(suggest, tmp_path):
    data = make_videos(CELLS, 4, 0, frames=1, side=320)
    for video in data.videos:
        for obj in video.objects:  # cut each to a corner of itself
            mask = obj.segmentations[0].decode()
            ys, xs = np.nonzero(mask)
            mask[:] = False
            mask[ys[0] : ys[0] + 12, xs[0] : xs[0] + 12] = True
            object.__setattr__(obj, "segmentations", [type(obj.segmentations[0]).encode(mask)])
    write_coco(tmp_path / "small", data)
    config, text = suggest(tmp_path / "small")
    assert config.model.image_size == 256
    assert "at its own 128" in text


def test_objects_too_small_even_at_a_larger_size_are_told(suggest, tmp_path):
    data = make_videos(CELLS, 4, 0, frames=1, side=320)
    for video in data.videos:
        for obj in video.objects:
            mask = obj.segmentations[0].decode()
            y, x = np.argwhere(mask)[0]
            mask[:] = False
            mask[y : y + 3, x : x + 3] = True
            object.__setattr__(obj, "segmentations", [type(obj.segmentations[0]).encode(mask)])
    write_coco(tmp_path / "tiny", data)
    _, text = suggest(tmp_path / "tiny")
    assert "(at its own 128: 1), which is little: crops of the images" in text


def test_a_linked_folder_keeps_its_own_name_and_paths_stay_relative(suggest, tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_coco(tmp_path / "elsewhere" / split, make_videos(CELLS, 2, 0, frames=1, side=64))
        annotations = tmp_path / "elsewhere" / split / "_annotations.coco.json"
        annotations.rename(tmp_path / "elsewhere" / f"instances_{split}.json")
    (tmp_path / "cells").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    config, _ = suggest(Path("cells"))
    assert config.dataset.domains[0].name == "cells"
    assert config.dataset.domains[0].train.ann_file == "cells/instances_train.json"


def test_what_cannot_be_used_is_said(suggest, tmp_path):
    (tmp_path / "empty").mkdir()
    with refuses("data.not-recognised", str(tmp_path / "empty")):
        suggest(tmp_path / "empty")
    with refuses("data.missing-folder", str(tmp_path / "none")):
        suggest(tmp_path / "none")


def test_an_earlier_file_is_kept(suggest, tiny_data, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    with refuses("init.exists", "mine.yaml"):
        suggest(tiny_data)
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_gpu_gets_the_largest_official_base_that_suits_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    gpu = Machine(torch.device("cuda"), "a GPU", 20 * 2**30, 8)
    assert choose_base(gpu)[0] == "sam2_nano"
    (tmp_path / "checkpoints").mkdir()
    for name in ("tiny", "small", "base_plus"):
        (tmp_path / "checkpoints" / f"sam2.1_hiera_{name}.pt").touch()
    assert choose_base(gpu)[0] == "sam2.1_hiera_small"


def test_the_machine_has_something():
    machine = this_machine("cpu")
    assert machine.cores >= 1
    assert 2**26 < machine.memory <= free_memory() * 1.5


@pytest.mark.parametrize(
    "name", ["coco_cells_rle", "coco_flakes_microscopy", "sav", "vid_puma", "vid_vocalfolds"]
)  # fmt: skip
def test_real_data(suggest, shared_data, name):
    config, _ = suggest(shared_data(name))
    assert videos_in(config, "train") and videos_in(config, "valid")
