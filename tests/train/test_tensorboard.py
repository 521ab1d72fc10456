"""What TensorBoard shows of a run, read back from its events: a run that was killed twice and went on each time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from src.config import Config, load_config
from src.evaluation.results import Comparison
from src.evaluation.run import evaluate
from src.evaluation.tables import gate_rates
from src.lora.adapter import iter_adapter_layers
from src.studies.weight_penalty import weight_penalty
from src.tasks.final_scores import final_results
from src.train.callbacks import Callback
from src.train.tensorboard_events import COMPARED, compared, load_balance, write_results
from src.train.trainer import Trainer

SETTINGS = (
    "training.monitor_clips=1", "training.learning_rate=1e-2", "lora.router.null_expert=true",
    "training.distill.weight=1", "training.distill.clips=6", "training.distill.batch_size=1",
    "training.penalty.weight=0.1",
)  # fmt: skip
EXPERTS = 3


class Killed(Exception):
    pass


class DieUnsaved(Callback):
    """Dies after the first validation of what was trained, which is shown but in no checkpoint."""

    def on_validation_end(self, trainer, validation):
        if trainer.state.step:
            raise Killed


class DieAfter(Callback):
    """Dies after step 5, which no checkpoint holds, nor step 4."""

    def on_step_end(self, trainer, report):
        if trainer.state.step == 5:
            raise Killed


def new_trainer(config: Config, callback: Callback | None = None) -> Trainer:
    callbacks = [] if callback is None else [callback]
    return Trainer.from_config(config, "auto", objectives=[weight_penalty], callbacks=callbacks)


class Run:
    """What is left of the run, and its events as TensorBoard reads them."""

    def __init__(self, trainer: Trainer, config: Config, comparisons: list[Comparison]) -> None:
        self.trainer, self.config, self.comparisons = trainer, config, comparisons
        (self.folder,) = [path for path in (trainer.folder / "logs").iterdir() if path.is_dir()]
        sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
        self.events = EventAccumulator(str(self.folder), sizes)
        self.events.Reload()
        self.tags = self.events.Tags()

    def scalars(self, tag: str) -> dict[int, float]:
        found = self.events.Scalars(tag)
        assert len({event.step for event in found}) == len(found), f"{tag}: a step is there twice"
        return {event.step: event.value for event in found}

    def group(self, name: str) -> set[str]:
        return {tag.removeprefix(f"{name}/") for tag in self.tags["scalars"] if tag.startswith(f"{name}/")}

    def text(self, tag: str) -> dict[int, str]:
        return {event.step: event.tensor_proto.string_val[0].decode() for event in self.events.Tensors(tag)}


@pytest.fixture(scope="module")
def run(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs of three steps, in three attempts, and the table at the end."""
    folder = tmp_path_factory.mktemp("board")
    config = load_config(tiny_yaml, [f"output_dir={folder}", *SETTINGS])
    for mortal in (DieUnsaved(), DieAfter()):
        with pytest.raises(Killed):
            new_trainer(config, mortal).fit()
    trainer = new_trainer(config)
    comparisons = evaluate(config, trainer.fit()).comparisons
    write_results(trainer.events_folder, trainer.state.step, final_results(comparisons, ["target"]))
    return Run(trainer, config, comparisons)


def test_losses_apart_and_each_step_once(run):
    parts = {"total", "mask", "dice", "iou", "occlusion", "balance", "router_z", "penalty"}
    distilled = {name for name in run.group("loss") if name.startswith("distill_")}
    assert run.group("loss") == parts | distilled
    assert {"distill_mask"} <= distilled
    lines = [json.loads(line) for line in (run.trainer.folder / "steps.jsonl").read_text().splitlines()]
    for name in parts | distilled:
        assert run.scalars(f"loss/{name}") == {line["step"]: pytest.approx(line[name]) for line in lines}
    assert list(run.scalars("loss/total")) == [1, 2, 3, 4, 5, 6]


def test_rate_gradient_and_time_of_steps(run):
    assert run.group("step") == {"learning_rate", "grad_norm", "seconds", "waiting_for_data"}
    for tag in ("step/learning_rate", "step/grad_norm"):
        assert list(run.scalars(tag)) == [1, 2, 3, 4, 5, 6]
    seconds = run.scalars("step/seconds")
    assert set(seconds) >= {1, 2, 4, 5, 6}
    assert all(0 < value < 60 for value in seconds.values())


def test_no_tag_goes_back_or_repeats_a_step(run):
    for tag in run.tags["scalars"]:
        assert list(run.scalars(tag)) == sorted(run.scalars(tag))
    for kind, tags in (("Images", run.tags["images"]), ("Histograms", run.tags["histograms"])):
        for tag in tags:
            steps = [event.step for event in getattr(run.events, kind)(tag)]
            assert steps == sorted(set(steps)), tag


def test_validation_beside_the_base(run):
    history = {entry["step"]: entry for entry in run.trainer.state.history}
    for score in ("J", "F", "J&F", "mIoU", "Dice", "J_decay"):
        shown = run.scalars(f"validation/{score}")
        assert list(shown) == [0, 3, 6]
        assert shown[6] == pytest.approx(history[6][f"val_{score}"])
    for score in ("J", "J&F"):
        base = run.scalars(f"validation/{score}")[0]
        assert run.scalars(f"validation/{score}_base") == {step: pytest.approx(base) for step in (0, 3, 6)}


def test_every_prompt_is_scored_on_the_same_clips(run):
    expected = {f"{prompt}/{score}" for prompt in ("mask", "box", "point") for score in ("J", "J&F")}
    assert run.group("prompts") == expected | {f"{tag}_base" for tag in expected}
    for tag in expected:
        assert list(run.scalars(f"prompts/{tag}")) == [0, 3, 6]
    (target, _) = run.comparisons
    first = target.base.videos[0]
    assert run.scalars("prompts/mask/J")[0] == pytest.approx(first.means()["J"], abs=1e-6)
    assert len({run.scalars(f"prompts/{prompt}/J")[0] for prompt in ("mask", "box", "point")}) > 1


def test_what_must_be_kept_is_seen_beside_the_base_while_training(run):
    (_, source) = run.comparisons
    for score in ("J", "J&F"):
        kept = run.scalars(f"retention/source/{score}")
        assert list(kept) == [0, 3, 6]
        assert kept[0] == pytest.approx(source.base.scores[score], abs=1e-6)
        assert run.scalars(f"retention/source/{score}_base") == {step: pytest.approx(kept[0]) for step in (0, 3, 6)}
    assert run.scalars("retention/source/J")[3] != run.scalars("retention/source/J")[0]


def test_experts_as_bars_map_and_numbers(run):
    layers = [name for name, _ in iter_adapter_layers(run.trainer.model)]
    assert set(run.tags["histograms"]) == {f"router/utilization/{layer}" for layer in layers}
    for tag in run.tags["histograms"]:
        events = run.events.Histograms(tag)
        assert [event.step for event in events] == [3, 6]
        assert len(events[-1].histogram_value.bucket) == EXPERTS + 1
        assert sum(events[-1].histogram_value.bucket) == pytest.approx(1)
    assert [event.step for event in run.events.Images("router/utilization")] == [3, 6]
    assert list(run.scalars("router/null_share")) == list(run.scalars("router/load_balance")) == [3, 6]
    assert all(0 < value <= 1 for value in run.scalars("router/load_balance").values())


def test_the_same_clip_is_drawn_as_truth_base_and_adapted(run, tmp_path):
    (tag,) = [tag for tag in run.tags["images"] if tag.startswith("overlays/")]
    events = run.events.Images(tag)
    assert [event.step for event in events] == [0, 3, 6]
    sheets = []
    for event in events:
        (tmp_path / "sheet.png").write_bytes(event.encoded_image_string)
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png")).astype(int))
    rows = [np.split(sheet, 3) for sheet in sheets]
    for sheet in rows[1:]:
        assert (sheet[0] == rows[0][0]).all()  # the truth
        assert (sheet[1] == rows[0][1]).all()  # the base, though the run went on without it
    below = 20  # pixels of the row's label
    assert (rows[0][1][below:] == rows[0][2][below:]).all()
    assert (rows[2][1][below:] != rows[2][2][below:]).any()


def test_gate_and_final_scores_stand_after_the_last_step(run):
    target, source = run.comparisons
    expected = {f"gate/{name}": value for name, value in gate_rates(run.comparisons).items()}
    for c in run.comparisons:
        expected[f"gate/known/{c.domain.name}"] = c.gated.known / len(c.gated.result.videos)
        expected[f"final/J/{c.domain.name}"] = c.adapted.scores["J"]
    expected["final/gain"] = target.adapted.scores["J"] - target.base.scores["J"]
    expected["final/forgetting"] = source.base.scores["J"] - source.adapted.scores["J"]
    expected["gate/gain"] = target.gated.result.scores["J"] - target.base.scores["J"]
    expected["gate/forgetting"] = source.base.scores["J"] - source.gated.result.scores["J"]
    shown = {tag: run.scalars(tag) for tag in run.tags["scalars"] if tag.split("/")[0] in ("final", "gate")}
    assert shown == {tag: {7: pytest.approx(value, abs=1e-6)} for tag, value in expected.items()}


def test_a_run_is_one_line_of_the_hparams_view(run):
    assert not [path for path in run.folder.iterdir() if path.is_dir()]
    content = run.events.summary_metadata
    start = hparams_metadata.parse_session_start_info_plugin_data(
        content[hparams_metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert set(start.hparams) == set(COMPARED)
    assert start.hparams["lora.rank"].number_value == run.config.lora.rank
    assert start.hparams["lora.router.null_expert"].string_value == "true"
    assert hparams_metadata.SESSION_END_INFO_TAG in content
    # which would hide from the view what other runs have besides
    assert hparams_metadata.EXPERIMENT_TAG not in content


def test_config_and_table_as_text(run):
    configs = run.text("config/text_summary")
    assert list(configs) == [1, 4]  # the third attempt took the place of the second, which began at the same step
    assert all(run.config.to_yaml() in text for text in configs.values())
    ((step, table),) = run.text("results/text_summary").items()
    assert step == 7
    assert "| target" in table
    assert "| source" in table
    assert "domain gate: false reject" in table


def test_every_chart_of_the_layout_has_curves(run):
    (event,) = run.events.Tensors("custom_scalars__config__")[-1:]
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "Does it learn?",
        "Does it forget?",
        "What is the loss made of?",
        "Do the experts share the work?",
        "How does it run?",
    ]
    for category in layout.category:
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                assert [tag for tag in run.tags["scalars"] if re.match(pattern, tag)], pattern


def test_a_finished_run_that_is_resumed_shows_its_results_once(run):
    trainer = new_trainer(run.config)
    trainer.fit()
    write_results(trainer.events_folder, trainer.state.step, final_results(run.comparisons, ["target"]))
    again = Run(trainer, run.config, run.comparisons)
    assert list(again.scalars("final/gain")) == [7]
    assert list(again.text("results/text_summary")) == [7]
    assert list(again.scalars("loss/total")) == [1, 2, 3, 4, 5, 6]


def test_a_base_of_other_clips_is_not_shown_beside_later_scores(run, tmp_path):
    settings = run.config.training.model_copy(update={"monitor_clips": 2, "max_epochs": 2})
    config = run.config.model_copy(update={"training": settings, "output_dir": str(tmp_path / "other")})
    trainer = Trainer.from_config(config, run.trainer.checkpoints / "last.pt", objectives=[weight_penalty])
    assert trainer.state.base_scores == {}
    assert trainer.state.base_masks == {}


def test_load_balance():
    assert load_balance(np.array([[1.0, 1.0, 1.0]])) == pytest.approx(1)
    assert load_balance(np.array([[0.0, 5.0, 0.0]])) == pytest.approx(0, abs=1e-6)
    assert load_balance(np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])) == pytest.approx((np.log(2) / np.log(3) + 1) / 2)


def test_columns_are_keys_of_the_config(make_config):
    assert set(compared(make_config())) == set(COMPARED)
