"""What all commands share: help, ``--quiet``, errors in one line, the end on Ctrl-C, progress without a terminal."""

from __future__ import annotations

import io
import logging
import runpy
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path

import pytest

from src import cli
from src.cli.main import COMMANDS
from src.core.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    f"{folder}.{path.stem}"
    for folder in ("tools", "benchmarks", "examples")
    for path in (ROOT / folder).glob("*.py")
    if "cli.run(" in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="session")
def parsers(installed: None) -> dict[str, ArgumentParser]:
    """Every command's parser, built as the command builds it."""
    found = {name: import_module(f"src.cli.{name.replace('-', '_')}").build_parser() for name in COMMANDS}
    with pytest.MonkeyPatch.context() as patch:
        for script in SCRIPTS:
            for package in (cli, import_module("sam2_mope.cli")):
                patch.setattr(package, "run", lambda _, parser, script=script: found.setdefault(script, parser))
            patch.setattr(sys, "argv", [script])
            runpy.run_module(script, run_name="__main__")
    return found


def ending(main, parser, monkeypatch, debug=False) -> int:
    monkeypatch.setattr(parser, "parse_args", lambda _: Namespace(quiet=False, debug=debug))
    with pytest.raises(SystemExit) as caught:
        cli.run(main, parser)
    return int(caught.value.code or 0)


def raising(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize("command", [*COMMANDS, *SCRIPTS])
class TestEveryCommand:
    def test_help_fits_a_screen_and_has_an_example(self, parsers, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        lines = parsers[command].format_help().splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 126
        assert any(f" {command} " in line for line in lines[lines.index("example:") :])
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
        assert line.startswith("error: ValueError: odd value (test_command.py, line ")
        assert "--debug" in line
        assert ending(raising(ValueError("odd")), parsers[command], monkeypatch, debug=True) == 1
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_at_once(command):
    """What takes seconds to import is imported by what needs it."""
    code = (
        "import sys; sys.argv[1:] = [sys.argv[1], '--help']\n"
        "from src.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print([name for name in ('torch', 'sam2', 'scipy', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_debug_shows_an_errors_code(parsers, monkeypatch, capsys):
    error = UserError("x.json: broken", "data.broken")
    assert ending(raising(error), parsers["train"], monkeypatch, debug=True) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: x.json: broken [data.broken]"


def test_a_line_break_in_a_name_is_no_second_line(parsers, monkeypatch, capsys):
    error = UserError("a\nb/x.json: 2 errors:\n  one\n  two", "data.broken")
    assert ending(raising(error), parsers["train"], monkeypatch) == 2
    assert capsys.readouterr().err == "error: a\\nb/x.json: 2 errors:\n  one\n  two\n"


def test_memory_that_ran_out_leads_to_the_dry_run(parsers, monkeypatch, capsys):
    error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    assert ending(raising(error), parsers["train"], monkeypatch) == 1
    assert "dry-run --config YAML says which settings" in capsys.readouterr().err


def test_quiet_says_results_only(capsys):
    def main(_):
        logging.getLogger("src.any").info("on the way")
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
        monkeypatch.setattr("src.core.console.PLAIN_SECONDS", 0)
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
