"""A command goes on where nobody reads what it says, and what it says does nothing to a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from src.core.streams import LastingStream, in_markdown, one_line, printable
from src.evaluation.text_table import aligned

ROOT = Path(__file__).parents[2]

COMMAND = """
import os, sys
from pathlib import Path
from src.cli import command

def main(arguments):
    for number in range(3000):
        print("a line that somebody may read: \\u00e9", number)
        print("warning", file=sys.stderr)
        sys.stdout.flush()
    with open(sys.argv[1], "w") as file:
        assert file.fileno() > 2, "what is written to standard error would be written into it"
        file.write("done")
    return 0

command.run(main, command.parser("what", "how"), [])
"""


@pytest.mark.parametrize(
    "how",
    [
        '"$0" -c "$1" "$2" 2>&1 | head -n 1',
        '"$0" -c "$1" "$2" >&- 2>&-',
        '"$0" -c "$1" "$2" >&- 2>&- <&-',
        '"$0" -c "$1" "$2" > /dev/full 2> /dev/full',
        'PYTHONIOENCODING=ascii "$0" -c "$1" "$2" > /dev/null',
    ],
    ids=["head", "closed", "all closed", "full", "ascii"],
)
def test_a_command_ends_well(how, tmp_path):
    done = tmp_path / "done"
    bash = ["bash", "-o", "pipefail", "-c", how, sys.executable, COMMAND, str(done)]
    ended = subprocess.run(bash, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, done.read_text()) == (0, "done"), ended.stderr
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr


def test_control_characters_are_escaped_and_progress_bars_work():
    stream = io.StringIO()
    lasting = LastingStream(stream)
    for text in ("\x1b[2J\x1b]0;title\x07 a\tb\n", "\r", "\x1b[A", "\n\n", "\u202egpj.exe", "\r 50% \x9b31m"):
        lasting.write(text)
    assert stream.getvalue() == (
        "\\x1b[2J\\x1b]0;title\\x07 a\tb\n" + "\r" + "\x1b[A" + "\n\n" + "\\u202egpj.exe" + "\r 50% \\x9b31m"
    )


def test_one_line_is_one_line():
    assert one_line("a\nb\r\u2028c\x1b") == "a\\nb\\r\\u2028c\\x1b"
    assert printable("a\nb\udcffc") == "a\nb\\udcffc"


HOSTILE = "a|b\n# c `d` <script>alert(1)</script> [e](javascript:f) \x1b[2J"


def test_a_name_is_a_name_in_markdown():
    assert in_markdown(HOSTILE) == ("a\\|b\\n# c \\`d\\` &lt;script>alert(1)&lt;/script> [e]\\(javascript:f) \\x1b[2J")
    assert in_markdown("cells_2 [0.1, 0.2] (x)") == "cells_2 [0.1, 0.2] (x)"


@pytest.mark.parametrize("markdown", [True, False])
def test_a_name_stays_within_its_cell(markdown):
    lines = aligned(["domain", "J"], [[HOSTILE, "0.5"], ["cells", "0.6"]], {0}, markdown).split("\n")
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    if markdown:
        assert [line.replace("\\|", "").count("|") for line in lines] == [3] * 4 and "<" not in lines[2]
