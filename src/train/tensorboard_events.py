"""What TensorBoard shows of a run: one scheme of tags, laid out by the question that each answers.

The scheme is in LORA_IMPLEMENTATION_GUIDE.md, "What TensorBoard shows".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ..config import Config, one_line_yaml
from ..core.streams import one_line, printable
from ..core.torch_compat import add_summary
from ..evaluation.expert_report import short_names, write_histogram
from ..evaluation.figures import cell_image
from ..tasks.base import FinalScores, Task

BASE = "_base"
"""What the tag of the base's score ends with, beside that of the model in training."""

PER_STEP = ("learning_rate", "grad_norm", "seconds", "waiting_for_data")
"""What is known of a step beside its losses."""

NOT_SHOWN = ("step", "epoch", "clips")
"""What a line of ``steps.jsonl`` holds beside what is drawn."""

COMPARED = (
    "model.name", "model.image_size", "lora.method", "lora.rank", "lora.alpha", "lora.dropout", "lora.experts",
    "lora.top_k", "lora.router.balance_weight", "lora.router.null_expert", "dataset.clip.frames",
    "training.learning_rate", "training.batch_size", "training.gradient_accumulation_steps", "training.max_epochs",
    "training.distill.weight", "training.penalty.kind", "training.penalty.weight", "training.adapter_init",
    "training.seed",
)  # fmt: skip
"""Keys of the config that are columns of the hparams view."""


class TensorBoardLogger:
    """The TensorBoard events of a run, in a folder of its own, so that runs are one line each.

    Args:
        folder: the run's, such as ``logs/<run_name>``.
        first: the first step that is written; what a former attempt wrote from there on is dropped from view.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first or None)

    def begin(self, config: Config, task: Task, step: int) -> None:
        """Show what a run is, before it goes on from a step: its config, its line among runs, the layout of curves.

        Args:
            config: the run.
            task: its task, which says what its scores and losses are called.
            step: the last that was done; the config holds from the next one on.
        """
        text = printable(config.to_yaml()).replace("```", "` ` `")  # a name must not end the block
        self._writer.add_text("config", f"```yaml\n{text}\n```", step + 1)
        self._writer.add_custom_scalars(layout(config, task))
        # without a list of columns, TensorBoard finds them itself, and shows those first in which runs differ
        _, start, _ = hparams(compared(config), {})
        add_summary(self._writer, start)

    def step(self, record: Mapping[str, Any]) -> None:
        """Draw a step: a line of ``steps.jsonl``, and ``seconds``, how long it took with the wait for its data."""
        for name, value in record.items():
            if name not in NOT_SHOWN and value is not None:
                group = "step" if name in PER_STEP else "loss"
                self._writer.add_scalar(f"{group}/{name}", value, record["step"])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(one_line(tag), value, step)

    def image(self, tag: str, image_HWC: np.ndarray, step: int) -> None:
        self._writer.add_image(one_line(tag), image_HWC, step, dataformats="HWC")

    def expert_use(self, usage: Mapping[str, Tensor], experts: int, top_k: int, step: int) -> None:
        """Show how experts were used since the last time: a bar each, layers × experts, and two numbers.

        Args:
            usage: per layer (E,) or (E + 1,), the null expert last: how often each was chosen, in any unit.
            experts: E.
            top_k: how many a token chooses, so that none has more than 1 / top_k of all choices.
            step: the last of those that are counted.
        """
        shares = {layer: use.double() / use.sum() for layer, use in usage.items() if use.sum() > 0}
        if not shares:
            return
        write_utilization(self._writer, "router/utilization", shares, step)
        values_LE = np.stack([share.numpy() for share in shares.values()])
        names = [*map(str, range(experts)), *(["null"] if values_LE.shape[1] > experts else [])]
        inside, layers = short_names(list(shares))
        title = f"share of choices, layers in {inside}; experts, up to step {step}"
        self.image("router/utilization", cell_image(values_LE, layers, names, title, (0, 1 / top_k)), step)
        self._writer.add_scalar("router/load_balance", load_balance(values_LE[:, :experts]), step)
        if values_LE.shape[1] > experts:
            self._writer.add_scalar("router/null_share", float(values_LE[:, experts].mean()), step)

    def sync(self) -> None:
        """Write down all that is waiting, before a checkpoint says that it is there."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def write_results(folder: Path, step: int, final: FinalScores) -> None:
    """Add a run's final scores and table to its events, and close its line among runs.

    They stand one step after the last, so that they give way to those of the run when it goes on.

    Args:
        folder: the run's, as of :class:`TensorBoardLogger`.
        step: the run's last.
        final: scores by tag, and tables.
    """
    writer = SummaryWriter(str(folder), purge_step=step + 1)
    for tag, value in final.scalars.items():
        writer.add_scalar(one_line(tag), value, step + 1)
    writer.add_text("results", printable(final.markdown), step + 1)
    _, _, end = hparams({}, {})
    add_summary(writer, end)
    writer.close()


def compared(config: Config) -> dict[str, Any]:
    """The values of :data:`COMPARED`."""

    def value_of(key: str) -> Any:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        return one_line_yaml(value) if isinstance(value, bool) or value is None else value

    return {key: value_of(key) for key in COMPARED}


def layout(config: Config, task: Task) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the custom scalars view: category → title → kind and patterns of tags.

    Charts of what a run does not have are left out.
    """
    routed = config.lora.method == "mope"
    parts = [*task.loss_names, *(["balance", "router_z"] if routed else [])]
    parts += ["penalty"] if config.training.penalty.weight else []
    distilled = {"distillation": ["Multiline", ["^loss/distill_.*$"]]} if config.training.distill.weight else {}
    routing = ["router/load_balance", *(["router/null_share"] if config.lora.router.null_expert else [])]
    charts = {
        question: _beside_the_base(groups, task.headline) for question, groups in task.monitored_tags().items()
    } | {
        "What is the loss made of?": _one_by_one([f"loss/{part}" for part in parts]) | distilled,
        "Do the experts share the work?": _one_by_one(routing) if routed else {},
        "How does it run?": _one_by_one([f"step/{name}" for name in PER_STEP]),
    }
    return {question: answers for question, answers in charts.items() if answers}


def _beside_the_base(groups: Sequence[str], score: str) -> dict[str, list[Any]]:
    """A chart for each group of tags: its headline score, and that of the base."""
    return {
        f"{group}: {score}, beside the base's": _lines(f"{group}/{score}", f"{group}/{score}{BASE}") for group in groups
    }


def _one_by_one(tags: Sequence[str]) -> dict[str, list[Any]]:
    return {tag: _lines(tag) for tag in tags}


def _lines(*tags: str) -> list[Any]:
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def load_balance(use_LE: np.ndarray) -> float:
    """How evenly experts are used, mean over layers: the entropy of their use (L, E) over its most, ln E; NaN for one.

    1: all alike; 0: one expert has every choice.
    """
    share_LE = use_LE / use_LE.sum(axis=1, keepdims=True).clip(min=1e-12)
    entropy_L = -(share_LE * np.log(share_LE.clip(min=1e-12))).sum(axis=1)
    return float(entropy_L.mean() / np.log(use_LE.shape[1])) if use_LE.shape[1] > 1 else float("nan")


def write_utilization(writer: SummaryWriter, name: str, usage: Mapping[str, Tensor], step: int) -> None:
    """Write a histogram per layer, ``name/layer``, with one bar per expert: its share of all selections."""
    for layer, share_E in usage.items():
        write_histogram(writer, f"{name}/{layer}", share_E.double().numpy(), step)
