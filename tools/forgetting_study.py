"""Study what is gained and what is forgotten when domains are learned one after another, by every method of a YAML."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from src import cli
from src.core.errors import UserError


def main(arguments: argparse.Namespace) -> None:
    from src.studies.plan import load_study

    part = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", arguments.part)
    if part is None or int(part[1]) > int(part[2]):
        raise UserError(f"--part {arguments.part}: write it as 1/2, the first of two parts")
    study = load_study(arguments.config, arguments.quick)

    from src.studies.report import report
    from src.studies.rows import base_file, gate_file, run_study

    complete = arguments.report or run_study(study, (int(part[1]), int(part[2])))
    if arguments.report and not (base_file(study).is_file() and gate_file(study).is_file()):
        raise UserError(f"{study.output_dir}: nothing to report yet; run the study without --report first")
    if not complete:
        print(f"this part is done; others are not: --report shows the rows that are in {study.output_dir}")
        return
    print(report(study))
    print(f"\nwritten to {Path(study.output_dir) / 'results.md'}, results.json and pictures beside them")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "python -m tools.forgetting_study --config src/configs/forgetting.yaml --quick")
    parser.add_argument("--config", required=True, metavar="YAML", help="such as src/configs/forgetting.yaml")
    parser.add_argument("--quick", action="store_true", help="the YAML's section 'quick' in place of the whole")
    parser.add_argument(
        "--part",
        default="1/1",
        metavar="K/N",
        help="run every N-th row only, from the K-th (default: 1/1)",
    )
    parser.add_argument("--report", action="store_true", help="run nothing; report the rows that are there")
    cli.run(main, parser)
