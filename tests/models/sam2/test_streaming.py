"""Streaming: the same mask logits as the stock video predictor, bit for bit, from a memory bank that stays small."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sam2 import sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base

from src.config import LoraConfig, ModelConfig
from src.core.errors import UserError
from src.data.prompts import Prompt
from src.lora.adapter import iter_adapter_layers
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from src.models.sam2.inference_state import new_state
from src.models.sam2.memory_bank import ObjectMemory
from src.models.sam2.streaming import MemoryBank, StreamingTracker
from src.models.sam2.tracking import as_video_predictor
from tests.errors import refuses

HEIGHT, WIDTH = 48, 80
BOX = (10.0, 10.0, 34.0, 30.0)
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[30:44, 30:50] = True

Logits = list[dict[int, torch.Tensor]]


def frames_of(count: int) -> list[np.ndarray]:
    """Two discs on their ways over noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for t in range(count):
        frame = rng.integers(40, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for phase, radius, colour in ((0.0, 9, (200, 80, 40)), (2.0, 6, (40, 90, 220))):
            x, y = WIDTH / 2 + 25 * np.sin(t / 15 + phase), HEIGHT / 2 + 12 * np.cos(t / 11 + phase)
            frame[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = colour
        frames.append(frame)
    return frames


def random_model(seed: int = 0) -> SAM2Base:
    """The nano model at 64 pixels, with random weights that see objects (other seeds may see none)."""
    torch.manual_seed(seed)
    return build_model(ModelConfig(image_size=64)).eval()


@pytest.fixture(scope="module")
def model() -> SAM2Base:
    return random_model()


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch):
    """``stock(predictor, frames, before, after)``: the logits of the stock predictor, prompted as it goes along."""
    monkeypatch.setattr(sam2_video_predictor, "tqdm", lambda iterable, **_: iterable)

    def prompt(predictor, state, t: int, p: Prompt) -> torch.Tensor:
        if p.mask is not None:
            return predictor.add_new_mask(state, t, p.object_id, p.mask)[2]
        points = np.array(p.points, np.float32) if p.points else None
        labels = np.array(p.labels, np.int32) if p.points else None
        return predictor.add_new_points_or_box(state, t, p.object_id, points, labels, box=p.box)[2]

    def run(predictor, frames, before: dict[int, list[Prompt]], after: dict[int, list[Prompt]] | None = None) -> Logits:
        after = after or {}
        state = new_state(predictor, frames)
        found: Logits = [{} for _ in frames]
        stops = sorted({t for t in before if t} | {t + 1 for t in after} | {len(frames)})
        for start, stop in zip([0, *stops], stops, strict=False):
            for p in before.get(start, []):
                prompt(predictor, state, start, p)
            for t, ids, logits in predictor.propagate_in_video(state, start, stop - 1 - start):
                found[t] = dict(zip(ids, logits[:, 0], strict=True))
            for p in after.get(stop - 1, []):
                logits = prompt(predictor, state, stop - 1, p)
                found[stop - 1] = dict(zip(state["obj_ids"], logits[:, 0], strict=True))
        return found

    return run


def stream(
    tracker: StreamingTracker, frames, bank: MemoryBank, before, after=None
) -> Iterator[tuple[dict, MemoryBank]]:
    for frame in frames:
        prediction, bank = tracker.step(frame, bank, before.get(bank.frame + 1, []))
        for prompt in (after or {}).get(bank.frame, []):
            prediction, bank = tracker.correct(frame, bank, [prompt])
        yield prediction.logits, bank


def differing(ours: Logits, theirs: Logits) -> list[tuple[int, int]]:
    """The (frame, object) whose logits are not the very same numbers."""
    assert [list(a) for a in ours] == [list(b) for b in theirs]
    return [(t, i) for t, (a, b) in enumerate(zip(ours, theirs, strict=True)) for i in a if not torch.equal(a[i], b[i])]


def stored_bytes(bank: MemoryBank) -> int:
    """What the bank's tensors hold in memory, whether or not they show all of it."""
    memories = [m for o in bank.objects.values() for kind in (o.prompted, o.recent) for m in kind.values()]
    tensors = [t for m in memories for t in vars(m).values() if t is not None] + [bank.position]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class TestEqualsTheVideoPredictor:
    def test_over_300_frames_in_constant_memory_with_an_object_added_later(self, model, stock):
        frames = frames_of(300)
        before = {0: [Prompt(1, mask=MASK)], 270: [Prompt(5, box=BOX)]}
        tracker = StreamingTracker(model)
        ours, sizes = [], {}
        for logits, bank in stream(tracker, iter(frames), tracker.start(), before):
            ours.append(logits)
            sizes[bank.frame] = stored_bytes(bank)
        assert differing(ours, stock(as_video_predictor(model), frames, before)) == []
        assert all(0 < (logits > 0).float().mean() < 1 for logits in ours[-1].values())
        assert {sizes[t] for t in range(16, 270)} == {sizes[50]}
        shared = bank.position.untyped_storage().nbytes()
        assert sizes[299] - shared == 2 * (sizes[50] - shared), "twice as much for two objects"

    @pytest.mark.parametrize("length", [20, 9])
    def test_with_clicks_before_and_after_tracking(self, model, stock, length):
        """A new object, an object prompted again, and corrections of tracked masks; also of a short video."""
        frames = frames_of(length)
        before = {
            0: [Prompt(1, ((40.0, 30.0), (70.0, 8.0)), (1, 0))],
            3: [Prompt(1, box=BOX), Prompt(2, mask=MASK)],
        }
        after = {5: [Prompt(2, ((20.0, 40.0),), (1,)), Prompt(2, ((20.0, 40.0), (50.0, 9.0)), (1, 0))]}
        tracker = StreamingTracker(model)
        ours = [logits for logits, _ in stream(tracker, frames, tracker.start(length), before, after)]
        assert differing(ours, stock(as_video_predictor(model), frames, before, after)) == []

    def test_with_corrections_that_are_kept(self, model, stock):
        frames = frames_of(20)
        before = {0: [Prompt(1, mask=MASK)]}
        after = {4: [Prompt(1, ((20.0, 40.0),), (1,)), Prompt(1, ((20.0, 40.0), (50.0, 9.0)), (1, 0))]}
        predictor = as_video_predictor(model)
        predictor.add_all_frames_to_correct_as_cond = True
        tracker = StreamingTracker(model, keep_corrections=True)
        ours = [logits for logits, _ in stream(tracker, frames, tracker.start(), before, after)]
        assert differing(ours, stock(predictor, frames, before, after)) == []
        faded = StreamingTracker(model)
        forgotten = [logits for logits, _ in stream(faded, frames, faded.start(), before, after)]
        assert (5, 1) in differing(ours, forgotten)

    def test_with_adapters_on(self, model, stock):
        adapted = copy.deepcopy(model)
        apply_method(adapted, LoraConfig(experts=3, top_k=2))
        torch.manual_seed(1)
        for _, adapter in iter_adapter_layers(adapted):
            torch.nn.init.normal_(adapter.lora_B, std=0.5)
        frames, before = frames_of(12), {0: [Prompt(1, mask=MASK)]}
        tracker, base = StreamingTracker(adapted), StreamingTracker(model)
        ours = [logits for logits, _ in stream(tracker, frames, tracker.start(12), before)]
        assert differing(ours, stock(as_video_predictor(adapted), frames, before)) == []
        without = [logits for logits, _ in stream(base, frames, base.start(12), before)]
        assert differing(ours, without) == [(t, 1) for t in range(1, 12)], "the adapters change what is tracked"

    def test_where_no_object_is_seen(self, stock):
        blind = random_model(2)
        frames, before = frames_of(10), {0: [Prompt(1, mask=MASK)]}
        tracker = StreamingTracker(blind)
        ours = [logits for logits, _ in stream(tracker, frames, tracker.start(10), before)]
        assert differing(ours, stock(as_video_predictor(blind), frames, before)) == []
        assert (ours[-1][1] < -1000).all()

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("memory_temporal_stride_for_eval", 3),
            ("max_cond_frames_in_attn", 2),
            ("only_obj_ptrs_in_the_past_for_eval", False),
            ("non_overlap_masks", True),
        ],
    )
    def test_with_the_models_other_options(self, model, stock, option, value):
        predictor = as_video_predictor(model)
        setattr(predictor, option, value)
        frames = frames_of(24)
        before = {t: [Prompt(1, mask=np.roll(MASK, t)), Prompt(2, box=BOX)] for t in (0, 2, 4)}
        tracker = StreamingTracker(predictor)
        after = {11: [Prompt(1, ((20.0, 40.0),), (1,))]}
        ours = [logits for logits, _ in stream(tracker, frames, tracker.start(), before, after)]
        assert differing(ours, stock(predictor, frames, before, after)) == []


class TestBank:
    def test_it_holds_what_attention_can_reach(self, model):
        tracker = StreamingTracker(model)
        *_, (_, bank) = stream(tracker, frames_of(25), tracker.start(), {0: [Prompt(1, mask=MASK)]})
        memory = bank.objects[1]
        assert list(memory.prompted) == [0]
        assert list(memory.recent) == list(range(9, 25)), "pointers of 15 frames, and this one"
        assert [t for t, m in memory.recent.items() if m.features is not None] == list(range(18, 25)), "6, and this one"
        assert [t for t, m in memory.recent.items() if m.logits is not None] == [24]

    def test_it_goes_on_the_same_after_saving(self, model, tmp_path):
        frames = frames_of(12)
        before, later = {0: [Prompt(1, mask=MASK)], 3: [Prompt(9, box=BOX)]}, {8: [Prompt(9, ((20.0, 20.0),), (0,))]}
        tracker = StreamingTracker(model)
        whole = list(stream(tracker, frames, tracker.start(12), before, later))
        whole[6][1].save(tmp_path / "bank.pt")
        bank = MemoryBank.load(tmp_path / "bank.pt")
        rest = list(stream(StreamingTracker(random_model()), frames[7:], bank, before, later))
        assert differing([logits for logits, _ in rest], [logits for logits, _ in whole[7:]]) == []

    def test_it_is_never_changed(self, model):
        frames = frames_of(4)
        tracker = StreamingTracker(model)
        (_, _), (_, second) = list(stream(tracker, frames[:2], tracker.start(), {0: [Prompt(1, mask=MASK)]}))
        before = copy.deepcopy(second.objects[1].recent[1].features)
        once, _ = tracker.step(frames[2], second)
        tracker.correct(frames[1], second, [Prompt(1, ((5.0, 5.0),), (0,)), Prompt(2, box=BOX)])
        again, _ = tracker.step(frames[2], second)
        assert torch.equal(once.logits[1], again.logits[1])
        assert torch.equal(second.objects[1].recent[1].features, before)
        assert list(second.objects) == [1]

    def test_an_object_that_is_forgotten_leaves_the_others_as_without_it(self, model):
        frames, tracker = frames_of(8), StreamingTracker(model)
        alone, both = {0: [Prompt(1, mask=MASK)]}, {0: [Prompt(1, mask=MASK), Prompt(2, box=BOX)]}
        expected = [logits for logits, _ in stream(tracker, frames, tracker.start(), alone)]
        *_, (_, bank) = stream(tracker, frames[:4], tracker.start(), both)
        ours = [logits for logits, _ in stream(tracker, frames[4:], bank.forget(2), {})]
        assert differing(ours, expected[4:]) == []
        assert stored_bytes(bank.forget(2)) < stored_bytes(bank)
        again, _ = tracker.step(frames[4], bank.forget(2), [Prompt(2, box=BOX)])
        assert list(again.logits) == [1, 2]

    def test_a_memory_that_is_dropped_is_not_attended_to(self, model):
        """As where it is taken out of the stock predictor's state."""
        frames, tracker = frames_of(9), StreamingTracker(model)
        *_, (_, bank) = stream(tracker, frames[:5], tracker.start(len(frames)), {0: [Prompt(1, mask=MASK)]})
        kept, ours = ([logits for logits, _ in stream(tracker, frames[5:], b, {})] for b in (bank, bank.drop(3)))
        predictor = as_video_predictor(model)
        state = new_state(predictor, frames)
        predictor.add_new_mask(state, 0, 1, MASK)
        list(predictor.propagate_in_video(state, 0, 4))
        del state["output_dict_per_obj"][0]["non_cond_frame_outputs"][3]
        found = predictor.propagate_in_video(state, 5, 3)
        theirs = [{1: logits[0, 0]} for _, _, logits in found]
        assert differing(ours, theirs) == [] and differing(kept, theirs) != []

    def test_keeping_earlier_banks_costs_one_memory_a_frame(self, model):
        frames, tracker = frames_of(8), StreamingTracker(model)
        banks = [bank for _, bank in stream(tracker, frames, tracker.start(), {0: [Prompt(1, mask=MASK)]})]
        (old, new) = (bank.objects[1].recent for bank in banks[5:7])
        assert all(old[t].features is new[t].features for t in old.keys() & new.keys()) and len(new) == len(old) + 1

    def test_what_cannot_be_taken_out(self, model):
        tracker = StreamingTracker(model)
        *_, (_, bank) = stream(tracker, frames_of(3), tracker.start(), {1: [Prompt(1, mask=MASK)]})
        with refuses("memory-bank.no-object", "object 2", "there are: 1"):
            bank.forget(2)
        with refuses("memory-bank.no-memory", "frame 0"):
            bank.drop(0)
        with refuses("memory-bank.last-prompt", "object 1"):
            bank.drop(1)
        assert list(bank.drop(2, 1).objects[1].recent) == []

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no bank"])
    def test_a_damaged_file_is_refused(self, tmp_path, content):
        path = tmp_path / "bank.pt"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bank\.pt") as caught:
            MemoryBank.load(path)
        assert caught.value.code in ("torch-file.damaged", "torch-file.foreign-content")

    def test_other_files_are_refused(self, tmp_path):
        with refuses("memory-bank.missing"):
            MemoryBank.load(tmp_path / "none.pt")
        torch.save({"model": {}}, tmp_path / "weights.pt")
        with refuses("memory-bank.other-format"):
            MemoryBank.load(tmp_path / "weights.pt")
        torch.save(ObjectMemory(), tmp_path / "code.pt")
        with refuses("torch-file.foreign-content", "code.pt"):
            MemoryBank.load(tmp_path / "code.pt")


class TestCalls:
    def test_frames_before_the_first_prompt_are_counted_and_not_encoded(self, model, monkeypatch):
        tracker = StreamingTracker(model)
        monkeypatch.setattr(tracker.predictor, "forward_image", lambda _: pytest.fail("the encoder was run"))
        prediction, bank = tracker.step(frames_of(1)[0], tracker.start())
        assert (prediction.frame, prediction.masks, bank.frame) == (0, {}, 0)

    def test_an_encoded_frame_stands_for_the_frame(self, model):
        frame = frames_of(1)[0]
        tracker = StreamingTracker(model)
        encoded = tracker.encode(frame, tracker.start())
        a, _ = tracker.step(frame, tracker.start(), [Prompt(1, box=BOX)])
        b, _ = tracker.step(encoded, tracker.start(), [Prompt(1, box=BOX)])
        assert torch.equal(a.logits[1], b.logits[1])
        assert a.masks[1].shape == (HEIGHT, WIDTH)
        assert 0 < a.scores[1] < 1

    def test_the_model_keeps_its_weights_and_class(self, model):
        StreamingTracker(model, keep_corrections=True)
        assert type(model) is SAM2Base
        predictor = as_video_predictor(model)
        StreamingTracker(predictor, keep_corrections=True)
        assert predictor.add_all_frames_to_correct_as_cond is False

    def test_what_does_not_fit_is_refused(self, model):
        frame = frames_of(1)[0]
        tracker = StreamingTracker(model)
        _, bank = tracker.step(frame, tracker.start(), [Prompt(1, box=BOX)])
        with pytest.raises(ValueError, match="frame 1 is"):
            tracker.step(frame[:40], bank)
        with pytest.raises(ValueError, match="RGB, uint8"):
            tracker.step(frame.astype(np.float32), bank)
        with pytest.raises(ValueError, match="one prompt an object"):
            tracker.step(frame, bank, [Prompt(1, box=BOX), Prompt(1, mask=MASK)])
        with pytest.raises(ValueError, match="the mask is"):
            tracker.step(frame, bank, [Prompt(1, mask=MASK[:20])])
        with pytest.raises(ValueError, match="no frame to correct"):
            tracker.correct(frame, tracker.start(), [Prompt(1, box=BOX)])
        other = StreamingTracker(build_model(ModelConfig(image_size=96)))
        with pytest.raises(ValueError, match="another model"):
            other.step(frame, bank)
