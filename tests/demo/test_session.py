"""A session without a page: prompts, masks, the gate's decision, experts, files, and its refusals."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.config import Config, LoraConfig, load_config
from src.data.decode.video import open_stream
from src.data.decode.video_writer import VideoWriter
from src.data.prompts import Prompt
from src.data.records import ArrayFrame
from src.demo.inputs import DemoInput, StillMotion, find_samples, open_input
from src.demo.models import Models
from src.demo.session import Session
from src.gating.fit import fit_gate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import save_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from src.tasks.tracking.track_video import load_tracker, write_prediction
from tests.errors import refuses
from tests.footage import moving_block

HEIGHT, WIDTH, FRAMES = 48, 80, 4
MEMORY, ENCODER = "memory_attention.layers.0.self_attn.q_proj", "image_encoder.trunk.blocks.0.attn.qkv"


def frames() -> list[np.ndarray]:
    return moving_block(FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def config(tiny_yaml) -> Config:
    return load_config(tiny_yaml)


def adapter_of(config: Config, folder: Path, lora: LoraConfig, gate: bool) -> str:
    torch.manual_seed(config.training.seed)
    model = build_model(config.model)
    apply_method(model, lora)
    for _, adapter in iter_adapter_layers(model):
        torch.nn.init.normal_(adapter.lora_B)
    save_adapter(model, folder, lora, {})
    if gate:
        noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
        fit_gate(model, "noise", noise).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(config, tmp_path_factory) -> str:
    lora = LoraConfig(experts=3, top_k=2, target_modules=["memory_attention.*.q_proj", "memory_attention.*.k_proj"])
    return adapter_of(config, tmp_path_factory.mktemp("gated") / "adapter", lora, gate=True)


@pytest.fixture(scope="module")
def models(config, adapter) -> Models:
    return Models(config, adapter)


@pytest.fixture
def session(models):
    session = Session(models)
    session.open(DemoInput("walk", [ArrayFrame(f, f"frame {t}", f"{t:05d}") for t, f in enumerate(frames())]))
    yield session
    session.close()


def boxed(session: Session) -> Session:
    session.mark("corner of a box", 0, 1, 40, 30)
    session.mark("corner of a box", 0, 1, 10, 8)
    return session


def changed(view) -> bool:
    return not np.array_equal(view.base, view.adapted)


class TestPrompts:
    def test_clicks_and_corners_become_prompts(self, session):
        session.mark("on it", 0, 1, 25, 20)
        session.mark("beside it", 0, 1, 70, 5)
        session.mark("corner of a box", 2, 3, 60, 40)
        assert session.prompts() == {0: [Prompt(1, ((25, 20), (70, 5)), (1, 0))]}, "one corner is no box yet"
        session.mark("corner of a box", 2, 3, 20, 10)
        assert session.prompts()[2] == [Prompt(3, box=(20, 10, 60, 40))]
        session.undo()
        assert list(session.prompts()) == [0]
        session.clear()
        assert session.prompts() == {}

    def test_a_further_pair_of_corners_replaces_the_box(self, session):
        boxed(session).mark("corner of a box", 0, 1, 0, 0)
        assert session.prompts()[0][0].box == (10, 8, 40, 30)
        session.mark("corner of a box", 0, 1, 5, 6)
        assert session.prompts()[0][0].box == (0, 0, 5, 6)

    def test_prompts_and_a_lone_corner_are_drawn(self, session):
        plain = session.view(0).prompted
        session.mark("corner of a box", 0, 1, 40, 30)
        lone = session.view(0).prompted
        assert not np.array_equal(plain, lone)
        session.mark("corner of a box", 0, 1, 10, 8)
        assert not np.array_equal(lone, session.view(0).prompted)
        assert np.array_equal(session.view(1).prompted, frames()[1])


def test_a_picture_shown_again_is_not_written_again(session):
    picture = frames()[0]
    path = session.picture_file(picture)
    written = path.stat()
    assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert session.picture_file(picture.copy()) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert session.picture_file(picture[::-1]) != path


class TestMasks:
    def test_on_the_prompted_frame_memory_adapters_change_nothing(self, session):
        session.choose_mode("on")
        view = boxed(session).view(0)
        assert not np.array_equal(view.base, frames()[0]), "a mask is drawn"
        assert not changed(view)
        assert "this frame alone" in view.masks_from and "base and adapted the same" in view.masks_from
        assert session.experts(0, None, None) == (
            None,
            "nothing was routed: the adapters are in memory attention, which prompted frames do not pass through; "
            "track, and look at a later frame",
        )

    def test_tracking_gives_the_prediction_tools_files(self, session, config, adapter, tmp_path):
        session.choose_mode("on")
        assert list(boxed(session).track()) == [1, 2, 3, 4]
        assert changed(session.view(2)) and "tracked" in session.view(2).masks_from
        folder = tmp_path / "walk"
        folder.mkdir()
        for t, picture in enumerate(frames()):
            Image.fromarray(picture).save(folder / f"{t:05d}.png")
        video, masks = session.files()
        assert open_stream(video).count == FRAMES
        assert next(iter(open_stream(video))).shape == (HEIGHT, 2 * WIDTH, 3)
        with zipfile.ZipFile(masks) as archive:
            archive.extractall(tmp_path / "taken")
        for name, tracker in (("base", load_tracker(config, None)), ("adapted", load_tracker(config, adapter, "on"))):
            write_prediction(tracker, open_stream(folder), session.prompts(), tmp_path / name, "none")
            taken, expected = (
                json.loads((place / name / "walk.json").read_text())["annotations"]
                for place in (tmp_path / "taken", tmp_path)
            )
            assert taken == expected
            for t in range(FRAMES):
                png = f"{name}/Annotations/walk/{t:05d}.png"
                assert (tmp_path / "taken" / png).read_bytes() == (tmp_path / png).read_bytes()

    def test_a_further_prompt_makes_old_results_invalid(self, session):
        list(boxed(session).track())
        session.mark("on it", 0, 1, 20, 20)
        assert "this frame alone" in session.view(0).masks_from
        assert session.view(1).masks_from == "no masks yet: point at an object"
        with refuses("demo.nothing-tracked"):
            session.files()

    def test_tracking_that_is_broken_off_leaves_no_results(self, session):
        steps = boxed(session).track()
        next(steps)
        steps.close()
        with refuses("demo.nothing-tracked"):
            session.files()
        assert list(session.track())[-1] == FRAMES


class TestGate:
    def test_its_decision_and_its_effect(self, session):
        assert session.models.modes == ["auto", "on", "off", "noise"]
        lines = session.gate_line().splitlines()
        assert lines[0] == "domain gate on frame 0: none of the domains it knows"
        assert lines[1].startswith("distance in units of the domain's threshold: noise ") and "(outside)" in lines[1]
        assert lines[2] == "mode auto: adapters off, the base model's masks"

    def test_it_decides_on_the_first_prompted_frame(self, session):
        session.mark("on it", 2, 1, 30, 20)
        assert session.gate_line().startswith("domain gate on frame 2:")

    @pytest.mark.parametrize(("mode", "on"), [("auto", False), ("on", True), ("noise", True), ("off", False)])
    def test_overruling_it(self, session, mode, on):
        session.choose_mode(mode)
        list(boxed(session).track())
        assert changed(session.view(3)) is on
        assert session.gate_line().splitlines()[-1].startswith(f"mode {mode}: adapters {'on' if on else 'off'}")
        if not on:
            assert session.experts(3, None, None) == (None, "adapters are off, so no expert acted")

    def test_a_domain_it_knows(self, models):
        session = Session(models)
        picture = np.random.default_rng(9).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        session.open(DemoInput("noise", [ArrayFrame(picture)]))
        assert "this is noise" in session.gate_line() and "adapters on (noise)" in session.gate_line()


class TestExperts:
    def test_where_they_acted(self, session):
        session.choose_mode("on")
        list(boxed(session).track())
        picture, about = session.experts(2, None, None)
        assert picture.shape[2] == 3 and about.startswith("frame 2: mean over ")
        assert session.experts(2, MEMORY, "1")[1] == f"frame 2: {MEMORY}"
        memories = session.experts(2, "memory_attention.layers.0.cross_attn_image.k_proj", None)
        assert memories == (None, "this layer's tokens are memories and no places on the frame, or it did not run")
        assert session.experts(2, MEMORY, "null")[1] == "the active adapters have no expert of this number"

    def test_adapters_in_the_encoder_act_on_the_prompted_frame_without_a_gate_too(self, config, tmp_path):
        lora = LoraConfig(experts=2, top_k=1, target_modules=["image_encoder.*.attn.qkv"])
        models = Models(config, adapter_of(config, tmp_path / "adapter", lora, gate=False))
        assert models.modes == ["on", "off"]
        session = Session(models)
        session.open(DemoInput("still", [ArrayFrame(frames()[0])]))
        view = boxed(session).view(0)
        assert changed(view)
        assert session.gate_line() == "the adapter folder has no domain gate\nmode on: adapters on"
        assert session.experts(0, ENCODER, None)[0] is not None

    def test_lora_has_none(self, config, tmp_path):
        lora = LoraConfig(method="lora")
        session = Session(Models(config, adapter_of(config, tmp_path / "adapter", lora, gate=False)))
        session.open(DemoInput("walk", [ArrayFrame(f) for f in frames()]))
        list(boxed(session).track())
        assert changed(session.view(2))
        assert session.experts(2, None, None) == (None, "these adapters have no experts (lora.method is not mope)")


class TestRefusals:
    def test_nothing_to_look_at(self, models):
        session = Session(models)
        for act in (lambda: session.view(0), session.gate_line, lambda: session.mark("on it", 0, 1, 1, 1)):
            with refuses("demo.no-input"):
                act()

    def test_mistakes(self, session):
        with refuses("demo.no-prompt"):
            list(session.track())
        with refuses("demo.nothing-to-undo"):
            session.undo()
        with refuses("demo.no-frame", " 4:", "walk", " 4"):
            session.view(4)
        with refuses("demo.object-number"):
            session.mark("on it", 0, 0, 5, 5)
        with refuses("demo.unknown-mode", "auto, on, off, noise"):
            session.choose_mode("cells")
        session.mark("corner of a box", 0, 1, 10, 10)
        with refuses("demo.empty-box"):
            session.mark("corner of a box", 0, 1, 10, 30)


class TestInputs:
    def test_a_still_becomes_a_clip_that_begins_with_it(self, config, tmp_path):
        Image.fromarray(frames()[0]).save(tmp_path / "still.png")
        assert open_input(tmp_path / "still.png", 100).count == 1
        clip = open_input(tmp_path / "still.png", 100, StillMotion(3, 1024, config.dataset.clip.motion))
        assert clip.count == 3
        assert np.abs(clip.frame(0).astype(int) - frames()[0]).max() <= 1
        assert not np.array_equal(clip.frame(0), clip.frame(clip.count - 1))

    def test_a_long_video_is_cut(self, tmp_path):
        with VideoWriter(tmp_path / "clip.mp4") as writer:
            for picture in frames():
                writer.write(picture)
        source = open_input(tmp_path / "clip.mp4", 3)
        assert (source.count, source.left_out) == (3, 1)
        assert all(np.array_equal(a, b) for a, b in zip(source, open_stream(tmp_path / "clip.mp4"), strict=False))

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("notes.txt", "video.no-pictures"),
            ("broken.mp4", "video.damaged"),
            ("broken.png", "image.unknown-type"),
        ],
    )
    def test_what_is_no_picture(self, tmp_path, name, code):
        (tmp_path / name).write_bytes(b"not a picture, and no video either" * 20)
        with refuses(code, name):
            open_input(tmp_path / name, 100)

    def test_samples_of_every_domain_of_the_run(self, config, tmp_path):
        samples, missing = find_samples(config)
        assert not missing
        assert {name.partition(":")[0] for name in samples} == {"target", "source"}
        assert all(open_sample().count > 1 for open_sample in samples.values())
        gone = config.model_copy(deep=True)
        gone.dataset.domains[0].val.img_folder = str(tmp_path / "gone")
        samples, missing = find_samples(gone)
        assert {name.partition(":")[0] for name in samples} == {"source"}
        assert len(missing) == 1 and "gone" in missing[0]
