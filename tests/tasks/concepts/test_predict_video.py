"""Phrases on a video: what SAM 3's video model finds with adapters in its detector, in constant memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from src.cli.predict import build_parser, main
from src.config import Config, LoraConfig, ModelConfig
from src.data.decode.video_writer import VideoWriter
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import save_adapter
from src.lora.injection import apply_method
from tests.errors import refuses

transformers = pytest.importorskip("transformers", "5.24", "SAM 3 needs transformers 5.24")

from src.models.build import build_model  # noqa: E402
from src.models.sam3.nano import nano_tokenizer  # noqa: E402
from src.models.sam3.video import track_phrases  # noqa: E402
from src.tasks.concepts.predict import load_video_model  # noqa: E402
from tests.sam3 import write_whole  # noqa: E402

FRAMES, SIDE, PHRASES = 10, (48, 64), ["crack", "rust"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detector and tracker with random weights, which take nearly everything for an instance."""
    folder = write_whole(tmp_path_factory.mktemp("whole"))
    nano_tokenizer([]).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    content |= {"score_threshold_detection": 0.05, "new_det_thresh": 0.05, "hotstart_delay": 3}
    content |= {"hotstart_unmatch_thresh": 3, "hotstart_dup_thresh": 3}
    content["tracker_config"]["max_object_pointers_in_encoder"] = 4
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lora = LoraConfig(method="lora", rank=2, target_modules=["detr_*_proj"])
    model = build_model(ModelConfig(name="sam3", checkpoint=str(whole)))
    apply_method(model, lora)
    torch.manual_seed(1)
    for _, layer in iter_adapter_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    save_adapter(model, folder := tmp_path_factory.mktemp("adapter"), lora, {})
    return folder


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    still = np.random.default_rng(0).integers(0, 256, (*SIDE, 3), dtype=np.uint8)
    return [np.roll(still, t, axis=1) for t in range(FRAMES)]


def config_of(folder: Path, **model: Any) -> Config:
    content = {"name": "sam3", "checkpoint": str(folder), **model}
    return Config.model_validate({"model": content, "training": {"device": "cpu"}})


def test_it_is_transformers_tracking_and_memories_do_not_grow(
    whole: Path, adapter: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_video_model(config_of(whole), str(adapter))
    sessions = []
    forward = type(model).forward

    def watched(self: Any, inference_session: Any, *more: Any, **named: Any) -> Any:
        sessions.append(inference_session)
        return forward(self, inference_session, *more, **named)

    monkeypatch.setattr(type(model), "forward", watched)
    found = list(track_phrases(model, frames, PHRASES))
    assert [each.prediction.frame for each in found] == [*range(FRAMES)]
    assert all(np.array_equal(each.frame_HWC, frame) for each, frame in zip(found, frames, strict=True))
    kept = [len(each["non_cond_frame_outputs"]) for each in sessions[-1].output_dict_per_obj.values()]
    assert kept and max(kept) < FRAMES - 1 and not sessions[-1].processed_frames._held

    monkeypatch.setattr("src.models.sam3.video._forget", lambda session, before: None)
    everything = list(track_phrases(model, frames, PHRASES))
    assert max(len(each["non_cond_frame_outputs"]) for each in sessions[-1].output_dict_per_obj.values()) > max(kept)
    assert any(each.prediction.masks for each in found)
    for one, other in zip(found, everything, strict=True):
        assert one.phrases == other.phrases and one.prediction.scores == other.prediction.scores
        assert all(torch.equal(mask, other.prediction.logits[n]) for n, mask in one.prediction.logits.items())
    base = list(track_phrases(load_video_model(config_of(whole), None), frames[:2], PHRASES))
    assert base[0].prediction.scores != found[0].prediction.scores, "adapters act"


def test_the_command_writes_masks_categories_and_track_ids(
    whole: Path, adapter: Path, frames: list[np.ndarray], tmp_path: Path, capsys: Any, sam3_folder: Path
) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 8) as writer:
        for frame in frames:
            writer.write(frame)

    def run(config: Config, *words: str) -> None:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        common = ["--config", str(tmp_path / "run.yaml"), "--input", str(tmp_path / "clip.mp4")]
        main(build_parser().parse_args([*common, "--output", str(tmp_path / "out"), "--phrase", "rust", *words]))

    run(config_of(whole), "--phrase", "crack", "--checkpoint", str(adapter), "--frames", "2:8")
    content = json.loads((tmp_path / "out/clip.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "rust"}, {"id": 2, "name": "crack"}]
    assert len(content["images"]) == 6
    assert content["annotations"] and all(0 < each["score"] <= 1 for each in content["annotations"])
    assert len({each["track_id"] for each in content["annotations"]}) > 1
    assert (tmp_path / "out/clip.mp4").is_file() and len([*(tmp_path / "out/Annotations/clip").iterdir()]) == 6
    assert "found in 6 frames" in capsys.readouterr().out
    with refuses("predict.no-tracker", str(sam3_folder), "facebook/sam3"):
        run(config_of(sam3_folder, name="sam3_nano"))
    with refuses("predict.not-with-phrases", "--box"):
        run(config_of(whole), "--box", "1,2,3,4")
