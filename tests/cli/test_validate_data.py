"""sam2-mope validate-data: every data set of a run, checked and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = "validate-data"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(run_script, tiny_yaml, tmp_path) -> Command:
    """Run the tool on the tiny run, in this process: (exit status, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        fixed = ["--config", tiny_yaml, "--workers", "0", "--set", f"output_dir={tmp_path / 'run'}"]
        return run_script(SCRIPT, *fixed, *arguments)

    return run


@pytest.fixture
def damaged(tiny_data, tmp_path) -> list[str]:
    """``--set`` values for a training set with one image missing and one annotation without a segmentation."""
    folder = tmp_path / "train"
    shutil.copytree(tiny_data / "train", folder)
    sorted(folder.glob("*.jpg"))[0].unlink()
    path = folder / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][-1]["segmentation"] = []
    path.write_text(json.dumps(content))
    return ["--set", f"dataset.train_img_folder={folder}", "--set", f"dataset.train_ann_file={path}"]


def test_all_is_well(command):
    status, output, _ = command()
    lines = output.splitlines()
    assert status == 0
    assert [line.split(" (")[0] for line in lines if not line.startswith(" ")][:3] == [
        "target, train", "target, valid", "target, test",
    ]  # fmt: skip
    assert "5 images or videos read as coco, 5 usable: 5 frames, " in lines[1]
    assert lines[-1] == "OK: 3 data sets, no errors"


def test_one_split_only(command):
    status, output, _ = command("--split", "valid")
    assert status == 0
    assert "train" not in output
    assert output.splitlines()[-1] == "OK: 1 data set, no errors"


def test_domains_that_are_only_evaluated(command, tiny_data):
    domain = f"[{{name: more, img_folder: {tiny_data}/valid, ann_file: {tiny_data}/valid/_annotations.coco.json}}]"
    _, output, _ = command("--set", f"evaluation.domains={domain}")
    assert output.splitlines()[-3].startswith("more (")
    assert output.splitlines()[-1] == "OK: 4 data sets, no errors"


def test_errors_are_listed_and_repairs_counted(command, damaged, tmp_path):
    status, output, _ = command(*damaged, "--report", tmp_path / "found.json")
    assert status == 2
    (error,) = [line for line in output.splitlines() if line.startswith("  error: ")]
    assert ".jpg: no such file; " in error
    assert "  repaired: 1 × annotations without a segmentation, left out (first: " in output
    assert output.splitlines()[-1] == "not OK: 1 errors in 1 of 3 data sets"
    train, valid, _ = json.loads((tmp_path / "found.json").read_text())
    assert (train["data_set"], valid["data_set"]) == ("target, train", "target, valid")
    assert [issue["severity"] for issue in train["issues"]].count("error") == 1
    assert valid["issues"] == []


def test_errors_are_left_out_where_that_is_wanted(command, damaged, tmp_path):
    status, output, _ = command(*damaged, "--skip-bad")
    assert status == 0
    path = tmp_path / "run" / "skipped.json"
    assert output.splitlines()[-1] == f"OK: 3 data sets, without 1 that are left out, listed in {path}"
    assert len(json.loads(path.read_text())) == 1


def test_more_errors_than_are_shown(command, damaged):
    path = Path(damaged[3].split("=")[1])
    content = json.loads(path.read_text())
    content["annotations"] += [7] * 30
    path.write_text(json.dumps(content))
    status, output, _ = command(*damaged, "--split", "train")
    assert status == 2
    assert output.count("  error: ") == 20
    assert "… and 11 errors more; --report FILE lists all" in output


@pytest.mark.parametrize("content", ["{", '{"images": [], "annotations": []}'])
def test_a_set_that_cannot_be_used_does_not_hide_the_others(command, damaged, content):
    Path(damaged[3].split("=")[1]).write_text(content)
    status, output, _ = command(*damaged, "--skip-bad")
    assert status == 2
    assert output.count("the data set cannot be used") == 1
    assert output.splitlines()[-1] == "not OK: 1 errors in 1 of 3 data sets"


def test_broken_json_that_was_looked_for_is_named_once(command, damaged):
    Path(damaged[3].split("=")[1]).write_text("{")
    _, output, _ = command(*damaged[:2], "--set", "dataset.train_ann_file=null", "--split", "train")
    (error,) = [line for line in output.splitlines() if line.startswith("  error: ")]
    assert error.startswith(f"  error: {damaged[3].split('=')[1]}: not valid JSON: ")
    assert error.count(damaged[1].split("=")[1]) == 1


@pytest.mark.parametrize("skip", [[], ["--skip-bad"]], ids=["", "skip-bad"])
def test_a_set_of_damage_alone_tells_it_once(command, damaged, tmp_path, skip):
    path = Path(damaged[3].split("=")[1])
    content = json.loads(path.read_text())
    lost = path.parent / content["images"][0]["file_name"]
    lost.unlink(missing_ok=True)
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    path.write_text(json.dumps(content))
    report = tmp_path / "found.json"
    status, output, _ = command(*damaged, "--split", "train", "--report", report, *skip)
    assert status == 2
    assert output.count(f"{lost}: no such file") == report.read_text().count("no such file") == 1
    assert output.splitlines()[-1] == "not OK: 1 errors in 1 of 1 data set"


def test_headers_only(command, damaged, tiny_data):
    folder = Path(damaged[1].split("=")[1])
    shutil.copytree(tiny_data / "train", folder, dirs_exist_ok=True)
    image = next(folder.glob("*.jpg"))
    image.write_bytes(image.read_bytes()[:-300])
    assert command(*damaged, "--headers-only")[0] == 0
    assert command(*damaged)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--workers", "-1"], "--workers -1: must be 0 or more"), (["--set", "dataset.skip_bda=1"], "did you mean")],
)
def test_mistakes(command, arguments, message):
    status, _, errors = command(*arguments)
    assert status == 2
    assert message in errors


def test_help_ends_with_an_example(command):
    status, output, _ = command("--help")
    assert status == 0
    assert "example:\n  python -m src validate-data --config " in output


def test_a_preview_is_drawn(command, tmp_path):
    status, output, _ = command("--preview", tmp_path / "sheet.png", "--clips", "2")
    assert status == 0
    assert "2 clips as training will see them" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * 64, "a column for each of three frames"
        assert len(sheet.getcolors(10**6) or []) > 100


def test_no_preview_of_damaged_data(command, damaged, tmp_path):
    status, output, _ = command(*damaged, "--preview", tmp_path / "sheet.png")
    assert status == 2
    assert "preview: not drawn, since there are errors" in output.splitlines()
    assert not (tmp_path / "sheet.png").exists()


def test_copies_of_one_picture_in_two_splits_are_warned_of(command, tiny_data, tmp_path):
    settings = []
    for number, split in enumerate(("train", "val")):
        folder = tmp_path / split
        shutil.copytree(tiny_data / "train", folder)
        path = folder / "_annotations.coco.json"
        content = json.loads(path.read_text())
        first = content["images"][0]
        called = f"cell_jpg.rf.{number:032x}.jpg"
        (folder / first["file_name"]).rename(folder / called)
        first["file_name"] = called
        path.write_text(json.dumps(content))
        settings += ["--set", f"dataset.{split}_img_folder={folder}", "--set", f"dataset.{split}_ann_file={path}"]
    status, output, _ = command(*settings)
    assert status == 0
    copies, same = [line for line in output.splitlines() if line.startswith("warning: ") and "train" in line]
    assert "1 pictures have copies both in target, train and in target, valid, such as cell_jpg" in copies
    assert "5 files are the same byte for byte in target, train and in target, valid, such as " in same
