"""Whole commands on changed folders of data: ``validate-data`` and ``init`` end well, or say why not.

A folder of each format is valid before. Bytes of its files, values of its JSON and the names of its files are changed.
The short form runs with the other tests. The long one, 1,000 folders, runs with ``-m slow``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from src.cli import command, init, validate_data
from src.data.decode.video_writer import VideoWriter
from src.data.synthetic import CELLS, make_videos
from src.data.writers import write_coco, write_davis
from tests.test_fuzz_files import ODD, mutated
from tests.writers import write_folder, write_sav, write_tracked_coco, write_ytvis

SIDE = 32
SQUARE = [[4, 4], [20, 4], [20, 20], [4, 20]]
NAMES = ["", "a\nb", "\x1b[2J", "e\u0301", "é", "É", "%C3%A9", "x" * 250, "|<b>`", "a b", "0", "00000", ".hidden"]
"""What names of files are made of."""


def _stills(folder: Path, count: int = 3) -> list[str]:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((SIDE, SIDE, 3), 40 * number, np.uint8)).save(folder / f"im{number}.png")
    return [f"im{number}" for number in range(count)]


def _yolo(folder: Path) -> None:
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text("names: [cell, dust]\n")
    line = " ".join(str(value / SIDE) for point in SQUARE for value in point)
    for name in _stills(folder / "images"):
        (folder / "labels" / f"{name}.txt").write_text(f"0 {line}\n1 {line}\n")


def _labelme(folder: Path) -> None:
    for name in _stills(folder):
        shape = {"label": "cell", "shape_type": "polygon", "points": SQUARE, "group_id": None, "flags": {}}
        content = {"imagePath": f"{name}.png", "imageHeight": SIDE, "imageWidth": SIDE, "shapes": [shape]}
        (folder / f"{name}.json").write_text(json.dumps(content))


def _panoptic(folder: Path) -> None:
    names, masks = _stills(folder), folder / "panoptic"
    masks.mkdir()
    for name in names:
        Image.new("RGB", (SIDE, SIDE), (7, 0, 0)).save(masks / f"{name}.png")
    segments = [{"id": 7, "category_id": 1, "iscrowd": 0, "area": SIDE * SIDE, "bbox": [0, 0, SIDE, SIDE]}]
    content = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "height": SIDE, "width": SIDE} for n, name in enumerate(names)
        ],
        "annotations": [
            {"image_id": n, "file_name": f"{name}.png", "segments_info": segments} for n, name in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "cell", "isthing": 1}],
    }
    (folder / "panoptic.json").write_text(json.dumps(content))


def _video_masks(folder: Path) -> None:
    (folder / "videos").mkdir(parents=True)
    (folder / "masks/clip").mkdir(parents=True)
    with VideoWriter(folder / "videos/clip.mp4") as writer:
        for number in range(3):
            writer.write(np.full((SIDE, SIDE, 3), 40 * number, np.uint8))
            mask_HW = np.zeros((SIDE, SIDE), np.uint8)
            mask_HW[4:20, 4:20] = 1
            Image.fromarray(mask_HW).save(folder / f"masks/clip/{number:05d}.png")


def write_formats(folder: Path) -> list[Path]:
    """Write a valid folder of each format; return them."""
    stills, videos = make_videos(CELLS, 3, 0, frames=1, side=SIDE), make_videos(CELLS, 2, 0, frames=3, side=SIDE)
    writers: dict[str, Callable[[Path], None]] = {
        "coco": lambda path: write_coco(path, stills),
        "ytvis": lambda path: write_ytvis(path, videos),
        "tracked": lambda path: write_tracked_coco(path, videos),
        "davis": lambda path: write_davis(path, videos, list_as="train"),
        "sav": lambda path: write_sav(path, videos),
        "folder": lambda path: write_folder(path, stills),
        "yolo": _yolo,
        "labelme": _labelme,
        "panoptic": _panoptic,
        "video_masks": _video_masks,
    }
    for name, write in writers.items():
        write(folder / name)
    return [folder / name for name in writers]


def changed_json(content: Any, draw: random.Random) -> Any:
    """Return JSON with one value anywhere dropped, repeated, or another."""
    holder = content
    while isinstance(holder, (dict, list)) and holder:
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], (dict, list)) and holder[key] and draw.randrange(5):
            holder = holder[key]
            continue
        match draw.choice(["drop", "repeat", "odd", "number", "type", "type"]):
            case "drop":
                del holder[key]
            case "repeat" if isinstance(holder, list):
                holder.insert(key, holder[key])
            case "odd" | "repeat":
                holder[key] = draw.choice([text.encode("utf-8", "replace").decode() for text in ODD])
            case "number":
                holder[key] = draw.choice([0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf")])
            case "type":
                holder[key] = draw.choice([None, True, [], {}, [[]], [None], {"a": 1}, "1", [1, 2, 3], [[1, 2]], "é"])
        break
    return content


def change_folder(folder: Path, draw: random.Random) -> str:
    """Change one to three things in a folder; return what."""
    done = []
    for _ in range(draw.randint(1, 3)):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            break
        annotations = [path for path in files if path.suffix in (".json", ".txt", ".yaml")]
        file = draw.choice(annotations if annotations and draw.randrange(2) else files)
        what = draw.choice(["bytes", "bytes", "value", "value", "value", "name", "delete", "copy", "kind", "size"])
        done.append(f"{what} of {file.relative_to(folder)}")
        try:
            _change(file, what, draw, files)
        except OSError:  # the system refuses a name
            continue
    return ", ".join(done)


def _change(file: Path, what: str, draw: random.Random, files: list[Path]) -> None:
    match what:
        case "value" if file.suffix == ".json":
            try:
                content = json.loads(file.read_bytes())
            except ValueError:
                return
            file.write_text(json.dumps(changed_json(content, draw)))
        case "bytes" | "value":
            file.write_bytes(mutated(file.read_bytes(), draw))
        case "name":
            name = os.fsencode(draw.choice(NAMES)) + draw.choice([b"", b"\xff", os.fsencode(file.stem)])
            suffix = draw.choice([file.suffix, file.suffix, file.suffix.upper(), ".gif", ""])
            file.rename(os.fsdecode(os.path.join(os.fsencode(file.parent), name + os.fsencode(suffix))))
        case "delete":
            file.unlink()
        case "copy":
            shutil.copy(draw.choice(files), file)
        case "kind":
            file.unlink()
            match draw.choice(["folder", "link out", "loop", "pipe", "empty"]):
                case "folder":
                    file.mkdir()
                case "link out":
                    file.symlink_to("/etc/hostname")
                case "loop":
                    file.symlink_to(file.name)
                case "pipe":
                    os.mkfifo(file)
                case "empty":
                    file.touch()
        case "size" if file.suffix in (".png", ".jpg"):
            mode = draw.choice(["L", "RGB", "RGBA", "I;16", "P", "1", "CMYK"])
            Image.new(mode, (draw.randint(1, 40), SIDE)).save(file, format="TIFF" if mode == "CMYK" else "PNG")


def _took_too_long(*_: object) -> None:
    raise TimeoutError("the command has waited for a minute")


def run_command(main: Callable[..., Any], parser: Any, words: list[str], capsys: pytest.CaptureFixture) -> int:
    """Run a command as a user does; fail where it ends in anything but 0, or 2 with a line that says why.

    It fails, too, where a command waits for ever, as for a pipe that nobody writes into.
    """
    signal.signal(signal.SIGALRM, _took_too_long)
    signal.alarm(60)
    with pytest.raises(SystemExit) as ended:
        command.run(main, parser, words)
    signal.alarm(0)
    said = capsys.readouterr()
    assert ended.value.code in (0, 2), said.err[-600:]
    assert "failed on" not in said.out + said.err, f"a reader raised: {(said.out + said.err)[-600:]}"
    assert all(line.isprintable() for line in (said.out + said.err).split("\n")), repr(said.out + said.err)[-600:]
    if ended.value.code == 2:
        assert "error: " in said.out + said.err, said.out + said.err
        assert len(said.err.splitlines()) <= 1, said.err
    return int(ended.value.code)


class Fuzz:
    """Folders of every format, changed in turns, and what the commands made of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture) -> None:
        self.capsys, self.work, self.yaml = capsys, folder / "work", folder / "mine.yaml"
        self.formats = write_formats(folder / "valid")
        self.base = {"model": {"name": "sam2_nano"}, "output_dir": str(folder / "run")}

    def validate(self, skip_bad: bool = False) -> int:
        content = {**self.base, "dataset": {"train_img_folder": str(self.work)}}
        self.yaml.write_text(yaml.safe_dump(content))
        words = ["--config", str(self.yaml), "--split", "train", "--workers", "0", *["--skip-bad"] * skip_bad]
        return run_command(validate_data.main, validate_data.build_parser(), words, self.capsys)

    def init(self) -> int:
        written = self.work.parent / "init" / "mine.yaml"
        shutil.rmtree(written.parent, ignore_errors=True)
        written.parent.mkdir()
        return run_command(init.main, init.build_parser(), [str(self.work), "--output", str(written)], self.capsys)

    def take(self, source: Path) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(source, self.work, symlinks=True)

    def run(self, numbers: range, seed: int) -> dict[str, Counter[str]]:
        """Try so many changed folders; return how often each format's was read or refused. Fails with what it was."""
        found: dict[str, Counter[str]] = {path.name: Counter() for path in self.formats}
        failed = []
        for number in numbers:
            source, draw = self.formats[number % len(self.formats)], random.Random(f"{seed} {number}")
            self.take(source)
            what = change_folder(self.work, draw)
            try:
                status = self.init() if draw.randrange(4) == 0 else self.validate(skip_bad=bool(draw.randrange(2)))
            except (Exception, AssertionError) as error:
                failed.append(f"{source.name}, folder {number} of seed {seed}, {what}: {error!r:.900}")
                continue
            found[source.name]["refused" if status else "read"] += 1
        assert not failed, f"{len(failed)} failed:\n" + "\n".join(failed[:20])
        return found


@pytest.fixture
def fuzz(tmp_path, capsys) -> Fuzz:
    return Fuzz(tmp_path, capsys)


def test_what_is_not_changed_is_read(fuzz):
    for source in fuzz.formats:
        fuzz.take(source)
        assert fuzz.validate() == 0, source.name


def test_a_few_changed_folders(fuzz):
    found = fuzz.run(range(100), 0)
    assert sum(counts["refused"] for counts in found.values()) > 20, "hardly anything was refused"
    assert sum(counts["read"] for counts in found.values()) > 10, "hardly anything was read"


@pytest.mark.slow
def test_a_thousand_changed_folders(fuzz, capsys):
    began = time.perf_counter()
    found = fuzz.run(range(1000), 1)
    with capsys.disabled():
        for name, counts in found.items():
            print(f"{name}: {counts.total()} folders, {counts['refused']} refused, {counts['read']} read or mended")
        print(f"{time.perf_counter() - began:.0f} s")
