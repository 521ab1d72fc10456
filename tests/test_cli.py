"""What all commands share: help, ``--quiet``, errors in one line, the end on Ctrl-C, progress without a terminal."""

from __future__ import annotations

import io
import runpy
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from src import cli
from src.errors import UserError

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "tools", "benchmarks", "examples")
    for path in (ROOT / folder).glob("*.py")
    if "cli.run(" in path.read_text(encoding="utf-8")
)


@pytest.fixture(autouse=True)
def speaks_again():
    yield
    cli.be_quiet(False)


@pytest.fixture(scope="session")
def parsers() -> dict[str, ArgumentParser]:
    """Every command's parser, built as the command builds it."""
    found: dict[str, ArgumentParser] = {}
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            patch.setattr(cli, "run", lambda _, parser, command=command: found.setdefault(command, parser))
            patch.setattr(sys, "argv", [command])
            runpy.run_path(str(ROOT / command), run_name="__main__")
    return found


def ending(main, parser, monkeypatch, debug=False) -> int:
    monkeypatch.setattr(parser, "parse_args", lambda: Namespace(quiet=False, debug=debug))
    with pytest.raises(SystemExit) as caught:
        cli.run(main, parser)
    return int(caught.value.code or 0)


def raising(error):
    def main(_):
        raise error

    return main


def test_all_commands_are_looked_at():
    assert {"train.py", "evaluate.py", "tools/predict.py", "tools/groups.py"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
class TestEveryCommand:
    def test_help_fits_a_screen_and_has_an_example(self, parsers, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        lines = parsers[command].format_help().splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 125
        assert any(f"python {command} " in line for line in lines[lines.index("example:") :])
        assert any("--quiet" in line for line in lines) and any("--debug" in line for line in lines)

    def test_ctrl_c(self, parsers, command, monkeypatch, capsys):
        assert ending(raising(KeyboardInterrupt()), parsers[command], monkeypatch) == 130
        assert capsys.readouterr().err == "stopped by Ctrl-C\n"

    def test_a_users_mistake(self, parsers, command, monkeypatch, capsys):
        assert ending(raising(UserError("x.json: broken; mend it")), parsers[command], monkeypatch) == 2
        assert capsys.readouterr().err == "error: x.json: broken; mend it\n"

    def test_any_other_error_is_one_line_and_debug_shows_where(self, parsers, command, monkeypatch, capsys):
        assert ending(raising(ValueError("odd\nvalue")), parsers[command], monkeypatch) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ValueError: odd value (test_cli.py, line ")
        assert "--debug" in line
        assert ending(raising(ValueError("odd")), parsers[command], monkeypatch, debug=True) == 1
        assert "Traceback" in capsys.readouterr().err


def test_memory_that_ran_out_leads_to_the_dry_run(parsers, monkeypatch, capsys):
    error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    assert ending(raising(error), parsers["train.py"], monkeypatch) == 1
    assert "--dry-run says which settings" in capsys.readouterr().err


def test_quiet_says_results_only(capsys):
    def main(_):
        cli.say("on the way")
        list(cli.progress_bar(range(3)))
        print("result")

    parser = cli.parser("what", "python what.py")
    parser.set_defaults(quiet=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["what.py"])
        cli.run(main, parser)
    assert capsys.readouterr() == ("result\n", "")


class TestProgress:
    def test_without_a_terminal_lines_come_now_and_then(self, monkeypatch):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(cli, "PLAIN_SECONDS", 0)
        for _ in cli.progress_bar(range(3), desc="reading"):
            pass
        lines = stream.getvalue().splitlines()
        assert lines and all(line.startswith("reading: ") for line in lines)
        assert "3/3" in lines[-1]
        assert "\r" not in stream.getvalue()

    def test_what_is_done_soon_gets_no_line(self, monkeypatch):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(cli.progress_bar(range(3))) == [0, 1, 2]
        assert stream.getvalue() == ""
