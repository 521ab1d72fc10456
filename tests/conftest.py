"""What tests share: a tiny data set of synthetic cells, and runs of the nano model with random weights at 64 pixels."""

from __future__ import annotations

import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings
from safetensors.torch import save_file

from src.cli.main import COMMANDS, main
from src.config import Config, ModelConfig, load_config
from src.core.console import show_messages
from src.data.checks.report import data_set
from src.data.checks.validate import check
from src.data.records import DataSet
from src.data.synthetic import CELLS, make_videos
from src.data.writers import write_coco
from src.models.sam2.build import CONFIGS, build_model
from src.models.spec import model_spec, register_model
from tests.sources import open_coco

settings.register_profile("same examples every time", derandomize=True)
settings.load_profile("same examples every time")

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

SIDE = 64

SHARED_DATA = Path(os.environ.get("SAM2_MOPE_SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))
"""Real data sets, no part of the repository; tests that read them are skipped where they are absent."""


@pytest.fixture(scope="session")
def sam3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a nano SAM 3 with random weights, for ``model: {name: sam3_nano, checkpoint: …}``."""
    pytest.importorskip("transformers", minversion="5.24", reason="SAM 3 is a model of transformers")
    from src.data.concepts.types import VISUAL
    from src.data.synthetic.words import WORDS
    from src.models.sam3.build import save_folder
    from src.models.sam3.nano import nano_tokenizer, new_nano

    folder, tokenizer = tmp_path_factory.mktemp("sam3"), nano_tokenizer([*WORDS.words(), VISUAL])
    save_folder(new_nano(len(tokenizer), bias_steps=10), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("sav")``: the folder of a real data set; skips the test if it is absent."""

    def find(name: str) -> Path:
        if not (SHARED_DATA / name).exists():
            pytest.skip(f"needs the data set {name} in {SHARED_DATA}")
        return SHARED_DATA / name

    return find


@pytest.fixture(scope="session")
def shared_case() -> Callable[[str], Path]:
    """``shared_case("02_degenerate_part")``: a folder of inputs that once failed; skips the test if it is absent."""

    def find(name: str) -> Path:
        folder = SHARED_DATA.parent / "cases" / name
        if not folder.exists():
            pytest.skip(f"needs the case {folder}")
        return folder

    return find


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run_script(script, argument, …)`` in this process: (exit status, standard output, standard error).

    The script is a path, or the name of a sub-command.
    """

    def run(script: str | Path, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            if script in COMMANDS:
                main(str(script))
            else:
                runpy.run_path(str(script), run_name="__main__")
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make the package importable as ``sam2_mope``; its modules are not those of ``src``."""
    folder = tmp_path_factory.mktemp("site_packages")
    (folder / "sam2_mope").symlink_to(Path(__file__).parents[1] / "src", target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(autouse=True)
def messages_are_shown() -> None:
    """What the library logs goes to standard output, whatever an earlier test has said."""
    show_messages()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train`` (5 images) and ``valid`` (2 images), as COCO; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("tiny_data")
    write_coco(folder / "train", make_videos(CELLS, 5, 0, frames=1, side=SIDE))
    write_coco(folder / "valid", make_videos(CELLS, 2, 100, frames=1, side=SIDE))
    return folder


@pytest.fixture(scope="session")
def data_settings(tiny_data: Path) -> list[str]:
    """``--set`` values that put the tiny data set in place of a config's own."""
    return [
        f"dataset.{key}={tiny_data / file}"
        for key, file in {
            "train_img_folder": "train",
            "train_ann_file": "train/_annotations.coco.json",
            "val_img_folder": "valid",
            "val_ann_file": "valid/_annotations.coco.json",
            "test_img_folder": "valid",
            "test_ann_file": "valid/_annotations.coco.json",
        }.items()
    ]


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory, data_settings: list[str]) -> Path:
    """A run that takes a second: set ``output_dir`` before using it."""
    dataset = dict(setting.removeprefix("dataset.").split("=", 1) for setting in data_settings)
    content = {
        "model": {"name": "sam2_nano", "checkpoint": None, "image_size": SIDE},
        "lora": {"method": "mope", "experts": 3, "top_k": 2},
        "dataset": {**dataset, "clip": {"frames": 3, "max_objects": 2}},
        "training": {
            "max_epochs": 2, "batch_size": 2, "warmup_steps": 1, "num_workers": 0, "monitor_clips": 0, "device": "cpu",
            "clips_per_epoch": "1x",
        },
        "evaluation": {"frames": 3, "max_objects": 2, "source_clips": 1, "overlays": 1},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("tiny_yaml") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def make_config(tiny_yaml: Path, tmp_path: Path) -> Callable[..., Config]:
    """``make_config("lora.rank=2", …)``: the tiny run with some values set, writing into ``tmp_path / "run"``."""

    def make(*settings: str) -> Config:
        return load_config(tiny_yaml, [f"output_dir={tmp_path / 'run'}", *settings])

    return make


@pytest.fixture(scope="module")
def nano_for_transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    """For a module's tests ``sam2_nano`` is twice as wide behind its trunk; its weights are in a file.

    Its memories then have 64 channels, the only number that transformers knows.

    No weight is zero or one, so that none can stand for another, and objects are judged present, so that masks vary.
    """
    nano, folder = model_spec("sam2_nano"), tmp_path_factory.mktemp("nano")
    trunk, neck, rest = (CONFIGS / "sam2_nano.yaml").read_text(encoding="utf-8").partition("    neck:\n")
    wider = trunk + neck + re.sub(r"\b(32|64)\b", lambda found: str(2 * int(found[0])), rest)
    wider = wider.replace("[256, 128, 128, 64]", "[256, 128, 64, 32]")  # what the trunk gives stays as it is
    (folder / "wider.yaml").write_text(wider, encoding="utf-8")
    register_model(replace(nano, details={**nano.details, "differences": str(folder / "wider.yaml")}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build_model(ModelConfig(image_size=SIDE)).state_dict()
        for tensor in weights.values():
            tensor += 0.05 * torch.randn_like(tensor)
        weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += 10
        save_file(weights, folder / "base.safetensors")
    yield ModelConfig(checkpoint=str(folder / "base.safetensors"), image_size=SIDE)
    register_model(nano)


@pytest.fixture(scope="session")
def sam3_tracker_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of transformers with a tiny SAM 3 tracker of random weights, for frames of 56 pixels."""
    pytest.importorskip("transformers", "5.24")
    from tests.sam3 import write_tiny

    return str(write_tiny(tmp_path_factory.mktemp("sam3")))


@pytest.fixture(scope="session")
def load_coco() -> Callable[..., DataSet]:
    """``load_coco(img_folder, ann_file, …)``: a COCO set, checked; a UserError where it is damaged."""

    def load(*arguments: Any, **options: Any) -> DataSet:
        source = open_coco(*arguments, **options)
        return data_set(source, check(source, workers=0))

    return load
