"""The prediction tool: what it writes for images, folders and videos, and its one-line refusals."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.cli.predict import frame_rate
from src.config import LoraConfig, load_config
from src.data.decode.video import open_stream
from src.data.decode.video_writer import VideoWriter
from src.data.prompts import Prompt, parse_prompts
from src.data.records import RLE, ArrayFrame, ObjectTrack, VideoRecord
from src.gating.fit import fit_gate
from src.lora.adapter import iter_adapter_layers
from src.lora.adapter_io import save_adapter
from src.lora.injection import apply_method
from src.models.sam2.build import build_model
from src.models.sam2.streaming import Prediction, StreamingTracker
from src.tasks.tracking.predict import predicting, track
from src.tasks.tracking.track_video import label_frame, load_tracker, track_video, write_prediction
from tests.errors import refuses
from tests.footage import moving_block, piped, y4m

SCRIPT = "predict"
HEIGHT, WIDTH, FRAMES = 48, 80, 5
BOX = "10,8,40,30"


def frames() -> list[np.ndarray]:
    return moving_block(FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "walk"
    path.mkdir()
    for t, picture in enumerate(frames()):
        Image.fromarray(picture).save(path / f"frame_{t + 1}.png")
    return path


@pytest.fixture(scope="module")
def video(folder) -> Path:
    path = folder.parent / "clip.mp4"
    with VideoWriter(path, frame_rate("12.5")) as writer:
        for picture in frames():
            writer.write(picture)
    return path


@pytest.fixture(scope="module")
def tracker(tiny_yaml) -> StreamingTracker:
    return load_tracker(load_config(tiny_yaml), None)


@pytest.fixture
def command(run_script, tiny_yaml, tmp_path):
    """Run the tool into ``tmp_path / "out"``: (exit status, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        settings = ("--set", f"output_dir={tmp_path / 'run'}")  # where no other run's adapter is
        return run_script(SCRIPT, "--config", tiny_yaml, *settings, "--output", tmp_path / "out", *arguments)

    return run


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def annotated(path: Path) -> dict[tuple[int, int], np.ndarray]:
    """(Frame, object) → mask, from the COCO file."""
    content = json.loads(path.read_text())
    return {
        (a["image_id"] - 1, a["track_id"]): RLE({**a["segmentation"], "counts": a["segmentation"]["counts"]}).decode()
        for a in content["annotations"]
    }


class TestOutputs:
    def test_a_folder_gives_masks_json_and_pictures(self, command, folder, tmp_path):
        status, output, _ = command("--input", folder, "--box", BOX, "--point", "3@2:60,40")
        assert status == 0
        assert f"object 1: found on {FRAMES} of {FRAMES} frames" in output
        stems = [f"frame_{t + 1}" for t in range(FRAMES)]
        assert files(tmp_path / "out") == {
            "walk.json",
            *(f"Annotations/walk/{stem}.png" for stem in stems),
            *(f"Overlays/walk/{stem}.jpg" for stem in stems),
        }
        masks = annotated(tmp_path / "out" / "walk.json")
        assert sorted(masks) == sorted([(t, 1) for t in range(FRAMES)] + [(t, 3) for t in range(2, FRAMES)])
        for t, stem in enumerate(stems):
            with Image.open(tmp_path / "out" / "Annotations" / "walk" / f"{stem}.png") as image:
                assert image.mode == "P"
                assert image.getpalette()[3:6] == [128, 0, 0], "the first colour of DAVIS"
                numbers = np.array(image)
            here = {i: mask for (frame, i), mask in masks.items() if frame == t}
            assert numbers.shape == (HEIGHT, WIDTH)
            assert np.array_equal(numbers > 0, np.any(list(here.values()), axis=0))
            assert all(mask[numbers == i].all() for i, mask in here.items())

    def test_the_json_is_read_back_by_our_own_reader(self, tracker, folder, tmp_path, load_coco):
        write_prediction(tracker, open_stream(folder), parse_prompts([BOX]), tmp_path, "none")
        data = load_coco(folder, tmp_path / "walk.json")
        masks = annotated(tmp_path / "walk.json")
        assert [Path(video.frames[0].name).name for video in data.videos] == [
            f"frame_{t + 1}.png" for t in range(FRAMES)
        ]
        assert all(np.array_equal(video.masks(0)[1], masks[t, 1]) for t, video in enumerate(data.videos))
        annotation = json.loads((tmp_path / "walk.json").read_text())["annotations"][0]
        ys, xs = np.nonzero(masks[0, 1])
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["area"] == masks[0, 1].sum()
        assert 0 < annotation["score"] < 1

    def test_a_video_gives_an_overlay_video(self, command, video, tmp_path):
        status, _, _ = command("--input", video, "--box", BOX)
        assert status == 0
        assert files(tmp_path / "out") == {
            "clip.json", "clip.mp4", *(f"Annotations/clip/{t:05d}.png" for t in range(FRAMES)),
        }  # fmt: skip
        overlay = open_stream(tmp_path / "out" / "clip.mp4")
        assert (overlay.count, overlay.rate) == (FRAMES, frame_rate("12.5"))
        mask = annotated(tmp_path / "out" / "clip.json")[0, 1]
        changed = np.abs(next(iter(overlay)).astype(int) - next(iter(open_stream(video)))).sum(-1)
        beside = ~mask
        beside[: mask.any(axis=1).argmax() + 14] = False  # the label's place
        assert changed[mask].mean() > 5 * changed[beside].mean()

    def test_some_frames_smaller_ones(self, command, video, tmp_path):
        status, output, _ = command(
            "--input", video, "--frames", "1:5", "--every", "2", "--max-side", "40",
            "--box", BOX, "--overlay", "images", "--point", "2@3:60,40",
        )  # fmt: skip
        assert status == 0 and "object 1: found on 2 of 2 frames" in output
        assert sorted(path.name for path in (tmp_path / "out/Annotations/clip").iterdir()) == ["00001.png", "00003.png"]
        content = json.loads((tmp_path / "out/clip.json").read_text())
        assert [(i["file_name"], i["width"], i["height"]) for i in content["images"]] == [
            ("00001.jpg", 40, 24), ("00003.jpg", 40, 24)
        ]  # fmt: skip
        assert {a["image_id"] for a in content["annotations"] if a["track_id"] == 2} <= {2}

    def test_standard_input_until_somebody_stops_it(self, command, tmp_path):
        """A stream that goes on, and Ctrl-C: what was found until then is written."""
        stopped = threading.Event()

        def endless() -> Iterator[bytes]:
            yield from y4m(60)
            written = tmp_path / "out/Annotations/stdin/00002.png"
            while not written.exists() and not stopped.wait(0.01):
                pass
            signal.raise_signal(signal.SIGINT)  # which the main thread takes
            stopped.wait(20)

        with piped(endless()):
            status, output, _ = command("--input", "-", "--box", "2,2,12,12", "--point", "2@900:3,3")
            stopped.set()
        assert status == 0 and "Ctrl-C stops it" in output and "a prompt is for frame 900" in output
        count = len(list((tmp_path / "out/Annotations/stdin").iterdir()))
        assert f"of {count} frames" in output and 3 <= count <= 60
        assert len(json.loads((tmp_path / "out/stdin.json").read_text())["images"]) == count
        assert open_stream(tmp_path / "out/stdin.mp4").count == count

    def test_a_stream_of_some_frames_smaller_ones(self, command, tmp_path):
        with piped(y4m(40)):
            more = ("--frames", "2:8", "--every", "2", "--max-side", "16")
            status, output, _ = command("--input", "-", "--box", "2,2,12,12", "--overlay", "images", *more)
        assert status == 0 and "of 3 frames" in output
        assert {path.name for path in (tmp_path / "out/Overlays/stdin").iterdir()} == {
            "00002.jpg", "00004.jpg", "00006.jpg",
        }  # fmt: skip

    def test_everything_on_pictures(self, command, folder, tmp_path):
        for wrong, said in (("pred_iou=0", "did you mean pred_iou_thresh"), ("points_per_side=x", "'x' is no int")):
            status, _, error = command("--input", folder, "--auto", wrong)
            assert status == 2 and said in error
        more = ("points_per_side=2", "pred_iou_thresh=0", "stability_score_thresh=0")
        status, output, _ = command("--input", folder, "--auto", *more)
        assert status == 0
        content = json.loads((tmp_path / "out/walk.json").read_text())
        assert len(content["images"]) == FRAMES
        assert f"object: {len(content['annotations'])} masks on {FRAMES} pictures" in output
        for each in content["annotations"]:
            mask = RLE({**each["segmentation"], "counts": each["segmentation"]["counts"]}).decode()
            assert mask.shape == (HEIGHT, WIDTH) and mask.sum() == each["area"]
        assert len(list((tmp_path / "out/Overlays/walk").iterdir())) == FRAMES

    def test_an_image_gives_one_of_each(self, command, folder, tmp_path):
        status, output, _ = command("--input", folder / "frame_2.png", "--box", BOX)
        assert status == 0
        assert "found on 1 of 1 frames" in output
        assert files(tmp_path / "out") == {
            "frame_2.json", "Annotations/frame_2/frame_2.png", "Overlays/frame_2/frame_2.jpg",
        }  # fmt: skip

    def test_the_overlay_and_its_rate_may_be_chosen(self, command, folder, tmp_path):
        status, _, _ = command("--input", folder, "--box", BOX, "--overlay", "video", "--fps", "5")
        assert status == 0
        overlay = open_stream(tmp_path / "out" / "walk.mp4")
        assert (overlay.count, overlay.rate) == (FRAMES, 5)

    def test_where_objects_overlap_the_higher_logit_is_shown(self):
        logits = {
            4: torch.tensor([[1.0, 3.0, -1.0, 2.0]]),
            200: torch.tensor([[2.0, 1.0, -2.0, -5.0]]),
        }
        assert label_frame(Prediction(0, logits, {4: 1.0, 200: 1.0}), (1, 4)).tolist() == [[200, 4, 0, 4]]


class TestPredictions:
    def test_they_are_the_stock_predictors(self, tracker, folder, tiny_yaml):
        pictures, truth = frames(), np.zeros((HEIGHT, WIDTH), dtype=bool)
        truth[10:30, 10:40] = True
        segmentations = [RLE.encode(truth)] + [None] * (FRAMES - 1)
        record = VideoRecord("v", HEIGHT, WIDTH, [ArrayFrame(p) for p in pictures], [ObjectTrack(1, segmentations)])
        torch.manual_seed(0)
        with predicting(build_model(load_config(tiny_yaml).model)) as predictor:
            expected = track(predictor, record, "mask")[1]
        found = [p.masks[1] for _, p in track_video(tracker, open_stream(folder), {0: [Prompt(1, mask=truth)]})]
        assert all(np.array_equal(a, b.decode()) for a, b in zip(found, expected, strict=True))

    def test_a_later_prompt_corrects_what_was_followed(self, tracker, folder):
        prompts = {0: [Prompt(1, box=(10, 8, 40, 30))], 3: [Prompt(1, ((70, 40),), (0,))]}
        plain = [p.logits[1] for _, p in track_video(tracker, open_stream(folder), {0: prompts[0]})]
        corrected = [p.logits[1] for _, p in track_video(tracker, open_stream(folder), prompts)]
        same = [torch.equal(a, b) for a, b in zip(plain, corrected, strict=True)]
        assert same == [True, True, True, False, False]
        bank = tracker.start(FRAMES)
        for picture in frames()[:4]:
            _, bank = tracker.step(picture, bank, prompts[0] if bank.frame < 0 else [])
        expected, bank = tracker.correct(frames()[3], bank, prompts[3])
        assert torch.equal(expected.logits[1], corrected[3])
        assert list(bank.objects[1].prompted) == [0, 3]

    def test_an_adapter_is_used(self, tiny_yaml, tracker, folder, tmp_path, capsys):
        config = load_config(tiny_yaml)
        torch.manual_seed(config.training.seed)
        model = build_model(config.model)
        lora = LoraConfig(experts=2, top_k=1)
        apply_method(model, lora)
        for _, adapter in iter_adapter_layers(model):
            torch.nn.init.normal_(adapter.lora_B)
        save_adapter(model, tmp_path / "adapter", lora, {})
        adapted = load_tracker(config, str(tmp_path / "adapter"))
        prompts = {0: [Prompt(1, box=(10, 8, 40, 30))]}
        base = [p.logits[1] for _, p in track_video(tracker, open_stream(folder), prompts)]
        other = [p.logits[1] for _, p in track_video(adapted, open_stream(folder), prompts)]
        assert [torch.equal(a, b) for a, b in zip(base, other, strict=True)] == [True] + [False] * (FRAMES - 1)

        def decided(mode: str) -> list[torch.Tensor]:
            gated = load_tracker(config, str(tmp_path / "adapter"), mode)
            return [p.logits[1] for _, p in track_video(gated, open_stream(folder), prompts)]

        off = decided("off")
        assert all(torch.equal(a, b) for a, b in zip(base, off, strict=True))
        gate = fit_gate(model, "noise", np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8))
        gate.save(tmp_path / "adapter")
        for mode, expected in (("auto", base), ("on", other), ("noise", other)):
            assert all(torch.equal(a, b) for a, b in zip(expected, decided(mode), strict=True))
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("domain gate: ")]
        assert len(told) == 2, "once a video, and not where the mode says it all"
        assert told[0].startswith("domain gate: no domain it knows, adapters off (distance to noise ")
        assert told[1].startswith("domain gate: noise, adapters on")

        (tmp_path / "adapter/domain_gate.safetensors").unlink()
        (tmp_path / "adapter/domain_gate.safetensors").mkdir()
        with refuses("gate.missing-file", "domain_gate.safetensors"):
            decided("auto")

    def test_a_runs_checkpoint_follows_the_gate_beside_it(self, tiny_yaml, tmp_path, run_script, folder, capsys):
        run = tmp_path / "run"
        short = ["training.max_steps=1", "evaluation.max_images=2", "evaluation.source_clips=1", f"output_dir={run}"]
        settings = [part for each in short for part in ("--set", each)]
        assert run_script("train", "--config", tiny_yaml, *settings)[0] == 0
        arguments = ("--config", tiny_yaml, *settings, "--output", tmp_path / "out", "--input", folder, "--box", BOX)
        status, output, _ = run_script(SCRIPT, *arguments)
        assert status == 0 and "best.pt" in output
        assert "domain gate: " in output


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "nothing is pointed at: give --box, --point, --mask or --prompts"),
            (["--box", "10,8,90,30"], "object 1 on frame 0: the box 10,8,90,30 is outside the frame, which is 80×48"),
            (["--box", f"1@5:{BOX}"], "a prompt is for frame 5, but there are 5 frames, 0 to 4"),
            (["--box", BOX, "--checkpoint", "none.pt"], "none.pt: no such checkpoint"),
            (["--box", BOX, "--gate", "cells"], "gate 'cells': the model has no domain_gate.safetensors"),
            (["--box", BOX, "--input", "none.mp4"], "none.mp4: no such file or folder"),
        ],
    )
    def test_mistakes_take_one_line_and_write_nothing(self, command, folder, tmp_path, arguments, message):
        status, _, errors = command("--input", folder, *arguments)
        assert status == 2
        assert errors.splitlines()[-1].startswith(f"error: {message}")
        assert "Traceback" not in errors
        assert not (tmp_path / "out").exists()

    def test_a_broken_video(self, command, video, tmp_path):
        (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:-200])
        status, _, errors = command("--input", tmp_path / "cut.mp4", "--box", BOX)
        assert status == 2
        assert errors.splitlines()[-1].startswith(f"error: {tmp_path / 'cut.mp4'}: ")

    def test_a_prompt_after_an_end_that_was_not_known(self, tracker, folder, tmp_path):
        class Camera:
            name, count, rate = "camera", None, frame_rate("24")

            def frame_file(self, index: int) -> str:
                return f"{index}.jpg"

            def __iter__(self):
                return iter(frames())

        with refuses("prompts.no-such-frame") as caught:
            write_prediction(tracker, Camera(), parse_prompts([BOX, f"2@5:{BOX}"]), tmp_path, "video")
        assert "frame 5" in str(caught.value)
        left = files(tmp_path)
        assert left == {f"Annotations/camera/{t}.png" for t in range(FRAMES)}, "the masks so far, and nothing half done"

    @pytest.mark.parametrize("rate", ["0", "-1", "1/0", "fast"])
    def test_a_frame_rate_that_is_none(self, command, folder, rate):
        status, _, errors = command("--input", folder, "--box", BOX, f"--fps={rate}")
        assert status == 2
        assert "is not a number of frames per second" in errors


class TestStills:
    @pytest.fixture
    def pictures(self, tmp_path) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir()
        for name, size in (("a", (40, 60)), ("b", (50, 30)), ("c", (40, 60))):
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)).save(
                folder / f"{name}.png"
            )
        return folder

    def test_each_picture_is_segmented_by_itself_with_its_own_prompts_and_categories(
        self, command, pictures, tmp_path, caplog
    ):
        prompts = tmp_path / "prompts.json"
        entries = [
            {"image": "a.png", "box": [5, 5, 30, 30], "category": "rust"},
            {"image": "a.png", "object": 2, "points": [[40, 20]], "category": "crack"},
            {"image": "b.png", "box": [2, 2, 20, 40]},
        ]
        prompts.write_text(json.dumps(entries))
        assert command("--stills", "--input", pictures, "--prompts", prompts)[0] == 0
        assert "1 of 3 pictures have no prompt" in caplog.text and "sam2_nano as it is" in caplog.text
        content = json.loads((tmp_path / "out" / "pictures.json").read_text())
        sizes = [(image["file_name"], image["height"], image["width"]) for image in content["images"]]
        assert sizes == [("a.png", 40, 60), ("b.png", 50, 30)]
        names = {category["id"]: category["name"] for category in content["categories"]}
        found = {(a["image_id"], a["track_id"], names[a["category_id"]]) for a in content["annotations"]}
        assert found <= {(1, 1, "rust"), (1, 2, "crack"), (2, 1, "object")}
        assert set(names.values()) == {"rust", "crack", "object"}
        assert files(tmp_path / "out") >= {"Annotations/pictures/a.png", "Overlays/pictures/b.jpg"}

    def test_a_picture_alone_gives_the_masks_it_gives_beside_others(self, command, pictures, tmp_path):
        for name, given in (("one", pictures / "c.png"), ("all", pictures)):
            assert command("--stills", "--input", given, "--box", "2,2,25,35", "--output", tmp_path / name)[0] == 0
        alone, beside = (next((tmp_path / name / "Annotations").glob("*/c.png")) for name in ("one", "all"))
        assert np.array_equal(np.array(Image.open(alone)), np.array(Image.open(beside)))

    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            ({"image": "x.png", "box": [1, 1, 5, 5]}, "there is no picture 'x.png'"),
            ({"image": "a.png", "frame": 3, "box": [1, 1, 5, 5]}, "frame 0 only"),
            ({"image": "b.png", "box": [1, 1, 45, 45]}, "b.png: object 1 on frame 0: the box"),
        ],
    )
    def test_prompts_that_fit_no_picture(self, command, pictures, tmp_path, entry, said):
        (tmp_path / "prompts.json").write_text(json.dumps([entry]))
        status, _, error = command("--stills", "--input", pictures, "--prompts", tmp_path / "prompts.json")
        assert (status, said in error) == (2, True), error
        assert not list((tmp_path / "out").rglob("*.json"))

    def test_unrelated_pictures_that_people_brought(self, command, shared_data, tmp_path):
        status, printed, _ = command(
            "--stills", "--input", shared_data("../cases") / "12_unrelated_pictures", "--box", "30,20,70,60"
        )
        assert status == 0 and "of 6 pictures" in printed
