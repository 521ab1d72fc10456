"""Arguments, YAML and every file that a command reads, changed anywhere: read, or refused in one line of a UserError.

The short form runs with the other tests. The long one, 10,000 mutations, runs with ``-m slow``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from src.cli.command import _user_error
from src.cli.predict import frame_rate
from src.config import Config, LoraConfig, load_config
from src.core.errors import UserError
from src.core.streams import lasting_streams
from src.data.checks.cache import make_entry, read_entry
from src.data.decode.images import read_image
from src.data.decode.video import open_stream
from src.data.decode.video_frames import read_header
from src.data.decode.video_writer import VideoWriter
from src.data.prompts import parse_prompts, parse_still_prompts
from src.gating.domain_gate import DomainGate
from src.lora.adapter_io import adapter_state_dict, base_fingerprint, load_adapter, save_adapter
from src.lora.injection import apply_method
from src.models.checkpoint import Checkpoint
from src.models.sam2.build import read_weights
from src.models.sam2.streaming import MemoryBank
from src.train.callbacks.step_log import StepLog
from src.train.provenance import is_run_file, write_start
from src.train.resume import find_checkpoint
from src.train.state import TrainState

SHIPPED = Path("src/configs/mope.yaml")
LORA = LoraConfig(method="lora", rank=2, target_modules=["0"])
ODD = [
    "", "\0", "\x1b[2J", "\u2028", "\udcff", "é", "9" * 5000, "-1", "1e999", "nan", "[" * 900, "{", "!!python/name:os",
    "*a", "&a [*a]", "null", "~", "true", "2024-01-01", "../..", "/dev/null", "/", ".", "x" * 5000, "a=b", "%s",
    "4294967296",
]  # fmt: skip
"""Texts to put in, whatever is fuzzed."""


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with one to four places changed, cut out, repeated or put in, or the end cut off."""
    raw = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randint(0, len(raw))
        match draw.choice(["flip", "set", "cut", "insert", "odd", "zeros", "repeat", "end"]):
            case "flip" if place < len(raw):
                raw[place] ^= 1 << draw.randrange(8)
            case "set":
                raw[place : place + 1] = draw.randbytes(draw.randint(1, 4))
            case "cut":
                del raw[place : place + draw.randint(1, 60)]
            case "insert":
                raw[place:place] = draw.randbytes(draw.randint(1, 20))
            case "odd":
                raw[place : place + draw.randint(0, 9)] = draw.choice(ODD).encode("utf-8", "surrogateescape")
            case "zeros":
                raw[place : place + 64] = bytes(64)
            case "repeat":
                raw[place:place] = raw[place : place + draw.randint(1, 200)]
            case "end" if not draw.randrange(4):
                del raw[place:]
    return bytes(raw)


def mutated_text(text: str, draw: random.Random) -> str:
    """Return an argument changed as bytes are, as a command gets it: bytes that are no text are surrogates."""
    return mutated(text.encode(), draw).decode("utf-8", "surrogateescape")


class Target:
    """Something that a command reads.

    Args:
        read: what a command does with it; it raises UserError where it does not like what it gets.
        file: that is mutated; its content is the one that it has now.
        texts: that are mutated instead, one at a time.
    """

    def __init__(self, read: Callable[[Any], object], file: Path | None = None, texts: tuple[str, ...] = ()) -> None:
        self.read, self.file, self.texts = read, file, texts
        self.content = b"" if file is None else file.read_bytes()

    def try_one(self, draw: random.Random) -> str | None:
        """Mutate it and read it; return why it was refused, None if it was read."""
        try:
            if self.file is None:
                self.read(mutated_text(draw.choice(self.texts), draw))
            else:
                self.file.write_bytes(mutated(self.content, draw))
                self.read(self.file)
        except UserError as error:
            return f"{error.code}: {error}"
        except SystemExit as ended:  # of a parser of arguments
            assert ended.code in (0, 2)
            return "arguments"
        except (OSError, ValueError) as error:
            told = _user_error(error)
            if not isinstance(told, UserError):
                raise
            return f"{told.code}: {told}"
        finally:
            if self.file is not None:
                self.file.write_bytes(self.content)  # what others read together with it is whole
        return None


def base_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def targets(folder: Path, tiny_yaml: Path) -> dict[str, Target]:
    """Return everything that is fuzzed, by name, each in a folder of its own."""

    def place(name: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    config, model = load_config(tiny_yaml, [f"output_dir={folder / 'run'}"]), base_model()
    apply_method(model, LORA)
    save_adapter(model, folder / "adapter", LORA, {"model_name": "sam2_nano"})
    gate = DomainGate("base")
    gate.fit("cells", torch.randn(9, 3, 4))
    gate.save(place("gate/x").parent)
    progress = TrainState("20260101-000000_lora", step=1).to_checkpoint()
    Checkpoint(config, "base", adapter_state_dict(model), {}, {}, {}, progress).save(place("run/last.pt"))
    save_file({"a": torch.zeros(3)}, place("base/base.safetensors"))
    torch.save({"model": {"a": torch.zeros(3)}}, place("base/base.pt"))
    torch.save({"format_version": 1, "bank": {}}, place("bank/bank.pt"))
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(place("image/a.png"))
    Image.new("L", (16, 16), 1).save(place("mask/a.png"))
    place("prompts/p.json").write_text(
        json.dumps([{"object": 1, "box": [0, 0, 9, 9]}, {"object": 2, "frame": 3, "points": [[1, 2]], "labels": [1]}])
    )
    with VideoWriter(place("video/a.mp4")) as writer:
        for _ in range(3):
            writer.write(np.zeros((16, 16, 3), np.uint8))
    place("yaml/a.yaml").write_text(tiny_yaml.read_text())
    place("steps/steps.jsonl").write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1, 9)))
    write_start(place("start/x").parent, 0, "base", {}, "cpu")
    entry = make_entry("a", [], {"decoded": True, "issues": []})
    place("check/check.json").write_text(json.dumps(entry))
    return {
        "--set": Target(lambda text: load_config(SHIPPED, [text]), texts=(
            "training.seed=3", "lora.rank=4", "dataset.name=cells", "evaluation.domains=[]", "model.checkpoint=a.pt",
            "training.device=cpu", "lora.target_modules=[a, b]", "output_dir=/tmp/x",
        )),
        "--config": Target(lambda text: load_config(text), texts=("src/configs/mope.yaml", "none.yaml", "src/configs")),
        "--box": Target(lambda text: parse_prompts([text], [], [], None), texts=("2@30:1,2,30,40", "0,0,1,1")),
        "--point": Target(lambda text: parse_still_prompts([], [text]), texts=("2@30:1,2,0", "1.5,2e3")),
        "--mask": Target(lambda text: parse_prompts([], [], [text], None), texts=("2@3:a.png", f"{folder}/mask/a.png")),
        "--fps": Target(_rate, texts=("25", "29.97", "30000/1001")),
        "--input": Target(lambda text: list(open_stream(text)), texts=(f"{folder}/video/a.mp4", f"{folder}/image")),
        "arguments": Target(_arguments, texts=("--config a.yaml --set b=c", "--input a --box 1,2,3,4", "list a")),
        "YAML": Target(load_config, place("yaml/a.yaml")),
        "prompts": Target(lambda file: parse_prompts([], [], [], file), place("prompts/p.json")),
        "mask": Target(lambda file: parse_prompts([], [], [str(file)], None), place("mask/a.png")),
        "image": Target(read_image, place("image/a.png")),
        "video": Target(lambda file: (read_header(file), list(open_stream(file))), place("video/a.mp4")),
        "adapter": Target(lambda file: _load(file.parent), folder / "adapter/adapter.safetensors"),
        "adapter's config": Target(lambda file: _load(file.parent), folder / "adapter/adapter_config.json"),
        "gate": Target(lambda file: DomainGate.beside(file.parent, "base"), folder / "gate/domain_gate.safetensors"),
        "checkpoint": Target(lambda file: find_checkpoint(file.parent), place("run/last.pt")),
        "base .safetensors": Target(read_weights, place("base/base.safetensors")),
        "base .pt": Target(read_weights, place("base/base.pt")),
        "memory bank": Target(MemoryBank.load, place("bank/bank.pt")),
        "steps.jsonl": Target(_open_steps, place("steps/steps.jsonl")),
        "run.json": Target(is_run_file, place("start/run.json")),
        "data check": Target(lambda file: read_entry(file, "a", True), place("check/check.json")),
    }  # fmt: skip


def _rate(text: str) -> None:
    try:
        assert 0 < frame_rate(text) <= 1000
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error), "arguments") from None


def _arguments(text: str) -> None:
    with lasting_streams():
        for name in ("train", "predict", "groups", "demo"):
            try:
                import_module(f"src.cli.{name}").build_parser().parse_args(text.split(" "))
            except SystemExit as ended:
                assert ended.code in (0, 2)


def _load(folder: Path) -> None:
    model = base_model()
    fingerprint = base_fingerprint(model)
    load_adapter(model, folder)
    assert base_fingerprint(model) == fingerprint


def _open_steps(file: Path) -> None:
    log = StepLog()
    log.on_fit_start(SimpleNamespace(folder=file.parent, state=SimpleNamespace(step=5)))
    log.on_fit_end(SimpleNamespace())
    for line in file.read_bytes().splitlines():
        assert json.loads(line.lstrip(b"\0"))["step"] <= 5


def fuzz(targets: dict[str, Target], count: int, seed: int) -> dict[str, Counter[bool]]:
    """Try so many mutations, in turns; return how often each target was refused. Fails with what reproduces it."""
    found: dict[str, Counter[bool]] = {name: Counter() for name in targets}
    names, raw = list(targets), []
    for number in range(count):
        name = names[number % len(names)]
        try:
            told = targets[name].try_one(random.Random(f"{seed} {number}"))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raw.append(f"{name}, mutation {number} of seed {seed}: {error!r:.300} in {place.filename}, {place.lineno}")
            continue
        found[name][told is not None] += 1
    assert not raw, "\n".join(raw[:30])
    return found


@pytest.fixture
def fuzzed(tmp_path, tiny_yaml) -> dict[str, Target]:
    return targets(tmp_path, tiny_yaml)


def test_what_is_not_mutated_is_read(fuzzed):
    for name in ("YAML", "prompts", "mask", "image", "video", "adapter", "gate", "checkpoint", "base .pt"):
        fuzzed[name].read(fuzzed[name].file)
    assert isinstance(load_config(SHIPPED), Config)


def test_a_few_mutations(fuzzed, capsys):
    found = fuzz(fuzzed, 10 * len(fuzzed), 0)
    assert sum(counts.total() for counts in found.values()) == 10 * len(fuzzed)
    assert sum(counts[True] for counts in found.values()) > 50, "hardly anything was refused"


@pytest.mark.slow
def test_ten_thousand_mutations(fuzzed, capsys):
    began = time.perf_counter()
    found = fuzz(fuzzed, 10_000, 1)
    with capsys.disabled():
        for name, counts in found.items():
            print(f"{name}: {counts.total()} mutations, {counts[True]} refused, {counts[False]} read")
        print(f"{time.perf_counter() - began:.0f} s")
