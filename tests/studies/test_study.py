"""The study: what its rows are, what is put together from them, and a small one from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from src.studies.plan import Row, load_study, plan_rows, run_config
from src.studies.report import Study, grouped, method_table, report
from src.studies.rows import base_file, gate_file, row_file, run_study
from tests.errors import refuses

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src/configs/forgetting.yaml"

SMALL = {
    "run": {
        "model": {"name": "sam2_nano", "checkpoint": None, "image_size": 64},
        "lora": {"experts": 2, "rank": 2, "target_modules": ["memory_attention.*.q_proj"]},
        "dataset": {"clip": {"frames": 2, "max_objects": 1}},
        "training": {
            "max_epochs": 1, "clips_per_epoch": 2, "batch_size": 2, "num_workers": 0, "monitor_clips": 0,
            "device": "cpu",
        },
    },
    "domains": ["tissue", "thermal"],
    "orders": [["tissue", "thermal"]],
    "seeds": [0],
    "sizes": {"train": 4, "valid": 1, "test": 2, "source": 2, "frames": 2, "objects": 1, "gate_images": 2},
    "distill": {"weight": 1.0, "clips": 3, "batch_size": 1},
    "methods": {
        "groups": {"sequence": "groups"},
        "replay": {"replay": True, "set": {"lora.method": "full"}},
        "ewc": {"set": {"lora.method": "lora", "training.penalty": {"kind": "ewc", "weight": 1.0, "clips": 3}}},
    },
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """``write(key=value)``: the small study with some keys changed, in a file."""

    def to_file(**changes):
        path = tmp_path / "study.yaml"
        content = {**SMALL, "output_dir": str(tmp_path / "study"), **changes}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return to_file


class TestPlan:
    def test_the_shipped_study_is_what_it_should_be(self):
        study = load_study(SHIPPED)
        assert len(study.names) >= 3 and len(study.orders) == 2 and len(study.seeds) == 3
        methods = [run_config(study, row, 0, None) for row in plan_rows(study)]
        assert {config.lora.method for config in methods} == {"mope", "lora", "full", "decoder"}
        assert {config.training.penalty.kind for config in methods if config.training.penalty.weight} == {"l2sp", "ewc"}
        assert len(load_study(SHIPPED, quick=True).seeds) == 1

    def test_the_settings_of_the_shipped_study_are_among_those_it_was_tuned_on(self):
        study, tuning = load_study(SHIPPED), load_study(SHIPPED.with_name("forgetting_tuning.yaml"))
        assert study.run == tuning.run and study.distill == tuning.distill
        assert study.methods["expert_groups"].set == tuning.methods["groups"].set
        assert study.methods["full"].set in [method.set for method in tuning.methods.values()]

    def test_groups_are_learned_once_for_all_orders(self, write):
        study = load_study(write(orders=[["tissue", "thermal"], ["thermal", "tissue"]]))
        rows = [(row.method, row.distilled, row.order) for row in plan_rows(study)]
        assert rows.count(("groups", False, ("tissue",))) == 1
        assert ("replay", True, ("thermal", "tissue")) in rows and ("groups", False, ("tissue", "thermal")) not in rows

    def test_a_method_may_be_studied_in_one_way_only(self, write):
        study = load_study(write(methods={"distilled": {"distilled": [True]}, "both": {}}))
        rows = {(row.method, row.distilled) for row in plan_rows(study)}
        assert rows == {("distilled", True), ("both", False), ("both", True)}

    def test_replay_and_ewc_get_what_was_learned_before(self, write):
        study = load_study(write())
        replay = run_config(study, Row("replay", False, ("tissue", "thermal"), 0), 1, "last.pt")
        assert [each.name for each in replay.dataset.domains[1:]] == ["replayed_source", "replayed_tissue"]
        assert sum(each.weight for each in replay.dataset.domains[1:]) == replay.dataset.domains[0].weight
        assert replay.training.start_from == "last.pt"
        ewc = run_config(study, Row("ewc", True, ("tissue", "thermal"), 0), 1, "last.pt")
        assert ewc.training.penalty.folders == [study.domain("tissue").train.img_folder]
        assert ewc.training.distill.weight == 1.0

    def test_a_method_may_be_distilled_in_its_own_way(self, write):
        study = load_study(write())
        study.methods["replay"].set["training.distill.every"] = 2
        distill = run_config(study, Row("replay", True, ("tissue",), 0), 0, None).training.distill
        assert (distill.every, distill.weight) == (2, 1.0)
        assert run_config(study, Row("replay", False, ("tissue",), 0), 0, None).training.distill.weight == 0

    def test_real_data_sets_take_the_place_of_bundled_ones(self, write):
        own = {"name": "polyps", "train_img_folder": "a", "val_img_folder": "b", "test_img_folder": "c"}
        study = load_study(write(domains=[own, "thermal"], orders=[["polyps", "thermal"]]))
        config = run_config(study, Row("groups", False, ("polyps",), 0), 0, None)
        [domain] = config.dataset.domains
        assert (domain.name, domain.train.img_folder) == ("polyps", "a")

    @pytest.mark.parametrize(
        ("changes", "fact"),
        [
            ({"domains": ["tissue", "clouds"]}, "'clouds'"),
            ({"orders": [["tissue", "flakes"]]}, "orders: ['tissue', 'flakes']"),
            ({"methods": {"a": {"sett": {}}}}, "methods.a.sett"),
            ({"methods": {"a": {"set": {"lora.rnk": 3}}}}, "lora.rnk"),
            ({"quick": {"methods": ["b"], "orders": [["tissue"]], "seeds": [0]}}, "quick.methods"),
        ],
    )
    def test_mistakes_are_named(self, write, changes, fact):
        with refuses("config.mistakes") as caught:
            load_study(write(**changes))
        assert fact in str(caught.value)

    def test_quick_needs_its_section(self, write):
        with refuses("study.no-quick"):
            load_study(write(), quick=True)


def invent(study, scores):
    """Rows without training: ``scores(method, stage's domain or None, domain)`` is the J and F of every object."""
    domains = ["source", *study.names]

    def made(method, learned):
        return {domain: [[[scores(method, learned, domain)] * 2]] * 2 for domain in domains}

    near = {"source": {"tissue": 3.0, "thermal": 2.0}, "tissue": {"tissue": 0.5, "thermal": 4.0}}
    near["thermal"] = {"tissue": 4.0, "thermal": 0.5}
    videos = {name: [near[name]] * 2 for name in domains}
    videos["thermal"] = [near["thermal"], {"tissue": 4.0, "thermal": 1.5}]  # the gate rejects the second
    sets = {"source, dark": {"of": None, "distances": [near["source"], {"tissue": 0.9, "thermal": 2.0}]}}
    for path, content in (
        (base_file(study), {"scores": made(None, None)}),
        (gate_file(study), {"videos": videos, "sets": sets}),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    for row in plan_rows(study):
        stages = [
            {
                "domain": d,
                "steps": 1,
                "seconds": 2.0,
                "parameters": 10,
                "utilization": None,
                "scores": made(row.method, d),
            }
            for d in row.order
        ]
        row_file(study, row).parent.mkdir(exist_ok=True)
        row_file(study, row).write_text(json.dumps({"stages": stages}), encoding="utf-8")


class TestReport:
    @pytest.fixture
    def study(self, write):
        """A method gains 0.4 on the domain of its stage, and everything else falls by 0.1."""
        config = load_study(write())
        invent(
            config, lambda method, learned, domain: 0.5 + (0 if method is None else 0.4 if learned == domain else -0.1)
        )
        return Study(config)

    def matrix(self, study, method, mode):
        return next(s.R for s in study.sequences() if (s.method, s.distilled, s.mode) == (method, False, mode))

    def test_weights_that_train_on_show_their_last_stage(self, study):
        assert np.allclose(self.matrix(study, "replay", "on"), [[0.5, 0.5, 0.5], [0.4, 0.9, 0.4], [0.4, 0.4, 0.9]])

    def test_forced_on_means_the_nearest_group(self, study):
        assert np.allclose(self.matrix(study, "groups", "on"), [[0.5, 0.5, 0.5], [0.4, 0.9, 0.4], [0.4, 0.9, 0.9]])

    def test_the_gate_leaves_what_it_does_not_know_to_the_base(self, study):
        # of the two videos of thermal, one is rejected
        assert np.allclose(self.matrix(study, "groups", "gate"), [[0.5, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.9, 0.7]])

    def test_the_oracle_knows_the_domain(self, study):
        assert np.allclose(self.matrix(study, "groups", "oracle"), [[0.5, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.9, 0.9]])

    def test_one_set_of_adapters_has_a_gate_too_and_other_weights_have_not(self, study):
        assert np.allclose(self.matrix(study, "ewc", "gate"), [[0.5, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.4, 0.7]])
        assert {s.mode for s in study.sequences() if s.method == "replay"} == {"on"}

    def test_the_gates_rates(self, study):
        _, rates = study.gate_table()
        assert rates == pytest.approx({"false_reject": 0.25, "false_accept": 0.25, "balanced_accuracy": 0.75})

    def test_rows_that_are_missing_are_left_out(self, study):
        row_file(study.study, Row("replay", True, ("tissue", "thermal"), 0)).unlink()
        left = Study(study.study)
        assert {(s.method, s.distilled) for s in left.sequences()} == {
            (name, distilled) for name in ("groups", "replay", "ewc") for distilled in (False, True)
        } - {("replay", True)}
        assert method_table(left, grouped(left.sequences())).count("replay") == 1


def test_from_end_to_end(write, tmp_path, run_script):
    methods = {name: SMALL["methods"][name] for name in ("groups", "ewc")}
    path = write(methods=methods)
    study = load_study(path)
    assert not run_study(study, (2, 2))  # the other part is missing
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "study/rows").iterdir()}
    assert len(stamps) == len(plan_rows(study)) // 2
    status, text, _ = run_script(ROOT / "tools/forgetting_study.py", "--config", path)
    assert status == 0
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())  # not run again
    assert "balanced accuracy" in text
    results = json.loads((tmp_path / "study/results.json").read_text())
    assert len(results["sequences"]) == 2 * 2 * 3
    text = (tmp_path / "study/results.md").read_text()
    assert text.count("| groups") == 6 and "source, dark" in text
    for picture in ("gain_and_forgetting.png", "scores_order_1.png", "experts_tissue.png"):
        assert picture in text and (tmp_path / "study" / picture).stat().st_size > 1000
    assert not list((tmp_path / "study/work").iterdir())
    assert report(study)
