"""Image features that are kept: the same run with them and without, the encoder run once a clip, nothing stale used."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import src.data.clips.draw
from src.config import Config
from src.tasks.base import Validation
from src.tasks.tracking.task import TrackingTask
from src.train.callbacks import RunFolder, RunLog, StepLog
from src.train.feature_cache import CACHE_FOLDER
from src.train.setup import build_run
from src.train.trainer import Trainer
from tests.train.steps import read_steps

VIEWS, CLIPS, STEPS = 2, 5, 3
"""Of the runs here; clips and steps an epoch."""

QUICK = (
    f"training.cache_features.views={VIEWS}", "training.max_epochs=3", "dataset.clip.frames=2",
    "dataset.clip.max_objects=1",
)  # fmt: skip
MEMORY, DISK = "training.cache_features.store=memory", "training.cache_features.store=disk"
NO_ROOM = "training.cache_features.budget_gb=0"


def trained(config: Config, resume: str | None = None) -> Trainer:
    """A run that is logged and saved, and not validated."""

    class Unvalidated(Trainer):
        def validate(self, label: str) -> Validation:
            self.state.base_score = 0.0
            return Validation({})

    trainer = Unvalidated(build_run(config, resume), [RunLog(), RunFolder(), StepLog()])
    trainer.fit()
    return trainer


def steps(trainer: Trainer) -> list[dict]:
    return read_steps(trainer.folder)


def said(trainer: Trainer) -> list[str]:
    lines = (trainer.folder / "logs/training.log").read_text().splitlines()
    return [line for line in lines if "cache" in line]


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Frames of each clip that the encoder was run on."""
    calls: list[int] = []
    original = TrackingTask.encode

    def counted(task, model, batch, number):
        calls.append(len(batch.frames_BTHWC[number]))
        return original(task, model, batch, number)

    monkeypatch.setattr(TrackingTask, "encode", counted)
    return calls


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The videos whose frames were read to make a training clip."""
    videos: list[str] = []
    original = src.data.clips.draw.read_pictures

    def counted(video, path_T, size):
        videos.append(video.video_id)
        return original(video, path_T, size)

    monkeypatch.setattr(src.data.clips.draw, "read_pictures", counted)
    return videos


@pytest.fixture
def make(make_config, tmp_path) -> Callable[..., Config]:
    """``make("name", settings…)``: a quick run in a folder of its own."""
    return lambda name, *settings: make_config(*QUICK, f"output_dir={tmp_path / name}", *settings)


def test_losses_are_the_same_with_features_kept_and_without(make, encoded, read):
    def run(name: str, *settings: str) -> tuple[Trainer, int, int]:
        encoded.clear()
        read.clear()
        trainer = trained(make(name, *settings))
        return trainer, len(encoded), len(read)

    without, *often = run("none", MEMORY, NO_ROOM)
    assert often == [3 * CLIPS, 3 * CLIPS]
    assert steps(without)[-1]["total"] > 0
    for where in (MEMORY, DISK):
        kept, *often = run(where, where)
        assert often == [VIEWS * CLIPS, VIEWS * CLIPS], "the third epoch reads and encodes nothing"
        assert steps(kept) == steps(without)
        expected = dict(without.model.named_parameters())
        assert all(torch.equal(p, expected[name]) for name, p in kept.model.named_parameters())
        assert said(kept) == []


def test_with_a_loader_process(make, encoded):
    alone = trained(make("alone", MEMORY))
    encoded.clear()
    others = set(multiprocessing.active_children())
    trainer = trained(make("beside", MEMORY, "training.num_workers=1"))
    assert steps(trainer) == steps(alone)
    assert len(encoded) == VIEWS * CLIPS
    del trainer
    assert set(multiprocessing.active_children()) <= others, "nothing holds the trainer, whose end ends its processes"


@pytest.mark.parametrize(
    "settings",
    [
        ("lora.method=full",),
        ("lora.method=decoder",),
        ("lora.target_modules=[image_encoder.*.attn.qkv, memory_attention.*.q_proj]",),
    ],
    ids=["full", "decoder", "adapters in the encoder"],
)
def test_off_where_features_change_with_training(make, settings):
    run = build_run(make("run", MEMORY, *settings))
    assert run.encoder is None
    (note,) = [note for note in run.notes if "cache" in note]
    assert "training.cache_features is off" in note
    assert run.items.sample_key(VIEWS, 0) == (VIEWS, 0), "without a cache, clips are drawn anew"


def test_over_budget(make, encoded):
    """There is room for three clips."""
    run = build_run(make("run", MEMORY))
    batch = next(iter(run.loader))
    run.encoder(batch)
    size = run.encoder.store.size // len(batch.names)
    encoded.clear()
    limited = trained(make("limited", MEMORY, f"training.cache_features.budget_gb={3.5 * size / 2**30}"))
    assert len(encoded) == 3 * CLIPS - 3
    assert limited.run.encoder.store.size == 3 * size
    (line,) = said(limited)
    assert f"of 3 of {VIEWS * CLIPS} clips" in line
    assert f"take {size * VIEWS * CLIPS / 2**30:.2g}" in line


class TestDisk:
    def files(self, trainer: Trainer) -> set[Path]:
        return set((trainer.folder / CACHE_FOLDER).rglob("*.safetensors"))

    def test_a_resumed_run_reads_what_the_killed_one_wrote(self, make, encoded):
        whole = trained(make("whole", MEMORY))
        encoded.clear()
        killed = trained(make("run", DISK, f"training.max_steps={STEPS + 1}"))
        (half,) = {path.parent for path in self.files(killed)}
        (half / ".9_9.safetensors.1.tmp").write_bytes(b"half a file")
        resumed = trained(make("run", DISK), "auto")
        assert len(encoded) == VIEWS * CLIPS
        assert steps(resumed) == steps(whole)
        assert not list(half.glob("*.tmp"))

    def test_a_damaged_file_is_written_again(self, make, encoded):
        first = trained(make("run", DISK))
        expected = steps(first)
        damaged = sorted(self.files(first))[0]
        damaged.write_bytes(damaged.read_bytes()[:-9])
        encoded.clear()
        again = trained(make("run", DISK))
        assert steps(again) == expected
        assert len([line for line in said(again) if f"{damaged}: damaged" in line]) == 1
        assert len(encoded) == 1

    @pytest.mark.parametrize("change", ["data", "settings", "base"])
    def test_features_of_something_else_are_not_used(self, make, make_config, tiny_data, encoded, change, tmp_path):
        settings = [DISK, f"training.max_steps={STEPS}"]
        if change == "data":
            folder = tmp_path / "data"
            folder.mkdir()
            for path in (tiny_data / "train").iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            settings.append(f"dataset.train_img_folder={folder}")
            settings.append(f"dataset.train_ann_file={folder / '_annotations.coco.json'}")
        before = self.files(trained(make("run", *settings)))
        assert len(before) == CLIPS
        encoded.clear()
        trained(make("run", *settings))
        assert not encoded, "the same run finds all it needs"
        if change == "data":
            image = sorted(folder.glob("*.*g"))[0]
            image.write_bytes(image.read_bytes())  # the same bytes, but nobody has looked at them
        else:
            settings.append("training.seed=1" if change == "base" else "dataset.augmentation.degrees=3")
        after = self.files(trained(make("run", *settings)))
        assert len(encoded) == CLIPS
        assert len(after) == CLIPS
        assert not after & before
