"""A gate in a model: predictors decide by themselves; a video of no known domain gets the base's masks, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

from src.config import LoraConfig, ModelConfig
from src.data.prompts import Prompt
from src.data.synthetic import CELLS, HELD_OUT_SEED, SOURCE, make_videos, shifted
from src.gating.domain_gate import Decision, DomainGate
from src.gating.fit import fit_gate
from src.gating.switching import decide_for_frame, gated, install_gate, remove_gate
from src.lora.adapter import disable_adapters, iter_adapter_layers
from src.lora.adapter_io import base_fingerprint, save_adapter
from src.lora.expert_groups import active_adapter, add_adapter, set_adapter, use_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model, config_overrides
from src.models.sam2.inference_state import DECISION, new_state
from src.models.sam2.predictors import build_sam2_moe, build_sam2_video_predictor_moe, image_predictor
from src.models.sam2.streaming import MemoryBank, StreamingTracker
from src.models.sam2.tracking import as_video_predictor
from src.tasks.tracking.predict import predicting, track
from tests.errors import refuses

CHECKPOINT = Path(__file__).parents[3] / "checkpoints/sam2_nano.safetensors"
EVERYWHERE = LoraConfig(method="lora", rank=2, target_modules=["all"])
MEMORY = LoraConfig(method="mope", experts=2, top_k=1, rank=2)

CELLS_VIDEO = make_videos(CELLS, 1, HELD_OUT_SEED, frames=3).videos[0]
SOURCE_VIDEO = make_videos(SOURCE, 1, HELD_OUT_SEED, frames=3).videos[0]


def adapted(lora: LoraConfig) -> SAM2Base:
    """The bundled base with adapters that are no longer zero."""
    model = build_model(ModelConfig(checkpoint=str(CHECKPOINT))).eval()
    apply_method(model, lora)
    torch.manual_seed(1)
    for _, adapter in iter_adapter_layers(model):
        torch.nn.init.normal_(adapter.lora_B, std=0.3)
    return model


@pytest.fixture(scope="module")
def fitted() -> DomainGate:
    """A gate that knows cells, fitted through a model with adapters, which it must not see."""
    if not CHECKPOINT.exists():
        pytest.skip("checkpoints/sam2_nano.safetensors is not here")
    model = adapted(EVERYWHERE).train()
    gate = fit_gate(model, "cells", frames_of(make_videos(CELLS, 24, 0, frames=1).videos))
    assert model.training
    assert all(adapter.enabled for _, adapter in iter_adapter_layers(model))
    return gate


@pytest.fixture(scope="module")
def everywhere(fitted) -> SAM2Base:
    return adapted(EVERYWHERE)


@pytest.fixture(scope="module")
def in_memory(fitted) -> SAM2Base:
    return adapted(MEMORY)


@pytest.fixture(params=["everywhere", "in_memory"])
def model(request) -> Iterator[SAM2Base]:
    """Adapters in every Linear, encoder included, or in memory attention only."""
    model = request.getfixturevalue(request.param)
    yield model
    remove_gate(model)
    assert all(adapter.enabled for _, adapter in iter_adapter_layers(model))


def frames_of(videos) -> list[np.ndarray]:
    return [video.frames[0].read() for video in videos]


def tracked(model: SAM2Base, video) -> torch.Tensor:
    """Mask logits of a stock video predictor on the same modules, prompted by a mask and a box on frame 0."""
    predictor = model if isinstance(model, SAM2VideoPredictor) else as_video_predictor(model)
    return run(predictor, new_state(predictor, [f.read() for f in video.frames]), video)


def run(predictor: SAM2VideoPredictor, state: dict, video) -> torch.Tensor:
    mask = next(iter(video.masks(0).values()))
    collected = [predictor.add_new_mask(state, 0, 1, torch.from_numpy(mask))[2]]
    collected += [
        predictor.add_new_points_or_box(state, 0, 2, box=np.array([20, 20, 90, 90], np.float32))[2],
        *(logits for _, _, logits in predictor.propagate_in_video(state)),
    ]
    return torch.cat([logits.flatten() for logits in collected])


def streamed(model: SAM2Base, video) -> list[torch.Tensor]:
    tracker = StreamingTracker(model)
    bank, found = tracker.start(len(video)), []
    for t, frame in enumerate(video.frames):
        prompts = [Prompt(1, mask=next(iter(video.masks(0).values())))] if t == 0 else []
        prediction, bank = tracker.step(frame.read(), bank, prompts)
        found.append(prediction.logits[1])
    return found


def segmented(model: SAM2Base, frame: np.ndarray) -> torch.Tensor:
    predictor = image_predictor(model)
    predictor.set_image(frame)
    return torch.from_numpy(predictor.predict(box=np.array([20, 20, 90, 90]), return_logits=True)[0])


def base_and_adapted(compute, model, *arguments):
    """What the base and what the adapters give, without a gate; they differ."""
    on = compute(model, *arguments)
    with disable_adapters(model):
        return compute(model, *arguments), on


class TestVideo:
    def test_the_gate_decides_between_the_very_base_and_the_very_adapters(self, model, fitted):
        for video, known in ((CELLS_VIDEO, True), (SOURCE_VIDEO, False)):
            base, on = base_and_adapted(tracked, model, video)
            assert not torch.equal(base, on)
            with gated(model, fitted):
                assert torch.equal(tracked(model, video), on if known else base)

    def test_modes(self, model, fitted):
        base, on = base_and_adapted(tracked, model, SOURCE_VIDEO)
        for mode, expected in (("on", on), ("cells", on), ("off", base), ("auto", base)):
            with gated(model, fitted, mode):
                assert torch.equal(tracked(model, SOURCE_VIDEO), expected)
        base, _ = base_and_adapted(tracked, model, CELLS_VIDEO)
        with gated(model, fitted, "off"):
            assert torch.equal(tracked(model, CELLS_VIDEO), base)
        with refuses("gate.unknown-domain"):
            install_gate(model, fitted, "moon")

    def test_videos_of_one_predictor_may_be_worked_on_by_turns(self, model, fitted):
        install_gate(model, fitted)
        predictor = as_video_predictor(model)
        videos = (CELLS_VIDEO, SOURCE_VIDEO)
        states = [new_state(predictor, [f.read() for f in video.frames]) for video in videos]
        for state, video in zip(states, videos, strict=True):
            predictor.add_new_mask(state, 0, 1, torch.from_numpy(next(iter(video.masks(0).values()))))
        both = [predictor.propagate_in_video(state) for state in states]
        turns = [torch.cat([masks for _, _, masks in turn]) for turn in zip(*both, strict=True)]
        assert [state[DECISION].domain for state in states] == ["cells", None]
        remove_gate(model)
        for index, video in enumerate(videos):
            expected = alone(model, video) if index == 0 else alone_base(model, video)
            assert torch.equal(torch.stack([turn[index] for turn in turns]), expected)

    def test_the_decision_is_made_on_the_first_prompted_frame_and_kept(self, everywhere, fitted):
        """Cells first, then a cut to the source: what counts is where the prompt is."""
        frames = [CELLS_VIDEO.frames[0].read(), SOURCE_VIDEO.frames[0].read(), CELLS_VIDEO.frames[1].read()]
        box = np.array([20, 20, 90, 90], np.float32)
        with gated(everywhere, fitted):
            predictor = as_video_predictor(everywhere)
            state = new_state(predictor, frames)
            assert DECISION not in state
            predictor.add_new_points_or_box(state, 1, 1, box=box)
            decision = state[DECISION]
            assert decision.domain is None
            assert decision.distances == fitted_distances(everywhere, fitted, frames[1])
            predictor.reset_state(state)
            predictor.add_new_points_or_box(state, 0, 1, box=box)
            assert state[DECISION] is decision

    def test_adapters_switched_off_by_others_stay_off(self, model, fitted):
        base, _ = base_and_adapted(tracked, model, CELLS_VIDEO)
        with gated(model, fitted, "on"), disable_adapters(model):
            assert torch.equal(tracked(model, CELLS_VIDEO), base)

    def test_the_encoder_runs_once_more_a_video(self, in_memory, fitted):
        calls = []
        hook = in_memory.image_encoder.register_forward_hook(lambda *_: calls.append(1))
        tracked(in_memory, SOURCE_VIDEO)
        without, calls[:] = len(calls), []
        with gated(in_memory, fitted):
            tracked(in_memory, SOURCE_VIDEO)
        hook.remove()
        assert len(calls) == without + 1

    def test_copies_follow_their_own_modules(self, everywhere, fitted):
        with gated(everywhere, fitted, "off"):
            twin = copy.deepcopy(as_video_predictor(everywhere))
        base, on = base_and_adapted(tracked, everywhere, SOURCE_VIDEO)
        assert torch.equal(tracked(everywhere, SOURCE_VIDEO), on)
        assert torch.equal(tracked(twin, SOURCE_VIDEO), base)

    def test_evaluation_follows_it_and_training_goes_on(self, model, fitted):
        with disable_adapters(model), predicting(model) as predictor:
            expected = track(predictor, SOURCE_VIDEO, "mask")
        model.train()
        with gated(model, fitted), predicting(model) as predictor:
            assert track(predictor, SOURCE_VIDEO, "mask") == expected
        assert model.training
        model.eval()
        assert not hasattr(model, "domain_gate")


def alone(model: SAM2Base, video) -> torch.Tensor:
    """Logits of propagation alone, (T, 1, H, W)."""
    predictor = as_video_predictor(model)
    state = new_state(predictor, [f.read() for f in video.frames])
    predictor.add_new_mask(state, 0, 1, torch.from_numpy(next(iter(video.masks(0).values()))))
    return torch.cat([masks for _, _, masks in predictor.propagate_in_video(state)])


def alone_base(model: SAM2Base, video) -> torch.Tensor:
    with disable_adapters(model):
        return alone(model, video)


def fitted_distances(model: SAM2Base, gate: DomainGate, frame: np.ndarray) -> dict[str, float]:
    """Distances of a frame as ``decide_for_frame`` says, through a model whose adapters are on."""
    decision = decide_for_frame(model, gate, frame)
    return {name: pytest.approx(distance, rel=1e-4) for name, distance in decision.distances.items()}


class TestGroups:
    """With an expert group for every domain, a decision chooses the group."""

    @staticmethod
    def grouped() -> SAM2Base:
        model = build_model(ModelConfig(checkpoint=str(CHECKPOINT))).eval()
        torch.manual_seed(1)
        for name, config in (("cells", MEMORY), ("source", EVERYWHERE)):
            for adapter in add_adapter(model, name, config).values():
                torch.nn.init.normal_(adapter.lora_B, std=0.3)
        set_adapter(model, None)
        return model

    def test_each_video_gets_the_group_of_its_domain(self, fitted):
        model = self.grouped()
        gate = copy.deepcopy(fitted)
        fit_gate(model, "source", frames_of(make_videos(SOURCE, 24, 0, frames=1).videos), gate)
        expected = {}
        for name in ("cells", "source", None):
            with use_adapter(model, name):
                expected[name] = [tracked(model, video) for video in (CELLS_VIDEO, SOURCE_VIDEO)]
        assert not torch.equal(expected["cells"][0], expected["source"][0])
        with gated(model, gate):
            assert torch.equal(tracked(model, CELLS_VIDEO), expected["cells"][0])
            assert torch.equal(tracked(model, SOURCE_VIDEO), expected["source"][1])
        with gated(model, gate, "off"):
            assert torch.equal(tracked(model, CELLS_VIDEO), expected[None][0])
        with gated(model, gate, "source"):
            assert torch.equal(tracked(model, CELLS_VIDEO), expected["source"][0])
        assert active_adapter(model) is None

    def test_a_domain_without_a_group_is_refused(self, fitted):
        model = build_model(ModelConfig(checkpoint=str(CHECKPOINT))).eval()
        add_adapter(model, "other", MEMORY)
        with refuses("gate.other-groups"):
            install_gate(model, fitted)


class TestStreaming:
    def test_it_decides_as_the_video_predictor(self, model, fitted):
        for video, known in ((CELLS_VIDEO, True), (SOURCE_VIDEO, False)):
            base, on = base_and_adapted(streamed, model, video)
            with gated(model, fitted):
                for found, expected in zip(streamed(model, video), on if known else base, strict=True):
                    assert torch.equal(found, expected)

    def test_the_decision_is_saved_in_the_bank(self, everywhere, fitted, tmp_path):
        """The rest of a cells video is a source frame, on which the gate would not decide for cells."""
        later = SOURCE_VIDEO.frames[0].read()
        with gated(everywhere, fitted):
            tracker = StreamingTracker(everywhere)
            prompts = [Prompt(1, box=(20.0, 20.0, 90.0, 90.0))]
            _, bank = tracker.step(CELLS_VIDEO.frames[0].read(), tracker.start(), prompts)
            bank.save(tmp_path / "bank.pt")
            loaded = MemoryBank.load(tmp_path / "bank.pt")
            assert loaded.decision == bank.decision
            assert loaded.decision.domain == "cells"
            gated_on, _ = tracker.step(later, loaded)
            assert decide_for_frame(everywhere, fitted, later).domain is None
            stale = tracker.encode(later, tracker.start())
            corrected, _ = tracker.step(stale, loaded)
        free = StreamingTracker(everywhere)
        _, bank = free.step(CELLS_VIDEO.frames[0].read(), free.start(), prompts)
        on, _ = free.step(later, bank)
        assert torch.equal(gated_on.logits[1], on.logits[1])
        assert torch.equal(corrected.logits[1], on.logits[1]), "features made before the decision are made again"

    def test_without_a_gate_there_is_no_decision(self, everywhere):
        tracker = StreamingTracker(everywhere)
        _, bank = tracker.step(CELLS_VIDEO.frames[0].read(), tracker.start(), [Prompt(1, box=(20.0, 20.0, 90.0, 90.0))])
        assert bank.decision is None


class TestImages:
    def test_an_image_of_no_known_domain_gets_the_base(self, everywhere, fitted):
        for video, known in ((CELLS_VIDEO, True), (SOURCE_VIDEO, False)):
            frame = video.frames[0].read()
            base, on = base_and_adapted(segmented, everywhere, frame)
            assert not torch.equal(base, on)
            with gated(everywhere, fitted):
                assert torch.equal(segmented(everywhere, frame), on if known else base)

    def test_each_image_of_a_batch_is_decided_on(self, everywhere, fitted):
        frames = [SOURCE_VIDEO.frames[0].read(), CELLS_VIDEO.frames[0].read(), SOURCE_VIDEO.frames[1].read()]

        def batch(model):
            predictor = image_predictor(model)
            predictor.set_image_batch(frames)
            masks, _, _ = predictor.predict_batch(box_batch=[np.array([20, 20, 90, 90])] * 3, return_logits=True)
            return predictor, [torch.from_numpy(m) for m in masks]

        (_, base), (_, on) = base_and_adapted(batch, everywhere)
        with gated(everywhere, fitted):
            predictor, found = batch(everywhere)
        assert type(predictor) is SAM2ImagePredictor
        assert [decision.domain for decision in predictor.gated.decisions] == [None, "cells", None]
        for one, other in zip(found, [base[0], on[1], base[2]], strict=True):
            assert torch.equal(one, other)

    def test_where_no_adapter_is_passed_the_gate_does_not_look(self, in_memory, fitted):
        calls = []
        with gated(in_memory, fitted):
            hook = in_memory.image_encoder.register_forward_hook(lambda *_: calls.append(1))
            segmented(in_memory, CELLS_VIDEO.frames[0].read())
            hook.remove()
        assert len(calls) == 1


class TestFitting:
    def test_light_and_noise_do_not_make_another_domain(self, everywhere, fitted):
        for kind in ("dark", "bright", "noise", "blur"):
            seen = frames_of(make_videos(shifted(CELLS, kind), 16, HELD_OUT_SEED, frames=1).videos)
            assert sum(decide_for_frame(everywhere, fitted, frame).domain == "cells" for frame in seen) >= 12
            other = frames_of(make_videos(shifted(SOURCE, kind), 8, HELD_OUT_SEED, frames=1).videos)
            assert sum(decide_for_frame(everywhere, fitted, frame).domain == "cells" for frame in other) == 0

    def test_a_seed_is_a_gate_and_adapters_do_not_matter(self, in_memory):
        frames = frames_of(make_videos(CELLS, 3, 0, frames=1).videos)
        one = fit_gate(in_memory, "cells", frames)
        with disable_adapters(in_memory):
            two = fit_gate(in_memory, "cells", iter([*frames, *frames]), limit=3)
        assert torch.equal(one.domains["cells"].views, two.domains["cells"].views)
        assert one.base_fingerprint == base_fingerprint(in_memory)
        fit_gate(in_memory, "again", frames, one)
        assert list(one.domains) == ["cells", "again"]

    def test_too_few_images_are_refused(self, in_memory):
        with refuses("gate.few-images"):
            fit_gate(in_memory, "cells", [])


class TestBuilders:
    @pytest.fixture
    def folder(self, everywhere, fitted, tmp_path) -> Path:
        save_adapter(everywhere, tmp_path, EVERYWHERE, {})
        fitted.save(tmp_path)
        return tmp_path

    def build(self, builder, folder, **options):
        return builder(
            "configs/sam2.1/sam2.1_hiera_t.yaml", CHECKPOINT, "cpu", adapter=folder,
            hydra_overrides_extra=config_overrides(ModelConfig()), **options,
        )  # fmt: skip

    def test_they_install_the_gate_of_the_folder(self, folder):
        predictor = self.build(build_sam2_video_predictor_moe, folder)
        assert type(predictor) is SAM2VideoPredictor
        base, on = (self.forced(folder, mode) for mode in ("off", "on"))
        assert not torch.equal(base, on)
        assert torch.equal(tracked(predictor, SOURCE_VIDEO), base)
        assert torch.equal(self.forced(folder, "cells"), on)

    def forced(self, folder, mode) -> torch.Tensor:
        return tracked(self.build(build_sam2_video_predictor_moe, folder, gate=mode), SOURCE_VIDEO)

    def test_a_folder_without_a_gate(self, folder):
        (folder / "domain_gate.safetensors").unlink()
        model = self.build(build_sam2_moe, folder)
        assert not hasattr(model, "domain_gate")
        off = self.build(build_sam2_moe, folder, gate="off")
        base, _ = base_and_adapted(segmented, model, CELLS_VIDEO.frames[0].read())
        assert torch.equal(segmented(off, CELLS_VIDEO.frames[0].read()), base)
        with refuses("gate.none-here"):
            self.build(build_sam2_moe, folder, gate="cells")

    def test_the_gate_of_another_base_is_refused(self, folder, fitted):
        other = DomainGate("another base")
        other.domains = fitted.domains
        other.save(folder)
        with refuses("gate.other-base"):
            self.build(build_sam2_moe, folder)


def test_a_forced_mode_measures_nothing(in_memory, fitted):
    with gated(in_memory, fitted, "cells"):
        images = torch.zeros(2, 3, 128, 128)
        assert in_memory.domain_gate.decide(in_memory, images) == [Decision("cells", {})] * 2
