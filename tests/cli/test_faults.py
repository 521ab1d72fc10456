"""What once came out as a raw exception is one line, and the exit status 2."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

import pytest

from src.cli import command
from src.cli.predict import frame_rate
from src.config import load_config
from src.core.device import pick_device
from src.core.errors import is_out_of_memory
from src.core.files import refuse_unreadable
from src.data.decode.images import read_image
from src.data.prompts import parse_prompts
from tests.core.test_folder_lock import Holder
from tests.errors import refuses

SHIPPED = "src/configs/mope.yaml"


@pytest.mark.parametrize("text", ["lora: {rank: \x07}", "\x00", "a: \ufffe", "output_dir: \x1b[31m"])
def test_control_characters_in_yaml(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with refuses("config.not-yaml", "a.yaml"):
        load_config(tmp_path / "a.yaml")
    with refuses("config.override", "--set"):
        load_config(SHIPPED, [f"output_dir={text}"])


@pytest.mark.parametrize("seed", [2**32, 10**400, -1])
def test_a_seed_that_no_generator_takes(seed):
    with refuses("config.mistakes", "training.seed"):
        load_config(SHIPPED, [f"training.seed={seed}"])


def test_a_device_without_numbers():
    with refuses("device.unusable", "'meta'"):
        pick_device("meta")


@pytest.mark.parametrize("text", [f"{'9' * 5000}:1,2,3,4", f"1@{'9' * 5000}:1,2,3,4", f"1@{'9' * 10}:1,2,3,4"])
def test_prompts_of_thousands_of_digits(text):
    with refuses("prompt.form", "--box"):
        parse_prompts([text], [], [], None)


@pytest.mark.parametrize("text", ["1e999999999", "9" * 5000, "1/" + "9" * 5000, "1001", "0", "nan", "1/0", "0.0000001"])
def test_frame_rates_that_no_file_holds(text):
    with pytest.raises(argparse.ArgumentTypeError):
        frame_rate(text)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/closed"),
        OSError(errno.ELOOP, os.strerror(errno.ELOOP), Path("/data/closed")),
        NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), b"/data/closed"),
    ],
)
def test_what_the_system_refuses_about_a_path(error, capsys):
    def main(_: argparse.Namespace) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        command.run(main, command.parser("what", "how"), [])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: /data/closed: ")


def test_a_path_with_nul(capsys):
    with pytest.raises(SystemExit) as ended:
        command.run(lambda _: Path("a\0b").read_bytes() and None, command.parser("what", "how"), [])
    assert ended.value.code == 2 and "NUL" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed():
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/closed")
    with refuses("file.unreadable", "/data/closed"):
        refuse_unreadable(refused)


def test_memory_that_runs_out_is_no_damage_of_an_image(tmp_path, monkeypatch):
    def cannot(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr("src.data.decode.images.Image.open", cannot)
    with refuses("image.out-of-memory", "a.png"):
        read_image(tmp_path / "a.png")
    assert is_out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert not is_out_of_memory(ValueError("memory_stride"))


def test_a_second_run_in_a_folder(run_script, tiny_yaml, tmp_path):
    holder = Holder(tmp_path / "run")
    status, _, errors = run_script("train", "--config", tiny_yaml, "--set", f"output_dir={tmp_path / 'run'}")
    assert status == 2 and f"process {holder.process} on " in errors and "--force" in errors
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]
    holder.kill()
