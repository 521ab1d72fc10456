"""All that ``tracking`` does, on SAM 3's tracker: the tiny run and the tiny study with names and paths changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from src.config import load_config
from src.data.prompts import Prompt
from src.data.records import ArrayFrame
from src.demo.inputs import DemoInput
from src.demo.models import Models
from src.demo.session import Session
from src.lora.adapter_io import read_adapter, read_adapter_config
from src.models.checkpoint import read_checkpoint
from src.models.sam2.gate_hooks import gate_features, to_pixels
from src.models.sam2.predictors import build_sam2_video_predictor_moe, image_predictor
from src.models.sam2.streaming import StreamingTracker
from src.models.sam2.tracking import as_video_predictor, track_objects
from src.models.spec import spec_of
from src.studies.plan import load_study
from src.studies.rows import run_study
from src.tasks.tracking.track_video import load_tracker
from tests.footage import moving_block
from tests.studies.test_study import SMALL

ROOT = Path(__file__).parents[3]
BOX = Prompt(1, box=(10, 8, 40, 30))

Run = Callable[..., tuple[int, str, str]]


def frames() -> list[np.ndarray]:
    return moving_block(4, 48, 80)


@pytest.fixture(scope="module")
def config_file(tiny_yaml: Path, sam3_tracker_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, of another model: the image size is that of the checkpoint's folder."""
    content = yaml.safe_load(tiny_yaml.read_text(encoding="utf-8"))
    content["model"] = {"name": "sam3_tracker", "checkpoint": sam3_tracker_folder}
    content["dataset"]["name"] = "first"
    path = tmp_path_factory.mktemp("sam3_run") / "run.yaml"
    content["output_dir"] = str(path.parent / "run")
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(config_file: Path) -> Path:
    """The run's folder."""
    return config_file.parent / "run"


@pytest.fixture
def train(run_script: Run, config_file: Path) -> Callable[..., str]:
    def run(*arguments: object, **settings: object) -> str:
        overrides = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        status, shown, errors = run_script(ROOT / "train.py", "--config", config_file, *overrides, *arguments)
        assert status == 0, errors
        return shown

    return run


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoint).weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class TestTraining:
    """Tests of this class run in order: later ones use the run of the first."""

    @pytest.fixture
    def with_features_and_teacher(self, tiny_data: Path) -> dict[str, Any]:
        return {
            "training__cache_features": "{store: memory, views: 1}",
            "training__save_every": "{epochs: 1}",
            "training__distill": f"{{weight: 1.0, folder: {tiny_data / 'train'}, clips: 3, batch_size: 1}}",
        }

    def test_experts_in_memory_attention_learn_with_kept_features_and_distillation(
        self, train, folder, with_features_and_teacher
    ):
        train(**with_features_and_teacher)
        found = weights(folder / "checkpoints" / "best.pt")
        assert {".".join(name.split(".")[:1]) for name in found} == {"memory_attention"}
        assert any(name.endswith("lora_B") and tensor.any() for name, tensor in found.items())
        assert read_adapter_config(folder / "adapter").base_fingerprint
        assert (folder / "adapter" / "domain_gate.safetensors").exists()

    def test_a_resumed_run_goes_on_bit_for_bit(self, train, folder, with_features_and_teacher, tmp_path):
        (first,) = (folder / "checkpoints").glob("epoch_*1.pt")
        train("--resume", first, output_dir=tmp_path / "again", **with_features_and_teacher)
        assert same(weights(folder / "checkpoints/last.pt"), weights(tmp_path / "again/checkpoints/last.pt"))

    def test_a_further_domain_leaves_the_first_as_it_is(self, train, folder, tmp_path):
        train(
            dataset__name="second", training__extend=folder / "adapter", output_dir=tmp_path / "second",
            training__max_steps=1,
        )  # fmt: skip
        assert list(read_adapter_config(tmp_path / "second/adapter").lora) == ["first", "second"]
        before, after = read_adapter(folder / "adapter").weights, read_adapter(tmp_path / "second/adapter").weights
        of_first = {key.replace(".groups.first.", "."): tensor for key, tensor in after.items() if ".first." in key}
        assert same(before, of_first)

    def test_lora_in_the_image_encoder_trains_with_activation_checkpointing(self, train, tmp_path):
        targets = "[image_encoder.backbone.layers.*.attention.q_proj, memory_attention.*.v_proj]"
        for name, checkpointing in (("plain", False), ("recomputed", True)):
            train(
                lora__method="lora", lora__target_modules=targets, training__max_steps=1, output_dir=tmp_path / name,
                training__activation_checkpointing=checkpointing, training__domain_gate=False,
            )  # fmt: skip
        plain, recomputed = (weights(tmp_path / name / "checkpoints/last.pt") for name in ("plain", "recomputed"))
        assert any(
            name.startswith("image_encoder.") and tensor.any() for name, tensor in plain.items() if "lora_B" in name
        )
        assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)

    def test_all_weights_can_be_trained(self, train, tmp_path):
        train(lora__method="full", training__max_steps=1, output_dir=tmp_path / "full")


def test_it_is_evaluated_beside_the_base(run_script, config_file, folder):
    status, shown, errors = run_script(ROOT / "evaluate.py", "--config", config_file)
    assert status == 0, errors
    assert "first" in shown and (folder / "results.json").exists()


def test_it_predicts(run_script, config_file, tmp_path):
    (tmp_path / "walk").mkdir()
    for t, picture in enumerate(frames()):
        Image.fromarray(picture).save(tmp_path / "walk" / f"{t}.png")
    status, shown, errors = run_script(
        "predict", "--config", config_file, "--input", tmp_path / "walk", "--box", "10,8,40,30",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, errors
    assert "of 4 frames" in shown
    content = json.loads((tmp_path / "out/walk.json").read_text())
    assert {annotation["track_id"] for annotation in content["annotations"]} == {1}


def test_the_demo_shows_base_and_adapted_and_where_experts_are_chosen(config_file, folder):
    session = Session(Models(load_config(config_file), str(folder / "adapter")))
    session.open(DemoInput("walk", [ArrayFrame(f, f"frame {t}", f"{t:05d}") for t, f in enumerate(frames())]))
    session.choose_mode("on")
    session.mark("corner of a box", 0, 1, 40, 30)
    session.mark("corner of a box", 0, 1, 10, 8)
    list(session.track())
    picture, _ = session.experts(2, "memory_attention.layers.0.self_attn.q_proj", None)
    assert picture is not None
    session.close()


class TestPredictors:
    @pytest.fixture(scope="class")
    def tracker(self, config_file: Path, folder: Path) -> Any:
        return load_tracker(load_config(config_file), str(folder / "adapter"), "on")

    def test_the_builder_of_sam2_reads_its_yaml(self, tracker, config_file, folder):
        predictor = build_sam2_video_predictor_moe(config_file, device="cpu", adapter=folder / "adapter", gate="on")
        assert spec_of(predictor).name == "sam3_tracker"
        expected = track_objects(as_video_predictor(tracker.predictor), frames(), {0: [BOX]})
        predictor.fill_hole_area = 0
        for (_, _, found), (_, _, logits) in zip(track_objects(predictor, frames(), {0: [BOX]}), expected, strict=True):
            assert torch.equal(found, logits)

    def test_it_loads_frames_as_sam2s_predictor_does(self, tracker, config_file, folder, tmp_path):
        for t, picture in enumerate(frames()):
            Image.fromarray(picture).save(tmp_path / f"{t:05d}.jpg")
        pictures = [np.array(Image.open(tmp_path / f"{t:05d}.jpg")) for t in range(len(frames()))]
        predictor = build_sam2_video_predictor_moe(
            config_file, device="cpu", adapter=folder / "adapter", gate="on", apply_postprocessing=False
        )
        state = predictor.init_state(str(tmp_path))
        predictor.add_new_points_or_box(state, 0, 1, box=BOX.box)
        expected = [logits for _, _, logits in track_objects(predictor, pictures, {0: [BOX]})]
        found = [logits[:, 0] for _, _, logits in predictor.propagate_in_video(state)]
        assert all(map(torch.equal, found, expected))

    def test_a_stream_gives_the_masks_of_the_video(self, tracker):
        expected = [logits for _, _, logits in track_objects(tracker.predictor, frames(), {0: [BOX]})]
        stream, found = StreamingTracker(tracker.predictor), []
        bank = stream.start(len(frames()))
        for t, frame in enumerate(frames()):
            prediction, bank = stream.step(frame, bank, [] if t else [BOX])
            found.append(prediction.logits[1])
        assert all(torch.equal(one, logits[0]) for one, logits in zip(found, expected, strict=True))

    def test_a_single_image_gets_the_mask_of_a_first_frame(self, tracker):
        """The image predictor resizes with antialiasing, as that of SAM 2 does, and the video predictor otherwise."""
        images, square = image_predictor(tracker.predictor), moving_block(1, 56, 56)[0]
        images.set_image(square)
        _, _, logits = images.predict(box=np.array(BOX.box), multimask_output=False)
        ((_, _, expected),) = track_objects(tracker.predictor, [square], {0: [BOX]})
        low = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (56, 56), mode="bilinear")[0]
        assert torch.allclose(low, expected, atol=1e-5)

    def test_pixels_are_taken_as_sam3_takes_them(self, tracker):
        predictor = tracker.predictor
        pixels = to_pixels(predictor, frames()[0])
        assert pixels.shape == (3, 56, 56)
        images = image_predictor(predictor)
        images.set_image(np.full((56, 56, 3), 255, np.uint8))
        assert torch.equal(images._transforms(np.full((56, 56, 3), 255, np.uint8)), torch.ones(3, 56, 56))
        assert gate_features(predictor, pixels[None]).isfinite().all()


def test_the_study_runs_on_it(sam3_tracker_folder, tmp_path):
    model = {"name": "sam3_tracker", "checkpoint": sam3_tracker_folder}
    content = {
        **SMALL, "run": {**SMALL["run"], "model": model},
        "methods": {"groups": {"sequence": "groups", "distilled": [False]}},
        "domains": ["tissue"], "orders": [["tissue"]], "output_dir": str(tmp_path / "study"),
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run_study(load_study(path))
