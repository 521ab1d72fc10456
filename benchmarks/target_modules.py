"""What each choice of ``lora.target_modules`` is worth: gain on the new domain, forgetting on the source domain, cost.

Every set of target names is trained as ``train.py`` would, from the same YAML and seed, and scored after its last
step; nothing is chosen by the scores. Rows already measured with the same settings are read from ``rows.json`` in the
output folder, so an interrupted run goes on where it stopped. A step's time is the median over the run: of the process
on a CPU, so that what else the machine does counts little, of the clock elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import steps_of_an_epoch
from src import cli
from src.config import Config, load_config
from src.core.errors import UserError
from src.core.files import write_text
from src.evaluation.domains import DomainOptions, retention_domains, target_domain
from src.lora.adapter import iter_adapter_layers
from src.lora.injection import count_parameters
from src.tasks.tracking.evaluation import evaluate_domain
from src.train.setup import build_run

CONFIGS = Path(__file__).parents[1] / "src" / "configs"

MEMORY_ATTENTION = [f"memory_attention.*.{p}_proj" for p in ("q", "k", "v", "out")]
DECODER = ["sam_mask_decoder.*"]
DEFAULT = "memory_attention"  # the other sets' cost is relative to it

TARGET_SETS = {
    DEFAULT: MEMORY_ATTENTION,
    "self_attention": ["memory_attention.*.self_attn.*_proj"],
    "cross_attention": ["memory_attention.*.cross_attn_image.*_proj"],
    "q": ["memory_attention.*.q_proj"],
    "k": ["memory_attention.*.k_proj"],
    "v": ["memory_attention.*.v_proj"],
    "out": ["memory_attention.*.out_proj"],
    "q+v": ["memory_attention.*.q_proj", "memory_attention.*.v_proj"],
    "memory_attention_mlp": ["memory_attention.*.linear1", "memory_attention.*.linear2"],
    "memory_encoder": ["memory_encoder.*.pwconv1", "memory_encoder.*.pwconv2"],
    "object_pointers": ["obj_ptr_proj.layers.*", "obj_ptr_tpos_proj"],
    "decoder_attention": ["sam_mask_decoder.transformer.*_proj"],
    "decoder_heads": [
        "sam_mask_decoder.output_hypernetworks_mlps.*",
        "sam_mask_decoder.iou_prediction_head.*",
        "sam_mask_decoder.pred_obj_score_head.*",
    ],
    "encoder_attention": ["image_encoder.*.attn.qkv", "image_encoder.*.attn.proj"],
    "encoder_mlp": ["image_encoder.*.mlp.layers.*"],
    "memory_attention+decoder": [*MEMORY_ATTENTION, *DECODER],
    "memory_attention+decoder+encoder": [*MEMORY_ATTENTION, *DECODER, "image_encoder.*"],
    "all": ["all"],
}


def measure(config: Config) -> dict[str, Any]:
    """Train as the config says and score the model after the last step; with method none, score the base.

    Returns:
        ``layers`` adapted, parameters that are ``trainable``, ``steps``, median ``seconds`` of a step (None without
        steps), and ``J``: domain → J of its validation split, domains to learn first.
    """
    run = build_run(config)
    clock = time.process_time if run.device.type == "cpu" else time.perf_counter
    seconds = []
    if run.train_step is not None:
        with cli.progress_bar(total=run.last_step, desc=Path(config.output_dir).name) as bar:
            while run.state.step < run.last_step:
                for micro_batches in steps_of_an_epoch(run):
                    started = clock()
                    run.train_step(micro_batches, run.state.step)
                    seconds.append(clock() - started)
                    bar.update()
    run.close()
    options = DomainOptions.from_config(config)
    domains = [target_domain(data, "valid", options) for data in config.dataset.domains] + retention_domains(options)
    return {
        "layers": sum(1 for _ in iter_adapter_layers(run.model)),
        "trainable": count_parameters(run.model).trainable,
        "steps": len(seconds),
        "seconds": median(seconds) if seconds else None,
        "J": {d.name: evaluate_domain(run.model, d, config.evaluation.prompt).scores["J"] for d in domains},
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows measured so far, each with the ``config`` it is of."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    except ValueError:
        raise UserError(f"{file}: not valid JSON; remove it to measure again") from None


def row_of(config: Config, file: Path) -> dict[str, Any]:
    """The row of a config, read from the file or else measured and added to it."""
    settings = config.model_dump(mode="json")
    for row in read_rows(file):
        if row["config"] == settings:
            return row
    with contextlib.redirect_stdout(io.StringIO()):  # what a run says is in its logs too
        row = {"config": settings, **measure(config)}
    write_text(file, json.dumps([*read_rows(file), row], indent=1) + "\n")
    return row


def main(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)

    def row(name: str, seed: int, setting: str) -> dict[str, Any]:
        run = output / f"{arguments.method}_{name}_seed{seed}"
        common = [f"training.max_epochs={arguments.epochs}", f"training.seed={seed}", f"output_dir={run}"]
        config = load_config(CONFIGS / f"{arguments.method}.yaml", [*arguments.overrides, *common, setting])
        return row_of(config, output / "rows.json")

    names = [DEFAULT, *(name for name in arguments.sets if name != DEFAULT)]
    for seed in arguments.seeds:
        base = row("base", seed, "lora.method=none")
        if seed == arguments.seeds[0]:
            print(header(arguments.method, list(base["J"])))
        print(line("base", seed, base, base, None), flush=True)
        default = None
        for name in names:
            found = row(name, seed, f"lora.target_modules={json.dumps(TARGET_SETS[name])}")
            default = default or found
            print(line(name, seed, found, base, found["seconds"] / default["seconds"]), flush=True)


def header(method: str, domains: list[str]) -> str:
    """The first two lines of the table."""
    scores = "".join(f" {domain} J (change) |" for domain in domains)
    rule = f"|---|--:|--:|--:|{'--:|' * len(domains)}--:|"
    return f"| {method} on | seed | layers | trainable |{scores} time of a step |\n{rule}"


def line(name: str, seed: int, row: dict[str, Any], base: dict[str, Any], cost: float | None) -> str:
    """A row of the table, with scores beside the base's and the cost of a step relative to the default's."""
    cells = [name, str(seed), str(row["layers"]), f"{row['trainable']:,}"]
    for domain, J in row["J"].items():
        cells.append(f"{J:.3f}" if row is base else f"{J:.3f} ({J - base['J'][domain]:+.3f})")
    return f"| {' | '.join([*cells, '' if cost is None else f'{cost:.2f}'])} |"


if __name__ == "__main__":
    parser = cli.parser(__doc__.splitlines()[0], "python -m benchmarks.target_modules --sets q+v all --seeds 0 1")
    parser.add_argument(
        "--method", choices=["mope_memory", "lora"], default="mope_memory", help="its YAML in src/configs"
    )
    parser.add_argument(
        "--sets", nargs="+", choices=TARGET_SETS, default=list(TARGET_SETS), metavar="NAME",
        help=f"of {', '.join(TARGET_SETS)} (default: all of them; {DEFAULT} is always measured)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=2, help="length of each training (default: 2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="every set with each of these (default: 0)")
    parser.add_argument("--output", default="experiments/target_modules", help="default: experiments/target_modules")
    cli.add_override_argument(parser)
    cli.run(main, parser)
