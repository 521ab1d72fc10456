"""Processes that need not import anything again."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from src import cli


def end_as_a_command(work: Callable[[], object], output: Path) -> NoReturn:
    """Do some work in this process, which is a fork and ends here, as a command would; it writes to ``output``."""

    def main(_: object) -> None:
        work()

    status: Any = 1
    try:
        with open(output, "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["train.py"]
        torch.set_num_threads(1)  # threads of the parent are not there any more
        cli.run(main, cli.parser("", ""))
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
