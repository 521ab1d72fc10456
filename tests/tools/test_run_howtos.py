"""The how-tos: their commands are found, shortened and run; the cheap pages run in their quick form."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from src.config import load_config
from src.core.errors import UserError
from src.data.summary import find_splits, summarize
from tests.sources import recognised
from tools import run_howtos
from tools.run_howtos import Command, commands_of, in_shell, run_page, shortened

PAGES = sorted(page for page in run_howtos.PAGES.glob("*.md") if page.stem != "README")
IN_PROCESS = ("few_images", "several_domains")
MOST_BYTES = 200_000  # of a picture


def page_of(folder: Path, *lines: str) -> Path:
    page = folder / "page.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def bash(text: str) -> Command:
    return Command(Path("page.md"), 1, "bash", text)


class TestCommands:
    def test_they_come_in_order_with_their_lines(self, tmp_path):
        page = page_of(
            tmp_path,
            *("words", "```bash", "one \\", "  --more", "two", "```", "```text", "shown", "```"),
            *("```sh", "needs a GPU", "```", "```python", "x = 1", "", "print(x)", "```"),
        )
        found = [(command.line, command.language, command.text) for command in commands_of(page)]
        assert found == [(3, "bash", "one \\\n  --more"), (5, "bash", "two"), (14, "python", "x = 1\n\nprint(x)\n")]

    def test_a_block_that_is_not_closed(self, tmp_path):
        with pytest.raises(UserError, match=r"page\.md:2: this block is not closed"):
            commands_of(page_of(tmp_path, "words", "```bash", "one"))


class TestShortened:
    @pytest.mark.parametrize(
        ("text", "before", "after"),
        [
            ("python train.py --config a.yaml", "python train.py --config a.yaml", ""),
            ("python -m src predict --config a.yaml", "python -m src predict --config a.yaml", ""),
            ("timeout 9 python train.py \\\n  --config a.yaml || echo $?", "  --config a.yaml", " || echo $?"),
            ("python evaluate.py --config a.yaml > log", "--config a.yaml", " > log"),
            ("python evaluate.py --config a.yaml --x $(ls | head) --y 1", "$(ls | head) --y 1", ""),
            ("python evaluate.py --config a.yaml --x $(ls | head) & kill $!", "$(ls | head)", " & kill $!"),
        ],
    )
    def test_settings_come_last_and_before_what_the_shell_does_next(self, text, before, after):
        short = shortened(bash(text)).text
        settings = "".join(f" --set {setting}" for setting in run_howtos.QUICK)
        assert short.endswith(before + settings + after)

    @pytest.mark.parametrize("text", ["python train.py --init data", "ls", "python -m src groups list a"])
    def test_other_commands_stay(self, text):
        assert shortened(bash(text)).text == text

    def test_the_settings_are_settings(self):
        assert load_config("src/configs/mope.yaml", list(run_howtos.QUICK)).training.max_epochs == 1


class TestRunning:
    def test_a_failure_names_page_line_and_status(self, tmp_path):
        page = page_of(tmp_path, "```bash", "echo fine > written", "exit 7", "echo no > late", "```")
        with pytest.raises(UserError, match=r"page\.md:3: exit status 7 of: exit 7"):
            run_page(page, tmp_path / "work", None, quick=False)
        assert (tmp_path / "work" / "written").exists()
        assert not (tmp_path / "work" / "late").exists()
        assert (tmp_path / "work" / "train.py").exists(), "a copy of the project"

    def test_python_runs_beside_the_project(self, tmp_path):
        page = page_of(tmp_path, "```python", "import src.core.errors", "open('here', 'w').close()", "```")
        run_page(page, tmp_path / "work", None, quick=False)
        assert (tmp_path / "work" / "here").exists()

    def test_data_that_are_given_are_used_and_others_stood_in_for(self, tmp_path):
        (tmp_path / "data" / "cells").mkdir(parents=True)
        (tmp_path / "data" / "cells" / "mine").touch()
        page = page_of(tmp_path, "```bash", "ls datasets/cells datasets/flakes", "mkdir datasets/made", "```")
        run_page(page, tmp_path / "work", tmp_path / "data", quick=False)
        assert (tmp_path / "work/datasets/cells/mine").exists()
        assert (tmp_path / "work/datasets/flakes/test/_annotations.coco.json").exists()

    def test_a_page_that_is_not_there(self):
        with pytest.raises(UserError, match="no how-to is called none; there are"):
            run_howtos.pages_named(["none"])


@pytest.mark.parametrize(
    ("name", "counts", "kind"),
    [
        ("flakes", {"train": 6, "valid": 2, "test": 2}, "coco"),
        ("cells", {"train": 15, "valid": 5}, "coco"),
        ("vocalfolds", {"train": 1}, "davis"),
    ],
)
def test_stand_ins_are_laid_out_as_the_real_sets(tmp_path, name, counts, kind):
    run_howtos.STAND_INS[name](tmp_path / name)
    splits = find_splits(tmp_path / name)
    assert {split: summarize(place).count for split, place in splits.items()} == counts
    assert recognised(splits["train"])[0] == kind


class TestPages:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
    def test_commands_and_a_small_picture(self, page):
        text = page.read_text(encoding="utf-8")
        assert commands_of(page) or page.stem == "concepts", "SAM 3's weights are not here"
        pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert pictures or page.stem in ("concepts", "gpu_12gb", "sam3_tracker"), "what was not run has no picture"
        assert all(0 < (page.parent / picture).stat().st_size <= MOST_BYTES for picture in pictures)

    def test_the_readme_lists_them_all(self):
        listed = re.findall(r"\]\((\w+)\.md\)", (run_howtos.PAGES / "README.md").read_text(encoding="utf-8"))
        assert sorted(set(listed)) == [page.stem for page in PAGES]

    @pytest.mark.parametrize("name", IN_PROCESS)
    def test_the_quick_form_runs(self, run_script, tmp_path, monkeypatch, name):
        """In this process where a command is one of Python's, since imports would take most of the time."""

        def run(command: Command, folder: Path) -> int:
            words = subprocess.run(
                ["bash", "-c", f"printf '%s\\0' {command.text}"], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.split("\0")[:-1]
            if words[0] != "python":
                return in_shell(command, folder)
            monkeypatch.chdir(folder)
            script, *arguments = words[3:] if words[1:3] == ["-m", "src"] else [folder / words[1], *words[2:]]
            status, _, errors = run_script(script, *arguments)
            print(errors)  # shown where the page fails
            return status

        run_page(run_howtos.PAGES / f"{name}.md", tmp_path / "work", None, quick=True, run=run)
